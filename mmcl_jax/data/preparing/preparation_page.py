"""prepare_report.html of a cohort: what was used and refused, what the leads and labels look like.

One file that opens without a network. It is a function of the folder of the cohort alone, so
`write_page` can write it again at any time.
"""

import collections
import csv
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmcl_jax.data.cohort import Cohort, open_cohort
from mmcl_jax.data.cohort_format import MARKER, flatten
from mmcl_jax.data.preparing.cohort_figures import PREVIEW, histogram, shown
from mmcl_jax.data.signals.lead_statistics import COLUMNS, lead_statistics
from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.data.targets.label_summary import words
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.figures import png
from mmcl_jax.html_page import (
    Html,
    details,
    escape,
    heading,
    join,
    page,
    paragraph,
    picture,
    table,
    terms,
)

PAGE = "prepare_report.html"


def write_page(cohort_path: str | os.PathLike) -> pathlib.Path:
    """Writes the page of a cohort; returns its path.

    Raises:
        FileNotFoundError, CohortError: there is no usable cohort, see `open_cohort`.
    """
    cohort = open_cohort(cohort_path)
    counts = json.loads((cohort.path / MARKER).read_text(encoding="utf-8"))
    title = f"Cohort {cohort.path.absolute().name}"
    header = Html(f"<h1>{escape(title)}</h1>") + paragraph(
        f"Prepared from source {cohort.source_name}. " + _sentence(counts, cohort), "quiet"
    )
    sections = [
        ("records", "Records", _records(counts, cohort)),
        ("refused", "Refused", _refused(_rows(cohort.path / "refused.csv"))),
        ("flagged", "Used, with remarks", _flagged(_rows(cohort.path / "flagged.csv"))),
        ("leads", "ECG leads", _leads(cohort)),
        ("labels", "Labels", _labels(cohort)),
        ("examples", "Examples", _examples(cohort)),
        ("settings", "Settings", _settings(cohort)),
    ]
    file = cohort.path / PAGE
    partial = file.with_name(f"{PAGE}.partial")
    text = page(title, Html(header), sections)
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(file)
    return file


_EXAMPLES = 3  # records named per reason or remark
_SAMPLE = 200  # records read for the statistics after preprocessing


def _sentence(counts: Mapping[str, Any], cohort: Cohort) -> str:
    return (
        f"{counts['read']:,} records read, {sum(cohort.splits.values()):,} used, "
        f"{counts['refused']:,} refused."
    )


def _records(counts: Mapping[str, Any], cohort: Cohort) -> Html:
    rows = []
    for split in cohort.splits:
        columns = cohort.table(split)
        ecg, cmr = columns["has_ecg"], columns["has_cmr"]
        people = len(set(columns["subject"].tolist()))
        rows.append((split, len(ecg), people, ecg.sum(), cmr.sum(), (ecg & cmr).sum()))
    rows.append(("all", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True))))
    shown_rows = [(name, *(f"{number:,}" for number in numbers)) for name, *numbers in rows]
    remarks = f"{counts['flagged']:,} remarks on records that are used"
    return join(
        table(
            ("split", "records", "subjects", "with ECG", "with CMR", "with both"),
            shown_rows,
            bold=(len(rows) - 1,),
        ),
        paragraph(f"No subject is in two splits. {remarks}.", "quiet"),
    )


def _refused(rows: Sequence[Mapping[str, str]]) -> Html:
    if not rows:
        return paragraph("None.")
    groups = collections.defaultdict(list)
    for row in rows:
        # Reasons that differ in their numbers only are of one kind.
        groups[re.sub(r"\d[\d.,]*", "#", row["reason"])].append(row)
    lines = [
        (
            f"{len(group):,}",
            _wrapped(group[0]["reason"]),
            _wrapped(_names(row["file"] or row["record"] for row in group)),
        )
        for group in sorted(groups.values(), key=len, reverse=True)
    ]
    return join(
        table(("records", "reason", "such as"), lines),
        paragraph("Every refused record is in refused.csv.", "quiet"),
    )


def _flagged(rows: Sequence[Mapping[str, str]]) -> Html:
    if not rows:
        return paragraph("None.")
    groups = collections.defaultdict(list)
    for row in rows:
        kind, _, detail = row["remark"].partition(": ")
        groups[kind].append((row["record"], detail))
    lines = []
    for kind, group in sorted(groups.items(), key=lambda item: len(item[1]), reverse=True):
        detail, _ = collections.Counter(detail for _, detail in group).most_common(1)[0]
        examples = _names(name for name, _ in group)
        lines.append((f"{len(group):,}", kind, _wrapped(detail), _wrapped(examples)))
    return join(
        table(("records", "remark", "most often", "such as"), lines),
        paragraph("Every remark is in flagged.csv.", "quiet"),
    )


def _leads(cohort: Cohort) -> Html:
    parts = []
    if cohort.leads:
        columns = ("mean", "sd", "min", "max", "peak_to_peak")
        names = ("lead", "mean", "standard deviation", "smallest", "largest", "peak to peak")
        rows = [(lead, *(f"{cohort.leads[lead][c]:z.3f}" for c in columns)) for lead in LEADS]
        parts += [
            heading("As recorded, in mV"),
            table(names, rows),
            paragraph(
                f"Over {cohort.leads['records']:,} ECGs, 10 s at 500 Hz, before clipping and "
                "normalisation; peak to peak is the mean over the ECGs.",
                "quiet",
            ),
        ]
    count, statistics = _after_preprocessing(cohort)
    if count:
        rows = [
            (lead, *(f"{v:z.3f}" for v in row)) for lead, row in zip(LEADS, statistics, strict=True)
        ]
        parts += [
            heading("As the models read them"),
            table(("lead", *COLUMNS), rows),
            paragraph(
                f"Over the first {count:,} ECGs, without a unit: each of the groups I-III, "
                "aVR-aVF and V1-V6 of an ECG has mean 0 and standard deviation 1.",
                "quiet",
            ),
        ]
    return join(*parts) if parts else paragraph("No record has an ECG.")


def _after_preprocessing(cohort: Cohort) -> tuple[int, np.ndarray]:
    """How many ECGs were read, and [12, 4]: mean, sd, min, max over them."""
    found = []
    for split in cohort.splits:
        source = cohort.source(split, ("ecg",))
        rows = np.flatnonzero(cohort.table(split)["has_ecg"])[: _SAMPLE - len(found)]
        found += [lead_statistics(source[row]["ecg"]) for row in rows]
    if not found:
        return 0, np.zeros((len(LEADS), len(COLUMNS)))
    mean, deviation, low, high = np.moveaxis(np.array(found, np.float64), 2, 0)
    spread = np.sqrt((deviation**2 + mean**2).mean(0) - mean.mean(0) ** 2)
    return len(found), np.stack((mean.mean(0), spread, low.min(0), high.max(0)), axis=1)


def _labels(cohort: Cohort) -> Html:
    if not cohort.labels:
        return paragraph("The source has no labels.")
    groups = collections.defaultdict(list)
    for column, label in enumerate(cohort.labels):
        groups[label.group].append((column, label))
    header = ("label", "meaning", *cohort.splits, "known", "missing")
    parts = [paragraph("Binary: share of positives. Regression: mean, standard deviation.")]
    for group, members in groups.items():
        rows = [_label_row(cohort, column, label) for column, label in members]
        parts += [heading(group or "other"), table(header, rows)]
    figure = _ages(cohort)
    if figure is not None:
        parts += [heading("Age"), picture(png(figure), "Histogram of the ages of each split")]
    return join(*parts)


def _label_row(cohort: Cohort, column: int, label: Label) -> tuple[str, ...]:
    values = [cohort.table(split)["labels"][:, column] for split in cohort.splits]
    everyone = np.concatenate(values)
    missing = np.isnan(everyone)
    return (
        label.name,
        label.description,
        *(words(label, part) for part in values),
        f"{(~missing).sum():,}",
        f"{100 * missing.mean():.1f} %",
    )


def _ages(cohort: Cohort):
    for column, label in enumerate(cohort.labels):
        if label.name == "age" and label.kind == "regression":
            values = {s: cohort.table(s)["labels"][:, column] for s in cohort.splits}
            return histogram(values, f"age [{label.unit}]")
    return None


def _examples(cohort: Cohort) -> Html:
    file = cohort.path / PREVIEW
    if not file.is_file():
        return paragraph("There is no preview.png in the folder.")
    return picture(file.read_bytes(), "Frames and ECGs of a few records", shown(file))


def _settings(cohort: Cohort) -> Html:
    settings = [(name, json.dumps(value)) for name, value in flatten(cohort.settings).items()]
    parameters = [(name, json.dumps(value)) for name, value in flatten(cohort.parameters).items()]
    return join(
        paragraph("Cohorts fit together, and a model fits a cohort, when these are equal."),
        terms([*settings, ("sha256", cohort.settings_hash)]),
        details("What the source was told", terms(parameters)) if parameters else "",
    )


def _names(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_EXAMPLES]) + (", …" if len(names) > _EXAMPLES else "")


def _wrapped(text: str) -> Html:
    """A cell of many words, which would make its table too wide."""
    return Html(f'<div style="white-space:normal;min-width:16rem">{escape(text)}</div>')


def _rows(file: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a table of the cohort; none where it was removed."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
