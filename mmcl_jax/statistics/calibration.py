"""How far predicted probabilities are the frequencies that are observed.

Both errors are of the probability of label 1, in [0, 1]; 0 is best. A model that was fine-tuned on
a balanced set predicts for a prevalence of one half, so it overstates the risk in a population in
which the disease is rare, however well it ranks people.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Reliability of one model.

    Attributes:
        brier: mean squared difference of probability and label.
        ece: expected calibration error: |mean probability - frequency| of each bin, weighted by
            its share of the records (Naeini et al., AAAI 2015).
        edges: of the bins; equal width from 0 to 1.
        count: records in each bin.
        predicted, observed: mean probability and frequency of label 1 in each bin; NaN where it
            is empty.
        low, high: 95 % Wilson interval of the frequency; NaN where the bin is empty.
    """

    brier: float
    ece: float
    edges: Float[np.ndarray, " B+1"]
    count: Int[np.ndarray, " B"]
    predicted: Float[np.ndarray, " B"]
    observed: Float[np.ndarray, " B"]
    low: Float[np.ndarray, " B"]
    high: Float[np.ndarray, " B"]


def calibration(
    label: Float[np.ndarray, " N"], probability: Float[np.ndarray, " N"], bins: int = 10
) -> Calibration:
    """Reliability in bins of equal width; a bin holds its upper edge, the first one also 0.

    Args:
        label: 0 or 1; NaN where missing, which leaves the record out.
        probability: of label 1, in [0, 1].

    Raises:
        ValueError: no record, another label, a probability outside [0, 1] or not finite.
    """
    label, probability = np.asarray(label, np.float64), np.asarray(probability, np.float64)
    if label.ndim != 1 or label.shape != probability.shape:
        raise ValueError(
            "labels and probabilities must be two equal [N] arrays, found "
            f"{label.shape} and {probability.shape}"
        )
    known = ~np.isnan(label)
    label, probability = label[known], probability[known]
    if not len(label):
        raise ValueError("no record has this label")
    if not np.isin(label, (0, 1)).all():
        raise ValueError(f"labels must be 0, 1 or NaN, found {sorted(set(label.tolist()))[:5]}")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("probabilities must lie in [0, 1]; apply the sigmoid first")
    edges = np.linspace(0, 1, bins + 1)
    number = np.searchsorted(edges[1:-1], probability)
    count = np.bincount(number, minlength=bins)
    positives = np.bincount(number, weights=label, minlength=bins)
    filled = np.where(count, count, np.nan)
    predicted = np.bincount(number, weights=probability, minlength=bins) / filled
    observed = positives / filled
    low, high = _wilson(observed, filled)
    return Calibration(
        brier=float(np.mean((probability - label) ** 2)),
        ece=float(np.nansum(count * np.abs(predicted - observed)) / len(label)),
        edges=edges,
        count=count,
        predicted=predicted,
        observed=observed,
        low=low,
        high=high,
    )


def _wilson(
    share: Float[np.ndarray, " B"], n: Float[np.ndarray, " B"]
) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    z = 1.959963984540054  # 97.5 % quantile of the normal distribution
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.maximum(centre - half, 0), np.minimum(centre + half, 1)
