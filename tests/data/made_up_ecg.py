"""ECG-like signals for tests that need many recordings and no meaning."""

import numpy as np


def made_up(seed=0, n=6, samples=5000):
    """ECG-like signals in mV whose limb leads fit each other, [n, 12, samples]."""
    generator = np.random.default_rng(seed)
    spikes = np.zeros((n, 8, samples))
    spikes[:, :, 100::400] = generator.uniform(0.5, 1.5, (n, 8, 1))
    smooth = np.exp(-0.5 * (np.arange(-30, 31) / 8) ** 2)
    eight = np.apply_along_axis(np.convolve, 2, spikes, smooth, mode="same")
    eight += 0.02 * generator.standard_normal(eight.shape)
    one, two = eight[:, 0], eight[:, 1]
    limb = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return np.concatenate([np.stack(limb, axis=1), eight[:, 2:]], axis=1)
