"""Two methods on the same subjects: the difference of a metric, its interval and p-value.

A method is several models, one per training seed, and may predict several labels; its metric is the
mean over both. The subjects are resampled and the models held fixed, so the p-value asks whether
the difference would hold for other subjects, not for other training runs.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped

from mmcl_jax.statistics.bootstrap import resample_counts
from mmcl_jax.statistics.metrics import binary_statistics, regression_statistics

# Counts of each record in each of R resamples in, a metric of each resample out.
Statistic = Callable[[Float[np.ndarray, "R N"]], Float[np.ndarray, " R"]]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference of two models on the same records, its 95 % interval and two-sided p-value.

    `value` is NaN where the difference is undefined, and `reason` says why.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    reason: str = ""


def paired_difference(
    first: Statistic,
    second: Statistic,
    n: int,
    subject: Shaped[np.ndarray, " N"] | None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """`first` minus `second` of two models on the same `n` records, resampled together.

    The p-value is two-sided: twice the smaller share of resamples on either side of 0, of which
    neither is less than 1 / (resamples + 1). It belongs to the percentile interval: below 0.05
    where that interval excludes 0. The models are held fixed.

    Args:
        subject, resamples, seed: see `bootstrap.bootstrap`.
    """
    whole = np.ones((1, n))
    value = float(first(whole)[0] - second(whole)[0])
    if not np.isfinite(value):
        return Difference(np.nan, np.nan, np.nan, np.nan, n, "a metric is undefined")
    blocks = [
        first(counts) - second(counts)
        for counts in resample_counts(n, resamples=resamples, seed=seed, subject=subject)
    ]
    drawn = np.concatenate([np.empty(0), *blocks])
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        return Difference(value, np.nan, np.nan, np.nan, n, "no resample defines the metric")
    low, high = np.percentile(drawn, (2.5, 97.5))
    least = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (int(least) + 1) / (drawn.size + 1))
    return Difference(value, float(low), float(high), p, n)


def mean_statistic(
    metric: str,
    label: Float[np.ndarray, "N L"],
    prediction: Float[np.ndarray, "S N L"],
) -> Statistic:
    """The mean of `metric` over L labels and S models, as a function of counts of the N records.

    Args:
        metric: `auroc`, `ap` (labels 0 or 1, probabilities) or `r`.
        label: NaN where missing, which leaves the record out for that label.

    Raises:
        ValueError: another metric.
    """
    makers = {"auroc": _auroc_statistic, "ap": _ap_statistic, "r": _r_statistic}
    if metric not in makers:
        raise ValueError(f"metric is {metric!r}, expected one of {', '.join(makers)}")
    parts = []
    for column in range(label.shape[1]):
        known = ~np.isnan(label[:, column])
        truth, guesses = label[known, column], prediction[:, known, column]
        parts.append((known, [makers[metric](truth, guess) for guess in guesses]))

    def statistic(counts: Float[np.ndarray, "R N"]) -> Float[np.ndarray, " R"]:
        values = []
        for known, functions in parts:
            weight = counts if known.all() else counts[:, known]
            values += [function(weight) for function in functions]
        return np.mean(values, axis=0)

    return statistic


def holm(p: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """p-values adjusted for K comparisons (Holm 1979); NaN stays NaN and is not counted."""
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted


def _auroc_statistic(
    label: Float[np.ndarray, " N"], probability: Float[np.ndarray, " N"]
) -> Statistic:
    statistics = binary_statistics(label, probability)
    return lambda counts: statistics(counts)["auroc"]


def _r_statistic(label: Float[np.ndarray, " N"], prediction: Float[np.ndarray, " N"]) -> Statistic:
    statistics = regression_statistics(label, prediction)
    return lambda counts: statistics(counts)["r"]


def _ap_statistic(
    label: Float[np.ndarray, " N"], probability: Float[np.ndarray, " N"]
) -> Statistic:
    """Average precision alone: only the thresholds at positives count, which are few."""
    order = np.argsort(-probability, kind="stable")
    positive = label[order]
    # A step ends at the last record that has the probability of some positive.
    last = np.searchsorted(-probability[order], -np.unique(probability[label == 1])[::-1], "right")
    start = np.concatenate([[0], last])[:-1]

    def statistic(counts: Float[np.ndarray, "R N"]) -> Float[np.ndarray, " R"]:
        if not len(last):
            return np.full(len(counts), np.nan)
        weight = counts[:, order[: last[-1]]]
        every = np.add.reduceat(weight, start, axis=1)
        true = np.add.reduceat(weight * positive[None, : last[-1]], start, axis=1)
        precision = np.cumsum(true, axis=1) / np.maximum(np.cumsum(every, axis=1), 1)
        positives = true.sum(axis=1)
        mean = np.full(len(counts), np.nan)
        return np.divide((true * precision).sum(axis=1), positives, out=mean, where=positives > 0)

    return statistic
