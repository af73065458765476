"""A beating heart for tests: a bright disc in a dark ring, a crescent, a bright chest wall."""

import numpy as np

# Frames of the largest and smallest disc.
ED, ES = 0, 4


def cine(centre=(60.0, 75.0), radius=16.0, frames=10, shape=(128, 144), seed=0):
    """[T, H, W]; the disc has `radius` pixels at ED and 0.6 of it at ES."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    distance = np.hypot(rows - centre[0], columns - centre[1])
    ventricle = np.hypot(rows - centre[0], columns - centre[1] + 1.6 * radius)
    images = []
    for frame in range(frames):
        # Fast contraction until ES, slower filling afterwards.
        phase = frame / ES / 2 if frame <= ES else 0.5 + (frame - ES) / (frames - ES) / 2
        inner = radius * (0.8 + 0.2 * np.cos(2 * np.pi * phase))
        image = np.full(shape, 25.0)
        image[ventricle < 1.3 * inner] = 180.0
        image[distance < radius + 6] = 60.0
        image[distance < inner] = 200.0
        image[:, :12] = 260.0
        images.append(image + rng.normal(0, 4, shape))
    return np.clip(np.stack(images), 0, None)
