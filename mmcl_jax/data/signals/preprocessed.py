"""ECGs and frames that come preprocessed as the paper says: checked, and not preprocessed again."""

from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from mmcl_jax.data.images.cmr import CmrSettings
from mmcl_jax.data.signals.ecg import EcgSettings
from mmcl_jax.data.signals.leads import GROUPS, LEADS


def accept(
    signal: Float[np.ndarray, "12 T"], settings: EcgSettings
) -> tuple[Float32[np.ndarray, "12 T"], tuple[str, ...]]:
    """The ECG as it is, and remarks on it.

    Raises:
        ValueError: another shape, missing samples, or a lead group without mean 0 and variance 1.
    """
    expected = (len(LEADS), settings.samples)
    if signal.shape != expected:
        raise ValueError(f"shape is {signal.shape}, expected {expected}: 12 leads, 10 s, 500 Hz")
    if not np.isfinite(signal).all():
        raise ValueError("samples are missing; a preprocessed ECG has none")
    flags = []
    for start, stop in GROUPS:
        group, names = signal[start:stop], ", ".join(LEADS[start:stop])
        mean, deviation = float(group.mean()), float(group.std())
        if deviation < _FLAT:
            flags.append(f"flat: {names}")
        elif abs(mean) > _TOLERANCE or abs(deviation - 1) > _TOLERANCE:
            raise ValueError(
                f"not preprocessed: the leads {names} have mean {mean:.3g} and standard deviation "
                f"{deviation:.3g} together, expected 0 and 1"
            )
    if len(flags) == len(GROUPS):
        raise ValueError("every lead is flat")
    return signal.astype(np.float32), tuple(flags)


def is_normalised(signal: Float[np.ndarray, "12 T"]) -> bool:
    """Whether the lead groups have mean 0 and one variance, as those of no measured ECG have."""
    groups = [signal[start:stop] for start, stop in GROUPS]
    scale = groups[0].std()
    return bool(scale > 0) and all(
        abs(group.mean()) < _EXACT * scale and abs(group.std() - scale) < _EXACT * scale
        for group in groups
    )


def accept_frames(
    frames: Float[np.ndarray, "3 H W"], settings: CmrSettings
) -> UInt8[np.ndarray, "H W 3"]:
    """Frames in [0, 1] as an image. Raises ValueError where they are of another size or range."""
    if frames.shape[1:] != (settings.size, settings.size):
        raise ValueError(
            f"frames are {frames.shape[1]} x {frames.shape[2]} pixels, preprocessed ones have "
            f"{settings.size} x {settings.size}"
        )
    low, high = frames.min(), frames.max()
    if not (0 <= low < high <= 1):
        raise ValueError(f"frames hold {low:.4g} to {high:.4g}, preprocessed ones are in [0, 1]")
    return np.rint(255 * frames.transpose(1, 2, 0)).astype(np.uint8)


def settings_with(settings: EcgSettings | CmrSettings) -> dict[str, Any]:
    """Settings of a cohort whose recordings came preprocessed; they say so."""
    return {**settings.as_dict(), "preprocessed": "before the preparation"}


_TOLERANCE = 0.02  # float16 and a cut of the record move both a little
_EXACT = 1e-3
_FLAT = 1e-3
