"""p-values between our method and the others on the same test subjects.

AUROC: DeLong's test of the mean areas over seeds. Average precision and r: paired bootstrap over
subjects of the means over seeds (and over the phenotypes of a group). Where a subject has several
test records, which DeLong's test does not allow, the bootstrap takes its place.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mmcl_jax.html_page import Html, details, heading, join, paragraph, table
from mmcl_jax.report.paper_layout import DISEASE_NAMES, GROUPS, TABLES, in_order, method_name
from mmcl_jax.report.paper_results import (
    GROUP_MEMBERS,
    Key,
    Results,
    Scores,
    common,
    shared_records,
)
from mmcl_jax.report.run_results import NAMES
from mmcl_jax.statistics import delong
from mmcl_jax.statistics.comparison import Difference, holm, mean_statistic, paired_difference

EXPLANATION = (
    "Ours minus the other method on the same test subjects; positive means that ours is better. "
    "Values are means over training seeds. AUROC is compared by DeLong's test, average precision "
    "and r by the paired bootstrap over subjects; brackets hold 95 % intervals, p is two-sided. "
    "The trained models are held fixed: an interval says what other subjects would change, not "
    "what other training runs would. p (Holm) is adjusted for all comparisons of one metric and "
    "share of labels. The bootstrap cannot give a p below 2 / (resamples + 1)."
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Ours against another method in one metric of one target."""

    fraction: float
    target: str
    metric: str
    ours: str
    other: str
    values: tuple[float, float]
    difference: Difference
    seeds: tuple[int, int]
    test: str
    p_holm: float = float("nan")


def compare_all(results: Results, resamples: int) -> list[Comparison]:
    """Every method against ours of the same modality, for each share of labels."""
    found: list[Comparison] = []
    for fraction in results.fractions():
        for ours, other in _pairs(results, fraction):
            found += _of_pair(results, ours, other, resamples)
    adjusted = list(found)
    for family in {(entry.fraction, entry.metric) for entry in found}:
        members = [i for i, entry in enumerate(found) if (entry.fraction, entry.metric) == family]
        p_values = holm(np.array([found[i].difference.p for i in members]))
        for i, p in zip(members, p_values, strict=True):
            adjusted[i] = dataclasses.replace(found[i], p_holm=float(p))
    return adjusted


def section(found: Sequence[Comparison]) -> Html:
    """A table per share of labels, those after the first folded away."""
    if not found:
        return paragraph(
            "Nothing to compare: the folder holds no run of mmcl (or cmr_mmcl) and of another "
            "method that predict the same target."
        )
    parts = [paragraph(EXPLANATION)]
    for fraction in dict.fromkeys(entry.fraction for entry in found):
        here = [entry for entry in found if entry.fraction == fraction]
        for ours in dict.fromkeys(entry.ours for entry in here):
            rows = [_cells(entry) for entry in _by_question(here, ours)]
            title = f"{method_name(ours)} against others, {100 * fraction:g} % of the labels"
            grid = table(HEADER, rows, numbers=range(3, 8))
            # Shares after the first are folded away.
            first = fraction == found[0].fraction
            parts.append(join(heading(title), grid) if first else details(title, grid))
    return join(*parts)


HEADER = (
    *("target", "metric", "other", "ours", "other", "difference", "p", "p (Holm)", "test"),
    *("n", "seeds"),
)


def _by_question(found: Sequence[Comparison], ours: str) -> list[Comparison]:
    questions = dict.fromkeys((entry.metric, entry.target) for entry in found)
    return [
        entry
        for question in questions
        for entry in found
        if (entry.metric, entry.target) == question and entry.ours == ours
    ]


def to_csv(found: Sequence[Comparison]) -> list[list]:
    header = [
        *("label share", "target", "metric", "ours", "other", "value ours", "value other"),
        *("difference", "low", "high", "p", "p Holm", "test", "n", "seeds ours", "seeds other"),
        "reason undefined",
    ]
    rows = []
    for entry in found:
        d = entry.difference
        numbers = (*entry.values, d.value, d.low, d.high, d.p, entry.p_holm)
        cells = [repr(float(x)) if np.isfinite(x) else "" for x in numbers]
        names = [f"{entry.fraction:g}", entry.target, entry.metric, entry.ours, entry.other]
        rows.append([*names, *cells, entry.test, d.n, *entry.seeds, d.reason])
    return [header, *rows]


def _pairs(results: Results, fraction: float) -> Iterator[tuple[Key, Key]]:
    """Each method that shares a table with ours, and methods the paper does not know, with ours."""
    there = {key.method: key for key in results.fine_tuned if key.fraction == fraction}
    known = {row.method for layout in TABLES for row in layout.rows}
    for ours in dict.fromkeys(layout.ours for layout in TABLES):
        others = {r.method for layout in TABLES if layout.ours == ours for r in layout.rows}
        if ours == TABLES[0].ours:
            others |= set(there) - known
        for other in in_order(others - {ours}):
            if ours in there and other in there:
                yield there[ours], there[other]


def _of_pair(results: Results, ours: Key, other: Key, resamples: int) -> Iterator[Comparison]:
    questions = [(name, (name,), metric) for metric in ("auroc", "ap") for name in DISEASE_NAMES]
    questions += [(group, GROUP_MEMBERS[group], "r") for group in GROUPS]
    for target, labels, metric in questions:
        pairs = [(results.scores(ours, x), results.scores(other, x)) for x in labels]
        pairs = [shared_records(pair) for pair in pairs if None not in pair]
        if not pairs:
            continue
        difference, values, test = _test(pairs, metric, resamples)
        yield Comparison(
            fraction=ours.fraction,
            target=target,
            metric=metric,
            ours=ours.method,
            other=other.method,
            values=values,
            difference=difference,
            seeds=tuple(len(common(pair[side].seeds for pair in pairs)) for side in (0, 1)),
            test=test,
        )


def _test(
    pairs: Sequence[Sequence[Scores]], metric: str, resamples: int
) -> tuple[Difference, tuple[float, float], str]:
    """The difference of ours and the other, both values, and the name of the test."""
    ours, other = pairs[0]
    alone = len(np.unique(ours.subject)) == len(ours.subject)
    if metric == "auroc" and alone:
        sizes = [len(scores.prediction) for scores in (ours, other)]
        weights = np.concatenate(
            [np.full(sizes[0], 1 / sizes[0]), np.full(sizes[1], -1 / sizes[1])]
        )
        try:
            found = delong.areas(ours.truth, np.concatenate([ours.prediction, other.prediction]))
        except ValueError as error:
            nan = float("nan")
            return Difference(nan, nan, nan, nan, len(ours.truth), str(error)), (nan, nan), "DeLong"
        means = found.auroc[: sizes[0]].mean(), found.auroc[sizes[0] :].mean()
        return delong.compare(found, weights), tuple(map(float, means)), "DeLong"
    record, truth, predictions = _table(pairs)
    statistics = [mean_statistic(metric, truth, prediction) for prediction in predictions]
    n = len(record)
    subject = _subjects(pairs, record)
    difference = paired_difference(*statistics, n, subject, resamples=resamples)
    whole = np.ones((1, n))
    values = tuple(float(statistic(whole)[0]) for statistic in statistics)
    return difference, values, "paired bootstrap"


def _table(pairs):
    """Records of any label, truth [N, L] with NaN where missing, predictions [S, N, L] of both."""
    record = np.unique(np.concatenate([ours.record for ours, _ in pairs]))
    truth = np.full((len(record), len(pairs)), np.nan)
    seeds = [common(pair[side].seeds for pair in pairs) for side in (0, 1)]
    predictions = [np.zeros((len(members), *truth.shape)) for members in seeds]
    for column, pair in enumerate(pairs):
        rows = np.searchsorted(record, pair[0].record)
        truth[rows, column] = pair[0].truth
        for scores, members, values in zip(pair, seeds, predictions, strict=True):
            chosen = [scores.seeds.index(seed) for seed in members]
            values[:, rows, column] = scores.prediction[chosen]
    return record, truth, predictions


def _subjects(pairs, record):
    subject = {}
    for ours, _ in pairs:
        subject |= dict(zip(ours.record.tolist(), ours.subject.tolist(), strict=True))
    found = np.array([subject[name] for name in record.tolist()])
    # None: one record per subject, which is faster.
    return None if len(np.unique(found)) == len(found) else found


def _cells(entry: Comparison) -> list[str]:
    d = entry.difference
    names = [entry.target, NAMES[entry.metric], method_name(entry.other)]
    seeds = " and ".join(map(str, dict.fromkeys(entry.seeds)))
    if np.isnan(d.value):
        return [*names, "", "", f"undefined: {d.reason}", "", "", entry.test, f"{d.n:,}", seeds]
    values = [f"{value:.3f}" for value in entry.values]
    interval = f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
    p = [_p(value) for value in (d.p, entry.p_holm)]
    return [*names, *values, interval, *p, entry.test, f"{d.n:,}", seeds]


def _p(value: float) -> str:
    return "" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
