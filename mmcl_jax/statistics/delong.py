"""Areas under the ROC curves of several models on the same records, with their covariance.

DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988): each record is given its placement, the
share of the other class that it is ranked above (a tie counts one half). An area is the mean
placement, and the placements' covariance is that of the areas. Placements are taken from mid-ranks
(Sun and Xu, IEEE Signal Processing Letters 21, 2014), in O(n log n).

Records must be independent: one per subject.
"""

import dataclasses

import numpy as np
import scipy.stats
from jaxtyping import Float

from mmcl_jax.statistics.comparison import Difference


@dataclasses.dataclass(frozen=True)
class Areas:
    """AUROC of M models on one sample, the covariance of the estimates and the class sizes."""

    auroc: Float[np.ndarray, " M"]
    covariance: Float[np.ndarray, "M M"]
    positives: int
    negatives: int


def areas(label: Float[np.ndarray, " N"], score: Float[np.ndarray, "M N"]) -> Areas:
    """AUROC of each row of `score` and the covariance of these areas.

    Args:
        label: 0 or 1.
        score: of M models for the same N records; higher means label 1.

    Raises:
        ValueError: other labels, scores that are not finite, or fewer than two records of a class,
            whose variance is unknown.
    """
    label, score = np.asarray(label, np.float64), np.asarray(score, np.float64)
    if score.ndim != 2 or score.shape[1:] != label.shape:
        raise ValueError(f"scores must be [M, {len(label)}], found {score.shape}")
    if not np.isin(label, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, found {sorted(set(label.tolist()))[:5]}")
    if bad := int((~np.isfinite(score)).any(axis=0).sum()):
        raise ValueError(f"{bad} of {len(label)} records have a score that is not finite")
    positive, negative = score[:, label == 1], score[:, label == 0]
    m, n = positive.shape[1], negative.shape[1]
    if min(m, n) < 2:
        raise ValueError(f"the variance needs two records of each class, found {m} and {n}")
    both = scipy.stats.rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    placement_of_positive = (both[:, :m] - scipy.stats.rankdata(positive, axis=1)) / n
    placement_of_negative = 1 - (both[:, m:] - scipy.stats.rankdata(negative, axis=1)) / m
    covariance = np.cov(placement_of_positive) / m + np.cov(placement_of_negative) / n
    return Areas(
        auroc=placement_of_positive.mean(axis=1),
        covariance=np.reshape(covariance, (len(score), len(score))),
        positives=m,
        negatives=n,
    )


def compare(found: Areas, weights: Float[np.ndarray, " M"]) -> Difference:
    """The contrast `weights` of the areas, with its 95 % interval and two-sided p-value.

    (1, -1) compares two models; (1/2, 1/2, -1/2, -1/2) the mean areas of two seeds each. The models
    are held fixed: variation between training seeds is not in the interval.
    """
    weights = np.asarray(weights, np.float64)
    value = float(weights @ found.auroc)
    deviation = float(np.sqrt(max(weights @ found.covariance @ weights, 0)))
    if deviation > 1e-12:
        p = float(2 * scipy.stats.norm.sf(abs(value) / deviation))
    else:
        # Equal rankings; or models that both separate the classes without an error.
        p = 1.0 if abs(value) < 1e-12 else 0.0
    half = float(scipy.stats.norm.ppf(0.975)) * deviation
    n = found.positives + found.negatives
    return Difference(value, value - half, value + half, p, n)
