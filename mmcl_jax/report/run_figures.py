"""Sections of the report that hold figures: which arrays of a run go into which figure."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np

from mmcl_jax import figures as draw
from mmcl_jax import similarity_figures
from mmcl_jax.data.preparing import cohort_figures
from mmcl_jax.html_page import Html, details, join, paragraph, table
from mmcl_jax.report import drawings
from mmcl_jax.report.files import Figures
from mmcl_jax.report.inputs import Predictions, Run, seed_of, without_seed
from mmcl_jax.report.run_results import NAMES, result_text
from mmcl_jax.statistics import metrics
from mmcl_jax.statistics.calibration import Calibration, calibration

_OPEN_CURVES = 6  # further stages are folded away
_SUBJECTS_PER_FIGURE = 6
_PANELS_PER_FIGURE = 20
_RATES = ("learning_rate", "train/learning_rate", "lr", "train/lr")
_LOWER_IS_BETTER = ("loss", "mae", "mse", "rmse", "median_rank")


def best_metric(records: Sequence[dict]) -> str:
    """'AUROC 0.731 at step 400': the best value of the stage's main validation metric."""
    name = _main_metric(records) or ("val/loss" if _values(records, "val/loss")[0] else None)
    if name is None:
        return "no validation metric logged"
    steps, values = _values(records, name)
    choose = min if name.endswith(_LOWER_IS_BETTER) else max
    best = choose(range(len(values)), key=values.__getitem__)
    metric = name.removeprefix("val/")
    return f"{NAMES.get(metric, metric)} {values[best]:.4g} at step {steps[best]:,}"


def cohort_section(preview: pathlib.Path, figures: Figures) -> Html:
    """A few records of the cohort as its preparation drew them."""
    return figures.add_png(
        "cohort", preview.read_bytes(), "A few records of the cohort", cohort_figures.shown(preview)
    )


def training_section(run: Run, figures: Figures) -> Html:
    if not run.log:
        return paragraph("No training log, so no curves: metrics.jsonl is absent or empty.")
    stages: dict[str, dict[str, list[dict]]] = {}
    for stage, records in run.log.items():
        stages.setdefault(without_seed(stage), {})[seed_of(stage)] = records
    shown = []
    for stage, seeds in stages.items():
        every = [record for records in seeds.values() for record in records]
        metric = _main_metric(every)
        rate = next((name for name in _RATES if _values(every, name)[0]), "learning_rate")
        names = [name for name in ("train/loss", "val/loss", metric, rate) if name]
        runs = {}
        for seed, records in seeds.items():
            series = {name: _values(records, name) for name in names}
            label = f"seed {seed.removeprefix('seed').lstrip('_-=')}" if seed else "no seed"
            runs[label] = {name: pair for name, pair in series.items() if pair[0]}
        if any(runs.values()):
            figure = draw.training_curves(stage, runs, metric=metric, rate=rate)
            alt = f"Training curves of stage {stage}: loss, validation metric, learning rate"
            shown.append(figures.add(f"curves_{stage}", figure, alt))
    if not shown:
        return paragraph("The training log holds no loss, validation metric or learning rate.")
    rest = shown[_OPEN_CURVES:]
    folded = [details(f"{len(rest)} more stages", join(*rest))] if rest else []
    return join(*shown[:_OPEN_CURVES], *folded)


def roc_section(run: Run, figures: Figures) -> Html:
    panels: dict[str, list[draw.RocCurve]] = {}
    skipped = []
    models: dict[str, list[Predictions]] = {}
    for member in run.predictions:
        for name, kind in zip(member.names, member.kinds, strict=True):
            if kind != "regression":
                models.setdefault(name, []).append(member)
    for name, members in models.items():
        members = sorted(members, key=lambda member: (without_seed(member.stage), member.seed))
        first = {without_seed(member.stage): member for member in reversed(members)}
        several = len(first) > 1
        for member in sorted(first.values(), key=lambda m: m.stage) if several else members:
            label, probability, subject = _test_columns(member, name)
            known = ~np.isnan(label)
            if len(np.unique(label[known])) < 2 or not np.isfinite(probability[known]).all():
                skipped.append(f"{name} ({member.stage})")
                continue
            result = _auroc(run, member, name, several, label, probability, subject)
            prefix = f"{without_seed(member.stage)}, " if several else ""
            legend = f"{prefix}seed {member.seed}: {result}"
            panels.setdefault(name, []).append(draw.RocCurve(legend, label, probability))
    parts = []
    if panels:
        figure = draw.roc_curves(panels)
        caption = (
            "Test split. The interval is the 95 % bootstrap interval over subjects. Where several "
            "models predict a label, the first seed of each is drawn."
        )
        parts.append(figures.add("roc", figure, f"ROC curves of {', '.join(panels)}", caption))
    if skipped:
        text = (
            "No ROC curve, because the test split has one class only or predictions are not finite"
        )
        parts.append(paragraph(f"{text}: {'; '.join(skipped)}."))
    return join(*parts) or paragraph("There are no test predictions of a label with classes.")


def calibration_section(run: Run, figures: Figures) -> Html:
    """Reliability diagrams of the binary labels, the first seed of each model."""
    panels: dict[str, Calibration] = {}
    for member in sorted(run.predictions, key=lambda member: member.seed):
        for name, kind in zip(member.names, member.kinds, strict=True):
            label, probability, _ = _test_columns(member, name)
            key = f"{name}, {without_seed(member.stage)}"
            usable = (~np.isnan(label)).any() and np.isfinite(probability).all()
            if kind == "binary" and key not in panels and usable:
                panels[key] = calibration(label, probability)
    if not panels:
        return paragraph("There are no test predictions of a binary label.")
    caption = (
        "Test split, first seed. Observed frequency against predicted probability in ten bins of "
        "equal width with 95 % Wilson intervals; below, the records of each bin (n). Brier score: "
        "mean squared difference of probability and label. ECE: expected calibration error. "
        "Models that were fine-tuned on balanced sets predict for a prevalence of one half."
    )
    shown = dict(list(panels.items())[:_PANELS_PER_FIGURE])
    more = len(panels) - len(shown)
    caption += f" {more} more labels are not drawn." if more else ""
    alt = f"Reliability diagrams of {'; '.join(shown)}"
    return figures.add("calibration", drawings.reliability("Calibration", shown), alt, caption)


def scatter_section(run: Run, figures: Figures) -> Html:
    first: dict[str, Predictions] = {}
    for member in run.predictions:
        if "regression" in member.kinds:
            key = without_seed(member.stage)
            if key not in first or member.seed < first[key].seed:
                first[key] = member
    parts = []
    for stage, member in first.items():
        panels = []
        for name, kind, unit in zip(member.names, member.kinds, member.units, strict=True):
            label, prediction, _ = _test_columns(member, name)
            if kind == "regression" and (~np.isnan(label)).any():
                panels.append(draw.Scatter(name, unit, label, prediction))
        for start in range(0, len(panels), _PANELS_PER_FIGURE):
            block = panels[start : start + _PANELS_PER_FIGURE]
            number = f"_{start // _PANELS_PER_FIGURE + 1}" if len(panels) > len(block) else ""
            n = len(block[0].measured)
            caption = (
                f"Test split, seed {member.seed}, {n:,} records, of which at most 500 are drawn. "
                "Orange: regression line of all records. Dotted: perfect prediction. r: Pearson's "
                "correlation of all records."
            )
            figure = draw.phenotype_scatter(block, title=stage)
            alt = f"Predicted against measured {', '.join(panel.name for panel in block)}"
            parts.append(figures.add(f"scatter_{stage}{number}", figure, alt, caption))
    return join(*parts) or paragraph("There are no test predictions of a regression label.")


def similarity_section(run: Run, figures: Figures) -> Html:
    parts = []
    if run.cmr is None:
        parts.append(paragraph("No maps over CMR frames: interpret/cmr_similarity.npz is absent."))
    else:
        caption = (
            "Cosine similarity between the ECG's projection and each location of the CMR feature "
            "map, enlarged bilinearly over the mid-phase frame; above it the range of the map. The "
            "box on the whole frame is the crop that the encoder sees. Qualitative: a high "
            "similarity is no proof of a cause."
        )
        count = len(run.cmr["frames"])
        for start in range(0, count, _SUBJECTS_PER_FIGURE):
            block = slice(start, min(start + _SUBJECTS_PER_FIGURE, count))
            names = [str(record) for record in run.cmr["record"][block]]
            arrays = [run.cmr[name][block] for name in ("frames", "similarity", "whole", "box")]
            figure = similarity_figures.cmr_similarity(*arrays, names)
            alt = f"Similarity over the CMR frames of {', '.join(names)}"
            name = f"cmr_similarity_{start // _SUBJECTS_PER_FIGURE + 1}"
            parts.append(figures.add(name, figure, alt, caption))
    if run.heart:
        header = ["encoders", "over the heart", "beside it", "ratio", "higher over the heart", "n"]
        rows = [
            [
                name,
                *(f"{found[key]:.3f}" for key in ("inside", "outside")),
                "" if found["ratio"] is None else f"{found['ratio']:.3f}",
                f"{found['higher_inside']:.0%} of subjects",
                f"{found['n']:,}",
            ]
            for name, found in run.heart.items()
        ]
        parts.append(table(header, rows, numbers=range(1, len(header))))
        parts.append(
            paragraph(
                "Mean cosine similarity inside and outside the box around the heart, which this "
                "stage does not see: its images are whole frames. Own less others: cosine with "
                "the ECG of the subject less the mean cosine with the ECGs of all others, which "
                "takes away what all ECGs share. A ratio is given where the mean beside the heart "
                "is above 0 by twice its standard error. Untrained: the same encoders with fresh "
                "random parameters."
            )
        )
    if run.ecg is None:
        parts.append(paragraph("No maps over ECGs: interpret/ecg_similarity.npz is absent."))
    else:
        caption = (
            "Cosine similarity between the CMR projection and each 0.2 s patch of the ECG, as "
            "background colour."
        )
        arrays = (run.ecg[name] for name in ("ecg", "similarity", "record"))
        maps = []
        for ecg, similarity, record in zip(*arrays, strict=True):
            figure = similarity_figures.ecg_similarity(ecg, similarity, str(record))
            alt = f"Similarity over the ECG of {record}"
            maps.append(figures.add(f"ecg_similarity_{record}", figure, alt, caption))
        rest = details(f"{len(maps) - 2} more ECGs", join(*maps[2:])) if maps[2:] else ""
        parts.append(join(*maps[:2], rest))
    return join(*parts)


def _auroc(run, member, name, several, label, probability, subject) -> str:
    """AUROC and interval as in the table; computed here where the table does not have it."""
    key = (name, "test", "auroc", str(member.seed))
    stage = without_seed(member.stage)
    rows = [row for row in run.metrics if (row.target, row.split, row.metric, row.seed) == key]
    rows = [row for row in rows if row.model == stage] or ([] if several else rows)
    if len(rows) == 1:
        return result_text(rows[0].value, rows[0].low, rows[0].high)
    result = metrics.binary_results(label, probability, subject=subject)["auroc"]
    return result_text(result.value, result.low, result.high)


def _test_columns(member: Predictions, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    test, column = member.split == "test", member.names.index(name)
    return member.label[test, column], member.prediction[test, column], member.subject[test]


def _main_metric(records: Sequence[dict]) -> str | None:
    """The validation metric to follow: AUROC, r, recall@1, else the first one by name."""
    names = {name for record in records for name in record if name.startswith("val/")}
    names = sorted(name for name in names - {"val/loss"} if _values(records, name)[0])
    for wanted in ("auroc", "r", "recall@1"):
        for name in names:
            if name.rpartition("/")[2] == wanted:
                return name
    return names[0] if names else None


def _values(records: Sequence[dict], name: str) -> tuple[list[int], list[float]]:
    found = [
        (record["step"], float(record[name]))
        for record in records
        if record.get(name) is not None and math.isfinite(float(record[name]))
    ]
    return [step for step, _ in found], [value for _, value in found]
