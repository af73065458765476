"""What is odd about a recording: leads that are missing, flat, saturated, too large or mixed up."""

import itertools

import numpy as np
from jaxtyping import Bool, Float

from mmcl_jax.data.signals.leads import FROM_I_AND_II, LEADS


def check_quality(
    signal: Float[np.ndarray, "12 T"],
) -> tuple[Float[np.ndarray, "12 T"], tuple[str, ...]]:
    """Fills what is missing with 0 and describes what is odd.

    Args:
        signal: mV in the order of `LEADS`; NaN or infinite where nothing was recorded.

    Returns:
        The signal without NaN, and remarks on missing samples, on leads that are flat, saturated,
        implausibly large or copies of each other, and on limb leads that contradict each other.

    Raises:
        ValueError: more than 10 % is missing, values are impossible, or every lead is flat.
    """
    missing = ~np.isfinite(signal)
    share = missing.mean()
    if share > _MAX_MISSING:
        raise ValueError(f"{share:.1%} of the samples are missing, at most {_MAX_MISSING:.0%} may")
    signal = np.where(missing, 0.0, signal)

    if (extreme := np.abs(signal).max()) > _IMPOSSIBLE:
        raise ValueError(f"values of {extreme:.3g} mV, which no electrode has: check unit and gain")
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
    largest = np.abs(signal - np.median(signal, axis=1, keepdims=True)).max(axis=1)
    if (large := largest > _LARGEST).any():
        flags.append(f"amplitude: {largest.max():.1f} mV in {_join(large)}")
    if copies := _copies(signal, ~flat):
        flags.append(f"copies of each other: {copies}")
    if (contradictory := _contradict(signal, ~flat & ~saturated)).any():
        flags.append(f"limb leads disagree: I and II do not give {_join(contradictory)}")
    return signal, tuple(flags)


_MAX_MISSING = 0.10
_FLAT = 1e-3  # mV peak to peak, below the resolution of any recorder
_SATURATED = 25  # samples in a row at the largest or smallest value
_IMPOSSIBLE = 1e6  # mV; a wrong unit makes it thousands, and the preprocessing mends that
_LARGEST = 10.0  # mV from the median of the lead; the QRS of marked hypertrophy reaches 6
# A derived limb lead may differ by this share of itself, and by this many mV (root mean square).
_CONTRADICTION = (0.5, 0.05)


def _longest_at_extreme(signal: Float[np.ndarray, "12 T"]) -> np.ndarray:
    """Length of the longest run at a lead's own maximum or minimum, per lead."""
    longest = np.zeros(len(signal), dtype=int)
    for extreme in (signal.max(axis=1), signal.min(axis=1)):
        for row, held in enumerate(signal == extreme[:, None]):
            edges = np.flatnonzero(np.diff(np.concatenate(([0], held.astype(np.int8), [0]))))
            longest[row] = max(longest[row], (edges[1::2] - edges[::2]).max())
    return longest


def _copies(signal: Float[np.ndarray, "12 T"], of: Bool[np.ndarray, "12"]) -> str:
    """The leads among `of` that hold the same samples, as 'V1 = V2'."""
    groups: dict[bytes, list[str]] = {}
    for name, row in itertools.compress(zip(LEADS, signal, strict=True), of):
        groups.setdefault(row.tobytes(), []).append(name)
    return ", ".join(" = ".join(names) for names in groups.values() if len(names) > 1)


def _contradict(
    signal: Float[np.ndarray, "12 T"], of: Bool[np.ndarray, "12"]
) -> Bool[np.ndarray, "12"]:
    """The leads among `of` that are not what I and II give: mislabelled, or of another unit."""
    found = np.zeros(len(LEADS), bool)
    if of[:2].all():
        share, millivolt = _CONTRADICTION
        for name, (of_i, of_ii) in FROM_I_AND_II.items():
            row = LEADS.index(name)
            # The offset of a lead means nothing: every lead has its own filter.
            difference = (signal[row] - of_i * signal[0] - of_ii * signal[1]).std()
            found[row] = of[row] and difference > max(share * signal[row].std(), millivolt)
    return found


def _join(which: Bool[np.ndarray, "12"]) -> str:
    return ", ".join(np.array(LEADS)[which])
