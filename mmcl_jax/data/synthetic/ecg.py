"""10 s of 12-lead ECG in mV at 500 Hz: a moving dipole seen by the electrodes, plus their noise.

Limb leads follow Einthoven and Goldberger exactly (I + III = II, aVR = -(I + II) / 2 and so on),
the noise included, because it arises at the electrodes. Leads are seen through Dower's matrix
(Dower et al. 1980), which every subject's build and electrode placement change a little.
"""

import numpy as np
from jaxtyping import Float

from mmcl_jax.data.synthetic.electrophysiology import Electrophysiology, Waves

RATE = 500  # samples per second
SAMPLES = 5000

# I, II, V1-V6 from x (left), y (feet), z (back).
_DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)

# I, II, III, aVR, aVL, aVF from I and II; the chest leads stay as they are.
_LIMB = np.array([[1, 0], [0, 1], [-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1]])

# I, II and V1-V6 from the potentials of RA, LA, LL and the six chest electrodes.
_ELECTRODES = np.zeros((8, 9))
_ELECTRODES[0, :2] = -1, 1
_ELECTRODES[1, [0, 2]] = -1, 1
_ELECTRODES[2:, :3] = -1 / 3
_ELECTRODES[2:, 3:] = np.eye(6)

_MARGIN = 600  # samples before and after the recording, for beats that reach into it
_TIME = np.arange(SAMPLES) / RATE


def simulate(rng: np.random.Generator, heart: Electrophysiology) -> Float[np.ndarray, "12 5000"]:
    """One recording in mV, float32, leads I II III aVR aVL aVF V1-V6."""
    dipole = _dipole(rng, heart)
    view = _DOWER + 0.05 * np.abs(_DOWER).max(1, keepdims=True) * rng.standard_normal((8, 3))
    view[2:] *= np.exp(0.07 * rng.standard_normal((6, 1)))
    leads = view.astype(np.float32) @ dipole
    leads += _ELECTRODES.astype(np.float32) @ _noise(rng)
    return np.concatenate([_LIMB.astype(np.float32) @ leads[:2], leads[2:]])


def beat_times(rng: np.random.Generator, heart: Electrophysiology) -> Float[np.ndarray, " beats"]:
    """Times of the QRS complexes in s, from before the recording until after its end."""
    mean = 60 / heart.heart_rate
    count = int((SAMPLES / RATE + 2.5) / mean * 1.3) + 3
    if heart.fibrillation:
        shape = (mean / heart.rr_deviation) ** 2
        intervals = np.maximum(rng.gamma(shape, mean / shape, count), 0.33)
    else:
        # Half of the variation follows breathing.
        phase = 2 * np.pi * (rng.uniform(0.18, 0.3) * mean * np.arange(count) + rng.random())
        intervals = mean + heart.rr_deviation * (np.sin(phase) + 0.7 * rng.standard_normal(count))
        intervals = np.maximum(intervals, 0.6 * mean)
    times = np.cumsum(intervals) - intervals[0] - 1.1 + mean * rng.random()
    return times[times < SAMPLES / RATE + 0.9]


def _dipole(rng: np.random.Generator, heart: Electrophysiology) -> Float[np.ndarray, "3 5000"]:
    """The dipole in mV over the recording."""
    times = beat_times(rng, heart)
    dipole = np.zeros((3, SAMPLES + 2 * _MARGIN), np.float32)
    depolarisation = _trace(heart.depolarisation, -0.12, 0.16)
    repolarisation = _trace(heart.repolarisation, -0.26, 0.14)
    atrial = _trace(heart.p, 0, 0.16)
    strength = 1 + 0.02 * rng.standard_normal(len(times))
    intervals = np.diff(times, prepend=times[0] - 60 / heart.heart_rate)
    for time, interval, scale in zip(times, intervals, strength, strict=True):
        _add(dipole, depolarisation * np.float32(scale), time - 0.12)
        # The QT interval follows the preceding RR interval; T peaks two deviations before its end.
        end = time - heart.qrs / 2 + heart.qtc * np.cbrt(np.clip(interval, 0.4, 1.4))
        peak = end - 2 * heart.repolarisation.fall[-1]
        _add(dipole, repolarisation * np.float32(scale), peak - 0.26)
        if not heart.fibrillation:
            _add(dipole, atrial, time - heart.qrs / 2 - heart.pr)
    dipole = dipole[:, _MARGIN : _MARGIN + SAMPLES]
    if heart.fibrillation:
        dipole = dipole + _fibrillation(rng, heart.fibrillation_wave)

    # Breathing moves the heart: amplitudes change by some per cent and the axis swings.
    breath = np.sin(2 * np.pi * (rng.uniform(0.18, 0.3) * _TIME + rng.random())).astype(np.float32)
    swing = 0.04 * rng.standard_normal((3, 3)) + 0.03 * np.eye(3)
    return dipole + breath[None, :] * (swing.astype(np.float32) @ dipole)


def _trace(waves: Waves, start: float, stop: float) -> Float[np.ndarray, "3 samples"]:
    """A sum of waves from `start` to `stop` seconds around their anchor."""
    time = np.arange(round(start * RATE), round(stop * RATE)) / RATE
    distance = time[None, :] - waves.centre[:, None]
    width = np.where(distance < 0, waves.rise[:, None], waves.fall[:, None])
    return (waves.vector.T @ np.exp(-0.5 * (distance / width) ** 2)).astype(np.float32)


def _add(dipole: np.ndarray, trace: np.ndarray, start: float) -> None:
    """Adds a trace that begins at `start` seconds, if it lies within the margins."""
    first = round(start * RATE) + _MARGIN
    last = first + trace.shape[1]
    if first >= 0 and last <= dipole.shape[1]:
        dipole[:, first:last] += trace


def _fibrillation(rng: np.random.Generator, amplitude: float) -> Float[np.ndarray, "3 5000"]:
    """f waves: 5 to 7.5 Hz, drifting in rate and size, best seen in V1."""
    drift = 0.8 * np.sin(2 * np.pi * (0.4 * _TIME + rng.random()))
    phase = 2 * np.pi * (rng.uniform(5, 7.5) * _TIME + rng.random()) + drift
    size = amplitude * (1 + 0.35 * np.sin(2 * np.pi * (0.27 * _TIME + rng.random())))
    wave = size * (np.sin(phase) + 0.35 * np.sin(2 * phase + 0.6))
    return (np.array([[-0.35], [0.45], [-0.7]]) * wave[None, :]).astype(np.float32)


def _noise(rng: np.random.Generator) -> Float[np.ndarray, "9 5000"]:
    """Potentials in mV that do not come from the heart: muscle, drifting baseline and mains."""
    muscle = rng.standard_normal((9, SAMPLES), dtype=np.float32)
    muscle *= (0.008 * np.exp(0.4 * rng.standard_normal((9, 1)))).astype(np.float32)
    frequency = np.array([rng.uniform(0.04, 0.12), rng.uniform(0.15, 0.35), 50.0])
    phase = 2 * np.pi * frequency[:, None] * _TIME[None, :]
    waves = np.concatenate([np.sin(phase), np.cos(phase)]).astype(np.float32)
    size = np.array([0.08, 0.04, 0.003]) * np.exp(0.4 * rng.standard_normal(3))
    return muscle + (rng.standard_normal((9, 6)) * np.tile(size, 2)).astype(np.float32) @ waves
