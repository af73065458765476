"""A beating heart in NIfTI files for tests: stack of rings with a right ventricle on their left."""

import gzip

import nibabel
import numpy as np

LV, MYOCARDIUM, RV = 1, 2, 3
SPACING, DISTANCE = 1.5, 8.0  # mm
SLICES, FRAMES, ED, ES = 9, 8, 0, 4
SHAPE = 96, 88  # columns, rows
RADIUS, WALL, SHIFT = 25.0, 10.0, 3.0  # mm, of the cavity at ED in the base; see `classes`


def affine(first_at_apex=False):
    """A usual short axis: columns to the left and back, rows to the feet, seen from the apex."""
    column, row = np.array([-0.71, -0.70, -0.034]), np.array([0.31, -0.27, -0.91])
    column /= np.linalg.norm(column)
    row -= (row @ column) * column
    row /= np.linalg.norm(row)
    to_base = np.cross(column, row)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = column * SPACING, row * SPACING
    matrix[:3, 2] = to_base * DISTANCE * (1 if first_at_apex else -1)
    matrix[:3, 3] = (40.0, 60.0, 90.0)
    return matrix


def classes(frame=ED):
    """[columns, rows, slices], the base first. The wall is thicker by SHIFT on top, so anterior."""
    x = (np.arange(SHAPE[0]) - 50.0)[:, None, None] * SPACING
    y = (np.arange(SHAPE[1]) - 42.0)[None, :, None] * SPACING
    scale = 1.0 - 0.06 * np.arange(SLICES)[None, None, :]
    phase = frame / ES / 2 if frame <= ES else 0.5 + (frame - ES) / (FRAMES - ES) / 2
    beat = 0.8 + 0.2 * np.cos(2 * np.pi * phase)
    volume = np.zeros(np.broadcast_shapes(x.shape, y.shape, scale.shape), np.uint8)
    volume[np.hypot(x + 32 * scale, y) < 30 * scale * beat] = RV
    volume[np.hypot(x, y + SHIFT) < (RADIUS + WALL) * scale + 0 * x] = MYOCARDIUM
    volume[np.hypot(x, y) < RADIUS * scale * beat] = LV
    return volume


def pixels(frame=ED):
    """[columns, rows, slices] that show `classes`."""
    level = np.array([30, 200, 60, 180], np.int16)
    noise = np.random.default_rng(frame).integers(0, 5, (*SHAPE, SLICES))
    return level[classes(frame)] + noise.astype(np.int16)


def cycle(of):
    """[columns, rows, slices, frames] of `classes` or `pixels`."""
    return np.stack([of(frame) for frame in range(FRAMES)], axis=-1)


def renumber(volume, lv, myocardium, rv):
    return np.array([0, lv, myocardium, rv], np.uint8)[volume]


def save(path, volume, matrix=None):
    """Writes a NIfTI file and returns its path; fast rather than small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(volume, affine() if matrix is None else matrix)
    content = image.to_bytes()
    packed = path.suffix == ".gz"
    path.write_bytes(gzip.compress(content, compresslevel=1) if packed else content)
    return path
