"""What the leads of a cohort look like in mV, before `ecg.preprocess` takes their scale away."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float32

from mmcl_jax.data.signals.leads import LEADS

COLUMNS = ("mean", "sd", "min", "max")


def lead_statistics(signal: Float[np.ndarray, "12 T"]) -> Float32[np.ndarray, "12 4"]:
    """Mean, standard deviation, minimum and maximum of every lead, in the unit of the signal."""
    columns = (signal.mean(axis=1), signal.std(axis=1), signal.min(axis=1), signal.max(axis=1))
    return np.stack(columns, axis=1).astype(np.float32)


class LeadSummary:
    """Sums of the statistics of many recordings, added in the order of the records."""

    def __init__(self):
        self._count = 0
        self._sums = np.zeros((len(LEADS), 4))  # mean, mean squared, variance, peak to peak
        self._low = np.full(len(LEADS), np.inf)
        self._high = np.full(len(LEADS), -np.inf)

    def add(self, statistics: Float[np.ndarray, "12 4"]) -> None:
        mean, deviation, low, high = np.asarray(statistics, np.float64).T
        self._count += 1
        self._sums += np.stack((mean, mean**2, deviation**2, high - low), axis=1)
        self._low = np.minimum(self._low, low)
        self._high = np.maximum(self._high, high)

    def as_dict(self) -> dict[str, Mapping[str, float] | int]:
        """JSON: 'records', their number, and for every lead in mV

        'mean' and 'sd' over all samples of all records, 'min', 'max', and 'peak_to_peak', the mean
        over the records. Empty without a record.
        """
        if not self._count:
            return {}
        mean, squared, variance, height = (self._sums / self._count).T
        # Variance over all samples: within the records, and of their means.
        deviation = np.sqrt(variance + np.maximum(0.0, squared - mean**2))
        columns = {
            "mean": mean,
            "sd": deviation,
            "min": self._low,
            "max": self._high,
            "peak_to_peak": height,
        }
        leads = {
            lead: {name: float(f"{column[row]:.6g}") for name, column in columns.items()}
            for row, lead in enumerate(LEADS)
        }
        return {"records": self._count, **leads}
