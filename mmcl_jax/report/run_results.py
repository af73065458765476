"""Tables of results in the report: one per disease or group of labels, a summary, and retrieval."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

from mmcl_jax.html_page import Html, details, heading, join, paragraph, table
from mmcl_jax.report.inputs import Row, Run, group_of
from mmcl_jax.statistics.metrics import BINARY, REGRESSION

NAMES = {
    "macro_auroc": "macro AUROC",
    "auroc": "AUROC",
    "ap": "average precision",
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "r": "r",
    "r2": "R²",
    "mae": "mean absolute error",
    "median_rank": "median rank",
}

INTERVAL = (
    "Value [low, high]: brackets hold the 95 % percentile bootstrap interval over the subjects of "
    "the split, with the trained model held fixed. It does not contain the variation between "
    "training seeds; where several seeds were trained, the row 'mean ± sd' does (sample standard "
    "deviation over seeds)."
)

THRESHOLDS = (
    "Thresholded metrics use a probability of 0.5. The class that a multi-class model predicts is "
    "the most probable one. Its macro AUROC is the mean over the classes that occur of one against "
    "the others."
)


def results_section(run: Run) -> Html:
    """One table per disease and per group of labels."""
    rows = _shown(run, retrieval=False)
    if not rows:
        return paragraph(
            "No results on the test split: evaluate/metrics.csv is absent or holds none."
        )
    units = {
        name: unit
        for predictions in run.predictions
        for name, unit in zip(predictions.names, predictions.units, strict=True)
    }
    parts = [paragraph(INTERVAL), paragraph(THRESHOLDS)]
    for title, members in _grouped(run, rows).items():
        parts += [heading(f"{title} (split: test)"), _group_table(members, units)]
    return join(*parts)


def summary_section(run: Run) -> Html:
    """One line per disease or group and model: the main metric."""
    rows = _shown(run, retrieval=False)
    lines = []
    for title, members in _grouped(run, rows).items():
        metric = _metrics_of(members)[0]
        for model in _unique(row.model for row in members):
            chosen = [row for row in members if row.model == model and row.metric == metric]
            if chosen:
                lines.append(_summary_line(title, model, metric, chosen))
    for row in _shown(run, retrieval=True):
        if row.metric.endswith("recall@1"):
            direction = _direction(row.metric)
            lines.append(
                [
                    f"retrieval, {direction}",
                    row.model,
                    "recall@1",
                    _cell(row),
                    f"{row.n:,}",
                    row.seed,
                ]
            )
    if not lines:
        return paragraph("There are no results on the test split to summarise.")
    header = ("target", "model", "metric", "value", "n", "seed")
    note = (
        "Test split. n counts the records with a label; for a group of labels, the smallest and "
        "the largest count. A group's value is the mean over its labels. ± is the sample standard "
        "deviation over seeds."
    )
    return join(table(header, lines), paragraph(note, "quiet"))


def retrieval_section(run: Run) -> Html:
    """Recall@k and median rank in both directions."""
    rows = _shown(run, retrieval=True)
    if not rows:
        return paragraph("No retrieval results: evaluate/metrics.csv is absent or holds none.")
    metrics = _unique(row.metric.partition("/")[2] for row in rows)
    lines = []
    for direction in _unique(row.metric.partition("/")[0] for row in rows):
        here = [row for row in rows if row.metric.startswith(f"{direction}/")]
        for model, target, seed in _unique((row.model, row.target, row.seed) for row in here):
            cells = {
                row.metric.partition("/")[2]: row
                for row in here
                if (row.model, row.target, row.seed) == (model, target, seed)
            }
            found = [_cell(cells[name]) if name in cells else "" for name in metrics]
            n = _counts(cells.values())
            lines.append([_direction(direction), model, target, seed, n, *found])
    header = ("query to gallery", "model", "target", "seed", "n", *map(_name, metrics))
    n = rows[0].n
    note = (
        "Each query is ranked against all n embeddings of the other modality by cosine similarity; "
        "rank 1 is the best and a tie counts against the model. "
        f"By chance recall@k is k / n, so recall@1 is {1 / max(n, 1):.2g} for n = {n:,}. The "
        "intervals resample the queries and keep the gallery fixed."
    )
    return join(table(header, lines), paragraph(note, "quiet"))


def result_text(value: float, low: float, high: float, metric: str = "") -> str:
    """'0.731 [0.702, 0.758]'; 'undefined' for NaN."""
    if math.isnan(value):
        return "undefined"
    # Ranks are whole or half numbers.
    value, low, high = (
        f"{part:g}" if metric.endswith("median_rank") else _number(part)
        for part in (value, low, high)
    )
    return value if low == "nan" else f"{value} [{low}, {high}]"


def _group_table(rows: Sequence[Row], units: dict[str, str]) -> Html:
    """Rows per seed and their mean; for several labels the means, with the seeds folded away."""
    metrics = _metrics_of(rows)
    header = ("label", "model", "seed", "n", *map(_name, metrics))
    every, bold, means = [], [], []
    for target, model in _unique((row.target, row.model) for row in rows):
        here = [row for row in rows if (row.target, row.model) == (target, model)]
        label = f"{target} [{units[target]}]" if units.get(target) else target
        seeds = _unique(row.seed for row in here)
        for seed in seeds:
            cells = {row.metric: row for row in here if row.seed == seed}
            found = [_cell(cells[name]) if name in cells else "" for name in metrics]
            every.append([label, model, seed, _counts(cells.values()), *found])
        if len(seeds) > 1:
            values = [[row.value for row in here if row.metric == name] for name in metrics]
            bold.append(len(every))
            every.append([label, model, "mean ± sd", _counts(here), *map(_mean_sd, values)])
            means.append(every[-1])
    if means and len(_unique(row.target for row in rows)) > 1:
        rest = table(header, every, bold=bold)
        return join(table(header, means), details(f"Every seed ({len(every)} rows)", rest))
    return table(header, every, bold=bold)


def _summary_line(title: str, model: str, metric: str, rows: Sequence[Row]) -> list[object]:
    targets = _unique(row.target for row in rows)
    seeds = _unique(row.seed for row in rows)
    n = _counts(rows)
    name = _name(metric)
    if len(rows) == 1:
        return [title, model, name, _cell(rows[0]), n, seeds[0]]
    defined = [row for row in rows if not math.isnan(row.value)]
    per_seed = [[row.value for row in defined if row.seed == seed] for seed in seeds]
    means = [statistics.fmean(values) for values in per_seed if values]
    if len(targets) > 1:
        name += f", mean of {len(_unique(row.target for row in defined))} labels"
        if missing := len(targets) - len(_unique(row.target for row in defined)):
            name += f" ({missing} undefined)"
    seed = f"{len(seeds)} seeds" if len(seeds) > 1 else seeds[0]
    return [title, model, name, _mean_sd(means), n, seed]


def _grouped(run: Run, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Diseases alone, other labels by group, in order of appearance."""
    groups = group_of(run)
    tables: dict[str, list[Row]] = {}
    for row in rows:
        group = groups.get(row.target, row.target)
        tables.setdefault(row.target if group == "disease" else group, []).append(row)
    return tables


def _shown(run: Run, *, retrieval: bool) -> list[Row]:
    """Rows of the test split. A result that occurs again gets a number after its model's name."""
    rows, seen = [], collections.Counter()
    for row in run.metrics:
        if row.split == "test" and _is_retrieval(row.metric) == retrieval:
            key = (row.model, row.target, row.metric, row.seed)
            seen[key] += 1
            model = f"{row.model} ({seen[key]})" if seen[key] > 1 else row.model
            rows.append(dataclasses.replace(row, model=model))
    return rows


def _is_retrieval(metric: str) -> bool:
    return "recall@" in metric or metric.endswith("median_rank")


def _metrics_of(rows: Sequence[Row]) -> list[str]:
    """Metrics of some rows, the main one first."""
    found = _unique(row.metric for row in rows)
    order = dict.fromkeys(("macro_auroc", *BINARY, *REGRESSION))
    return [name for name in order if name in found] + [x for x in found if x not in order]


def _unique(values: Iterable) -> list:
    return list(dict.fromkeys(values))


def _direction(metric: str) -> str:
    query, _, gallery = metric.partition("/")[0].partition("_to_")
    return f"{query.upper()} to {gallery.upper()}"


def _name(metric: str) -> str:
    return NAMES.get(metric, metric)


def _cell(row: Row) -> str:
    return result_text(row.value, row.low, row.high, row.metric)


def _mean_sd(values: Sequence[float]) -> str:
    defined = [value for value in values if not math.isnan(value)]
    if not defined:
        return "undefined"
    mean = statistics.fmean(defined)
    if len(defined) == 1:
        return _number(mean)
    return f"{_number(mean)} ± {statistics.stdev(defined):.{_decimals(mean)}f}"


def _counts(rows: Iterable[Row]) -> str:
    """'1,024', or '980 to 1,024' where the rows differ."""
    counts = sorted({row.n for row in rows})
    return " to ".join(f"{n:,}" for n in dict.fromkeys((counts[0], counts[-1])))


def _number(value: float) -> str:
    return f"{value:.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    """Three decimals, and fewer for large numbers, so that about four digits are shown."""
    return 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
