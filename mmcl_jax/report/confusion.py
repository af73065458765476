"""Section of the report on multi-class labels: which classes are taken for which."""

import numpy as np

from mmcl_jax.html_page import Html, heading, join, paragraph, table
from mmcl_jax.report.inputs import Predictions, Run, without_seed

_MOST_CLASSES = 30  # a wider table cannot be read


def confusion_section(run: Run) -> Html:
    """Measured against predicted classes of the test split, the first seed of each model.

    Empty where no model predicts a multi-class label.
    """
    first: dict[str, Predictions] = {}
    for member in run.predictions:
        if "multiclass" in member.kinds:
            key = without_seed(member.stage)
            if key not in first or member.seed < first[key].seed:
                first[key] = member
    parts = [_table(stage, member) for stage, member in first.items()]
    if not parts:
        return Html("")
    note = (
        "Number of test records by the class that was measured (rows) and the most probable one "
        "(columns); recognised is the share of a row on the diagonal."
    )
    return join(paragraph(note, "quiet"), *parts)


def _table(stage: str, member: Predictions) -> Html:
    known = (member.split == "test") & ~np.isnan(member.label).any(axis=1)
    title = heading(f"{stage}, seed {member.seed}")
    # 'rhythm: AF' is the column of class AF.
    classes = [name.partition(": ")[2] for name in member.names]
    if not known.any() or len(classes) > _MOST_CLASSES:
        reason = f"{len(classes)} classes are too many for a table" if known.any() else "no record"
        return join(title, paragraph(f"Not shown: {reason}."))
    pairs = member.label[known].argmax(axis=1), member.prediction[known].argmax(axis=1)
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, pairs, 1)
    rows = []
    for name, row, right in zip(classes, counts, counts.diagonal(), strict=True):
        share = f"{100 * right / row.sum():.0f} %" if row.sum() else ""
        rows.append([name, *(f"{count:,}" for count in row), f"{row.sum():,}", share])
    return join(title, table(("measured", *classes, "all", "recognised"), rows))
