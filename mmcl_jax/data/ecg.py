"""From the signals of a file to the 10 s, 12-lead, 500 Hz array that the models read.

Every source goes through `prepare`: leads by name, the first 10 s, a look at the quality,
millivolt, 500 Hz, then `preprocess` (paper IV-A).
"""

import dataclasses
import fractions
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.signal import resample_poly

from mmcl_jax.data.baseline import baseline
from mmcl_jax.data.leads import GROUPS, LEADS, arrange, lead_name
from mmcl_jax.data.subject import RefusedRecord


@dataclasses.dataclass(frozen=True)
class EcgSettings:
    """What decides whether two preprocessed ECGs are comparable.

    Attributes:
        rate: samples per second.
        samples: length; a longer recording is cut after its first `samples`.
        clip: limit in standard deviations of the whole record, before the baseline is removed.
        smoothness, asymmetry, iterations: of the asymmetric least squares baseline.
        groups: rows of the lead groups that share one mean and one variance.
        variance_floor: added to the variance, so that a flat group becomes 0.
    """

    rate: int = 500
    samples: int = 5000
    clip: float = 4.0
    smoothness: float = 1e7
    asymmetry: float = 0.3
    iterations: int = 5
    groups: tuple[tuple[int, int], ...] = GROUPS
    variance_floor: float = 1e-12

    def as_dict(self) -> dict[str, Any]:
        """The settings and the lead order as plain JSON values."""
        settings = dataclasses.asdict(self)
        settings["groups"] = [list(group) for group in self.groups]
        return {"leads": list(LEADS), **settings}


DEFAULT = EcgSettings()


@dataclasses.dataclass
class Recording:
    """The signals of one file as it stores them.

    Attributes:
        signal: one row per signal, in the unit of that row; NaN where nothing was recorded.
        names: name of each signal as the file spells it.
        units: unit of each signal as the file spells it.
        rate: samples per second.
        comments: free text of the file, one line each.
    """

    signal: Float[np.ndarray, "C T"]
    names: tuple[str, ...]
    units: tuple[str, ...]
    rate: float
    comments: tuple[str, ...] = ()


def prepare(
    path: str | os.PathLike, recording: Recording, settings: EcgSettings = DEFAULT
) -> tuple[Float32[np.ndarray, "12 T"], tuple[str, ...]]:
    """Preprocessed ECG of a file, and remarks on it.

    Args:
        path: named in the refusal, not read.
        recording: at least 10 s long.

    Raises:
        RefusedRecord: a lead or unit is missing, the recording is too short, more than 10 % of it
            is missing, or no lead shows anything.
    """
    try:
        signal = to_millivolt(recording.signal, recording.units, recording.names)
        signal, flags = arrange(signal, recording.names)
        signal = first_seconds(signal, recording.rate, settings.samples / settings.rate)
        signal, remarks = check_quality(signal)
    except ValueError as error:
        raise RefusedRecord(path, str(error)) from error
    flags += remarks
    if recording.rate != settings.rate:
        flags += (f"resampled from {recording.rate:g} Hz",)
        signal = resample(signal, recording.rate, settings.rate)[:, : settings.samples]
    return preprocess(signal, settings), flags


def preprocess(
    signal: Float[np.ndarray, "12 T"], settings: EcgSettings = DEFAULT
) -> Float32[np.ndarray, "12 T"]:
    """Clips, removes the baseline and normalises the lead groups. Paper IV-A.

    Args:
        signal: [12, 5000] mV at 500 Hz in the order of `LEADS`; NaN counts as 0.

    Returns:
        [12, 5000], no unit: each lead group has mean 0 and variance 1.

    Raises:
        ValueError: the shape is another one.
    """
    expected = (len(LEADS), settings.samples)
    if signal.shape != expected:
        raise ValueError(f"ecg: shape is {signal.shape}, expected {expected} (leads, samples)")
    signal = np.nan_to_num(np.asarray(signal, dtype=np.float64), nan=0.0)
    limit = settings.clip * signal.std()
    signal = np.clip(signal, -limit, limit)
    signal -= baseline(signal, settings.smoothness, settings.asymmetry, settings.iterations)
    return _normalise_groups(signal, settings).astype(np.float32)


def to_millivolt(
    signal: Float[np.ndarray, "C T"], units: Sequence[str], names: Sequence[str]
) -> Float[np.ndarray, "C T"]:
    """Signals in mV. Raises ValueError naming the signal whose unit is no voltage.

    A signal that is no standard lead (respiration, pressure) keeps its unit: `arrange` drops it.
    """
    factors = np.ones(len(signal))
    for row, (unit, name) in enumerate(zip(units, names, strict=True)):
        if unit.strip().lower() in _MILLIVOLT:
            factors[row] = _MILLIVOLT[unit.strip().lower()]
        elif lead_name(name) is not None:
            raise ValueError(f"lead {name}: unit is {unit!r}, expected mV, uV or V")
    return np.asarray(signal, dtype=np.float64) * factors[:, None]


def first_seconds(
    signal: Float[np.ndarray, "L T"], rate: float, seconds: float
) -> Float[np.ndarray, "L t"]:
    """The first `seconds` of a recording. Raises ValueError when it is shorter."""
    if not 0 < rate < math.inf:
        raise ValueError(f"sampling rate is {rate} Hz, expected a positive number")
    # The tolerance keeps 10 s at a rate such as 499.9999 Hz from asking for one sample more.
    needed = math.ceil(seconds * rate - 1e-6 * rate)
    found = signal.shape[1]
    if found < needed:
        raise ValueError(f"{found / rate:.2f} s long, expected at least {seconds:g} s")
    return signal[:, :needed]


def check_quality(
    signal: Float[np.ndarray, "12 T"],
) -> tuple[Float[np.ndarray, "12 T"], tuple[str, ...]]:
    """Fills what is missing with 0 and describes what is odd.

    Args:
        signal: mV in the order of `LEADS`; NaN or infinite where nothing was recorded.

    Returns:
        The signal without NaN, and remarks on missing samples, flat and saturated leads.

    Raises:
        ValueError: more than 10 % is missing, or every lead is flat.
    """
    missing = ~np.isfinite(signal)
    share = missing.mean()
    if share > _MAX_MISSING:
        raise ValueError(f"{share:.1%} of the samples are missing, at most {_MAX_MISSING:.0%} may")
    signal = np.where(missing, 0.0, signal)

    flat = np.ptp(signal, axis=1) < _FLAT
    if flat.all():
        raise ValueError("every lead is flat")
    flags = []
    if missing.any():
        flags.append(f"missing samples set to 0: {share:.2%}")
    if flat.any():
        flags.append(f"flat: {_join(flat)}")
    saturated = ~flat & (_longest_at_extreme(signal) >= _SATURATED)
    if saturated.any():
        flags.append(f"saturated: {_join(saturated)}")
    return signal, tuple(flags)


def resample(
    signal: Float[np.ndarray, "L T"], rate: float, target: float
) -> Float[np.ndarray, "L t"]:
    """Polyphase resampling with an anti-aliasing filter; t = ceil(T * target / rate).

    The signal is continued beyond its ends along the line between its first and last sample, so
    that an offset does not ring at the ends.
    """
    ratio = fractions.Fraction(target / rate).limit_denominator(2000)
    return resample_poly(signal, ratio.numerator, ratio.denominator, axis=1, padtype="line")


_MILLIVOLT = {"mv": 1.0, "millivolt": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "microvolt": 1e-3}
_MILLIVOLT |= {"nv": 1e-6, "v": 1e3, "volt": 1e3}
_MAX_MISSING = 0.10
_FLAT = 1e-3  # mV peak to peak, below the resolution of any recorder
_SATURATED = 25  # samples in a row at the largest or smallest value


def _normalise_groups(
    signal: Float[np.ndarray, "12 T"], settings: EcgSettings
) -> Float[np.ndarray, "12 T"]:
    normalised = np.empty_like(signal)
    for start, stop in settings.groups:
        group = signal[start:stop]
        scale = np.sqrt(group.var() + settings.variance_floor)
        normalised[start:stop] = (group - group.mean()) / scale
    return normalised


def _longest_at_extreme(signal: Float[np.ndarray, "12 T"]) -> np.ndarray:
    """Length of the longest run at a lead's own maximum or minimum, per lead."""
    longest = np.zeros(len(signal), dtype=int)
    for extreme in (signal.max(axis=1), signal.min(axis=1)):
        for row, held in enumerate(signal == extreme[:, None]):
            edges = np.flatnonzero(np.diff(np.concatenate(([0], held.astype(np.int8), [0]))))
            longest[row] = max(longest[row], (edges[1::2] - edges[::2]).max())
    return longest


def _join(which: Bool[np.ndarray, "12"]) -> str:
    return ", ".join(np.array(LEADS)[which])
