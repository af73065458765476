"""ECG augmentation (Section IV-C.2): random crop, Fourier surrogate, noise, amplitude rescaling.

The published code of the contrastive baselines flips and masks too; both are off by default.

One recording and one key in, no batch dimension; `views.py` maps it over the batch on the device.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

# Relative noise is x + 0.6 * x * N(0, sigma): 15 % of each sample with sigma 0.25.
_RELATIVE_NOISE_GAIN = 0.6


@dataclasses.dataclass(frozen=True)
class EcgAugmentation:
    """Crop, then surrogate, noise, rescaling, flips and spectral mask, in this order.

    A recording that is not augmented (see `probability`) is still cropped at random.

    Attributes:
        length: samples of the window that the encoder sees (2500 = 5 s at 500 Hz).
        surrogate_probability: rate of the Fourier-transform surrogate.
        surrogate_magnitude: phase noise in turns, 0 to 1; each phase is at most 2 pi times this.
        noise_sigma: standard deviation of the noise, relative to each sample or additive.
        noise: 'relative' (x + 0.6 x n) or 'additive' (x + n), with n ~ N(0, noise_sigma).
        rescale_sigma: the amplitude factor of a recording is drawn from N(1, rescale_sigma).
        time_flip_probability, sign_flip_probability: rates of reversal in time and of negation.
        spectral_mask: share of the frequencies or of the times that a mask hides; 0 for no mask.
        probability: rate at which a recording is augmented at all (0.95 in the contrastive stage).
    """

    length: int = 2500
    surrogate_probability: float = 0.5
    surrogate_magnitude: float = 0.1
    noise_sigma: float = 0.25
    noise: Literal["relative", "additive"] = "relative"
    rescale_sigma: float = 0.5
    time_flip_probability: float = 0.0
    sign_flip_probability: float = 0.0
    spectral_mask: float = 0.0
    probability: float = 1.0

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(
                f"ECG augmentation: length must be at least 1 sample, got {self.length}"
            )
        if self.noise not in ("relative", "additive"):
            raise ValueError(
                f"ECG augmentation: noise must be 'relative' or 'additive', got {self.noise!r}"
            )
        for name in (
            "surrogate_probability",
            "surrogate_magnitude",
            "time_flip_probability",
            "sign_flip_probability",
            "spectral_mask",
            "probability",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"ECG augmentation: {name} must lie in [0, 1], got {getattr(self, name)}"
                )
        for name in ("noise_sigma", "rescale_sigma"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"ECG augmentation: {name} must not be negative, got {getattr(self, name)}"
                )

    def __call__(self, key: Key[Array, ""], ecg: Float[Array, "L T"]) -> Float[Array, "L length"]:
        """A random window, augmented with rate `probability`."""
        (
            crop_key, gate_key, surrogate_key, phase_key, noise_key, rescale_key,
            time_key, sign_key, mask_key,
        ) = jax.random.split(key, 9)  # fmt: skip
        window = random_crop(crop_key, ecg, self.length)

        phases = random_phases(phase_key, self.length, self.surrogate_magnitude)
        surrogate = jax.random.bernoulli(surrogate_key, self.surrogate_probability)
        augmented = jnp.where(surrogate, ft_surrogate(window, phases), window)
        augmented = noise(noise_key, augmented, self.noise_sigma, relative=self.noise == "relative")
        augmented = rescale(rescale_key, augmented, self.rescale_sigma)
        if self.time_flip_probability:
            flip = jax.random.bernoulli(time_key, self.time_flip_probability)
            augmented = jnp.where(flip, augmented[:, ::-1], augmented)
        if self.sign_flip_probability:
            flip = jax.random.bernoulli(sign_key, self.sign_flip_probability)
            augmented = jnp.where(flip, -augmented, augmented)
        if self.spectral_mask:
            augmented = mask_spectrum(mask_key, augmented, self.spectral_mask)

        return jnp.where(jax.random.bernoulli(gate_key, self.probability), augmented, window)

    def clean(
        self, ecg: Float[Array, "L T"], start: int | Int[Array, ""] = 0
    ) -> Float[Array, "L length"]:
        """The window that begins at sample `start`, unchanged.

        Raises:
            ValueError: the window does not fit the recording. A traced `start` cannot be checked.
        """
        _check_length(ecg, self.length)
        last = ecg.shape[-1] - self.length
        if isinstance(start, int) and not 0 <= start <= last:
            raise ValueError(
                f"ECG window of {self.length} samples cannot start at sample {start} of a recording"
                f" of {ecg.shape[-1]}: expected a start between 0 and {last}"
            )
        return jax.lax.dynamic_slice_in_dim(ecg, start, self.length, axis=-1)


def random_crop(
    key: Key[Array, ""], ecg: Float[Array, "L T"], length: int
) -> Float[Array, "L length"]:
    """A window of `length` samples that starts at any of 0 ... T - length - 1.

    The last possible window is never drawn, as in the authors' code. If T = length there is one.

    Raises:
        ValueError: the recording is shorter than the window.
    """
    _check_length(ecg, length)
    start = jax.random.randint(key, (), 0, max(ecg.shape[-1] - length, 1))
    return jax.lax.dynamic_slice_in_dim(ecg, start, length, axis=-1)


def ft_surrogate(ecg: Float[Array, "L T"], phases: Float[Array, " bins"]) -> Float[Array, "L T"]:
    """Fourier-transform surrogate: the coefficients of every lead are rotated by the same phases.

    Args:
        ecg: a recording; any unit.
        phases: radians, one per positive frequency: (T - 1) // 2 of them. The mean and, for even T,
            the highest frequency have real coefficients and stay as they are.
    """
    samples = ecg.shape[-1]
    bins = samples // 2 + 1
    phases = jnp.pad(phases, (1, bins - 1 - phases.shape[0]))
    rotation = jax.lax.complex(jnp.cos(phases), jnp.sin(phases))
    return jnp.fft.irfft(jnp.fft.rfft(ecg) * rotation[None, :], n=samples)


def random_phases(key: Key[Array, ""], samples: int, magnitude: float) -> Float[Array, " bins"]:
    """Phases of a surrogate in radians: uniform in [0, 2 pi magnitude), hence never negative."""
    return jax.random.uniform(key, ((samples - 1) // 2,)) * (2 * math.pi * magnitude)


def noise(
    key: Key[Array, ""], ecg: Float[Array, "L T"], sigma: float, *, relative: bool = True
) -> Float[Array, "L T"]:
    """Noise n ~ N(0, sigma) on every sample: x + 0.6 x n if `relative`, otherwise x + n."""
    drawn = sigma * jax.random.normal(key, ecg.shape)
    return ecg + (_RELATIVE_NOISE_GAIN * ecg * drawn if relative else drawn)


def rescale(key: Key[Array, ""], ecg: Float[Array, "L T"], sigma: float) -> Float[Array, "L T"]:
    """One amplitude factor from N(1, sigma) for the whole recording; it may be negative."""
    return ecg * (1 + sigma * jax.random.normal(key))


def mask_spectrum(
    key: Key[Array, ""], ecg: Float[Array, "L T"], share: float, *, window: int = 120
) -> Float[Array, "L T"]:
    """The recording without a random band of frequencies or stretch of time, the same in all leads.

    A block of `share` of either axis of the short-time Fourier transform is set to 0 (Park et al.,
    "SpecAugment", Interspeech 2019).

    Args:
        window: samples of a rectangular window, which advances by a quarter of them.
    """
    axis_key, *start_keys = jax.random.split(key, 3)
    transform = {"nperseg": window, "noverlap": window - window // 4, "window": "boxcar"}
    spectrum = jax.scipy.signal.stft(ecg, **transform, boundary="even")[2]  # [L, bins, frames]
    hidden = []
    for start_key, bins in zip(start_keys, spectrum.shape[1:], strict=True):
        block = int(share * bins)
        start = jax.random.randint(start_key, (), 0, bins - block + 1)
        place = jnp.arange(bins)
        hidden.append((place >= start) & (place < start + block))
    frequency = jax.random.bernoulli(axis_key)
    mask = jnp.where(frequency, hidden[0][:, None], hidden[1][None, :])
    masked = jnp.where(mask[None, :, :], 0, spectrum)
    return jax.scipy.signal.istft(masked, **transform)[1][:, : ecg.shape[-1]]


def _check_length(ecg: Float[Array, "L T"], length: int) -> None:
    if ecg.shape[-1] < length:
        raise ValueError(
            f"ECG of {ecg.shape[-1]} samples is shorter than the window of {length}:"
            " lower `length` or prepare longer recordings"
        )
