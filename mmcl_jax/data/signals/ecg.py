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
from jaxtyping import Float, Float32
from scipy.signal import resample_poly

from mmcl_jax.data.signals.baseline import baseline
from mmcl_jax.data.signals.ecg_quality import check_quality
from mmcl_jax.data.signals.leads import GROUPS, LEADS, arrange, lead_name
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
    path: str | os.PathLike,
    recording: Recording,
    settings: EcgSettings = DEFAULT,
    shortest: float | None = None,
) -> tuple[Float32[np.ndarray, "12 T"], tuple[str, ...]]:
    """Preprocessed ECG of a file, and remarks on it: `standardise`, then `preprocess_and_pad`.

    Args:
        path: named in the refusal, not read.
        recording: at least `shortest` seconds long.
        shortest: 10 s unless given.

    Raises:
        RefusedRecord: see `standardise`.
    """
    signal, flags = standardise(path, recording, settings, shortest)
    return preprocess_and_pad(signal, settings), flags


def standardise(
    path: str | os.PathLike,
    recording: Recording,
    settings: EcgSettings = DEFAULT,
    shortest: float | None = None,
) -> tuple[Float[np.ndarray, "12 t"], tuple[str, ...]]:
    """The 12 leads in order, in mV, 10 s at 500 Hz, and remarks on them.

    The signal is shorter where the recording is, which `shortest` has to allow.

    Raises:
        RefusedRecord: a lead or unit is missing, the recording is too short, more than 10 % of it
            is missing, or no lead shows anything.
    """
    seconds = settings.samples / settings.rate
    try:
        signal = to_millivolt(recording.signal, recording.units, recording.names)
        signal, flags = arrange(signal, recording.names)
        signal = first_seconds(signal, recording.rate, seconds, shortest)
        signal, remarks = check_quality(signal)
    except ValueError as error:
        raise RefusedRecord(path, str(error)) from error
    flags += remarks
    if recording.rate != settings.rate:
        flags += (f"resampled from {recording.rate:.10g} Hz",)
        signal = resample(signal, recording.rate, settings.rate)[:, : settings.samples]
    # The clipping takes deflections from 0: a lead with an offset loses its signal.
    if (share := (np.abs(signal) > settings.clip * signal.std()).mean()) > _CLIPPED:
        flags += (f"clipped: {share:.0%} of the samples, some lead may have an offset",)
    if signal.shape[1] < settings.samples:
        flags += (f"padded: {signal.shape[1] / settings.rate:.1f} s of {seconds:g} s",)
    return signal, flags


def preprocess_and_pad(
    signal: Float[np.ndarray, "12 t"], settings: EcgSettings = DEFAULT
) -> Float32[np.ndarray, "12 T"]:
    """`preprocess` for a signal that may be shorter: zeros, the mean of each group, follow it.

    They have no part in the baseline, the mean and the variance.
    """
    absent = max(0, settings.samples - signal.shape[1])
    present = dataclasses.replace(settings, samples=settings.samples - absent)
    return np.pad(preprocess(signal, present), ((0, 0), (0, absent)))


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
    signal: Float[np.ndarray, "L T"], rate: float, seconds: float, shortest: float | None = None
) -> Float[np.ndarray, "L t"]:
    """The first `seconds` of a recording, or all of one that is at least `shortest` seconds long.

    Raises:
        ValueError: it is shorter, or the rate is none that an ECG has.
    """
    lowest, highest = _RATES
    if not lowest <= rate <= highest:
        raise ValueError(
            f"sampling rate is {rate:g} Hz, expected {lowest:g} to {highest:g} Hz for an ECG"
        )
    # The tolerance keeps 10 s at a rate such as 499.9999 Hz from asking for one sample more.
    length, least = (
        math.ceil(time * rate - 1e-6 * rate) for time in (seconds, shortest or seconds)
    )
    if signal.shape[1] < least:
        raise ValueError(
            f"{signal.shape[1] / rate:.6g} s long, expected at least {shortest or seconds:g} s"
        )
    return signal[:, :length]


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
_CLIPPED = 0.10  # share of samples; the steep waves of an ECG are up to 0.03
_RATES = (50.0, 100_000.0)  # Hz


def _normalise_groups(
    signal: Float[np.ndarray, "12 T"], settings: EcgSettings
) -> Float[np.ndarray, "12 T"]:
    normalised = np.empty_like(signal)
    for start, stop in settings.groups:
        group = signal[start:stop]
        scale = np.sqrt(group.var() + settings.variance_floor)
        normalised[start:stop] = (group - group.mean()) / scale
    return normalised
