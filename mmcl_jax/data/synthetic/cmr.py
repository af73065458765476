"""Cine CMR of a synthetic subject: the mid-ventricular short-axis slice at ES, mid-systole and ED.

Everything is drawn from `anatomy.py`: the blood pool of the left ventricle with the
thickness and motion of the AHA segments 7 to 12, and the crescent of the right ventricle with the
area that its volume asks for. Around them lie fat, lungs, liver, chest wall and spine, seen by a
surface coil with Rician noise. Shapes are functions of the distance from a centre, so that edges
are smooth.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float32

from mmcl_jax.data.synthetic.anatomy import Anatomy, ventricles

SIZE = 210  # pixels
PIXEL = 1.8  # mm
MID_SYSTOLE = 0.6  # share of the contraction that the middle frame shows

_MID_SEGMENTS = slice(6, 12)
_WINDOW = 52  # half the side of the part in which the heart is drawn, pixels
_HEART = (83.0, 113.0)  # usual row and column of the left ventricle
_ANGLES = 720
_RV_REACH = np.deg2rad(82)  # the right ventricle covers this angle on each side of the septum

# Signal of the tissues in balanced steady-state free precession, blood pool near 1.
_BLOOD, _MYOCARDIUM, _FAT, _MUSCLE, _LIVER, _LUNG = 0.92, 0.24, 0.78, 0.28, 0.36, 0.05

_ROWS, _COLUMNS = np.meshgrid(
    np.arange(SIZE, dtype=np.float32), np.arange(SIZE, dtype=np.float32), indexing="ij"
)


@dataclasses.dataclass(frozen=True)
class Slice:
    """Three frames, in the order ES, mid-systole, ED.

    Attributes:
        frames: magnitude images in arbitrary units.
        cavity: pixels of the left ventricular cavity, papillary muscles included.
        heart: pixels of the left ventricle, wall included.
    """

    frames: Float32[np.ndarray, "3 210 210"]
    cavity: Bool[np.ndarray, "3 210 210"]
    heart: Bool[np.ndarray, "3 210 210"]


def draw(rng: np.random.Generator, anatomy: Anatomy) -> Slice:
    """Draws the slice of one subject (n = 1), with its own position, rotation and noise."""
    # Python numbers keep the images in float32; NumPy's own would widen them.
    centre = (np.array(_HEART) + np.clip(2.5 * rng.standard_normal(2), -5, 5)).tolist()
    body_mass_index = float(anatomy.weight[0] / (anatomy.height[0] / 100) ** 2)
    chest = _chest(rng, 2.4 + 0.22 * body_mass_index)
    row, column = (round(value) - _WINDOW for value in centre)
    window = (slice(row, row + 2 * _WINDOW), slice(column, column + 2 * _WINDOW))

    down = _ROWS[window] - centre[0]
    right = _COLUMNS[window] - centre[1]
    distance = np.sqrt(down * down + right * right)
    turn = float(np.deg2rad(8 * rng.standard_normal()))
    angle = np.arctan2(-down, right) - turn  # anticlockwise from the right, as the segments count
    sector = (angle * (_ANGLES / (2 * np.pi))).astype(np.int32) % _ANGLES

    inner, outer, free_wall = (edge[:, sector] for edge in _contours(rng, anatomy))
    fat = _epicardial_fat(rng, body_mass_index)[sector]
    heart = np.broadcast_to(chest[window], inner.shape).copy()
    texture = _smooth_noise(rng, 26, 2 * _WINDOW)
    _paint(heart, free_wall + 2 + fat - distance, _FAT + 0.05 * texture)
    _paint(heart, free_wall + 2 - distance, _MYOCARDIUM)
    _paint(heart, free_wall - distance, _BLOOD * (0.92 - 0.16 * np.maximum(texture, 0)))
    _paint(heart, outer - distance, _MYOCARDIUM + 0.03 * texture)
    _paint(heart, inner - distance, _BLOOD)
    places = np.deg2rad([32, 248]) + turn + 0.15 * rng.standard_normal(2)
    for frame, along in enumerate(0.66 * inner.max((1, 2))):
        for place, size in zip(places, (2.4, 2.1), strict=True):
            # Papillary muscles stand off the wall and keep their size while the cavity shrinks.
            y, x = float(-along * np.sin(place)), float(along * np.cos(place))
            near = (
                slice(int(_WINDOW + y) - 5, int(_WINDOW + y) + 8),
                slice(int(_WINDOW + x) - 5, int(_WINDOW + x) + 8),
            )
            gap = np.hypot(down[near] - y, right[near] - x)
            _paint(heart[frame][near], size - gap, _MYOCARDIUM + 0.06)

    frames = np.repeat(chest[None], 3, axis=0)
    frames[(slice(None), *window)] = heart
    masks = np.zeros((2, 3, SIZE, SIZE), bool)
    masks[(0, slice(None), *window)] = distance < inner
    masks[(1, slice(None), *window)] = distance < outer
    return Slice(_acquire(rng, frames), *masks)


def _contours(
    rng: np.random.Generator, anatomy: Anatomy
) -> tuple[Float32[np.ndarray, "3 angles"], ...]:
    """Distance in pixels from the centre of the left ventricle, per frame and angle.

    Returns:
        Inner and outer surface of the left ventricle, and the farthest blood of either ventricle.
    """
    shape = ventricles(anatomy)
    phase = np.array([1.0, MID_SYSTOLE, 0.0])[:, None]
    ed_radius = shape.radius[0, 1]
    radius = ed_radius + phase * (shape.es_radius[0, _MID_SEGMENTS] - ed_radius)
    ed_wall = anatomy.thickness[0, _MID_SEGMENTS]
    wall = ed_wall + phase * (shape.es_thickness[0, _MID_SEGMENTS] - ed_wall)

    oval = 1 + 0.025 * rng.standard_normal() * np.cos(2 * (_ANGLE - np.pi * rng.random()))
    inner = radius @ _SEGMENT_SHARES * oval
    outer = inner + wall @ _SEGMENT_SHARES

    # Area of the right ventricle in the slice: its volume over its length, which is close to that
    # of the left. The crescent outer + w g(angle) has the area w * 1st + w^2 * 2nd moment of g.
    volume = anatomy.rv_volume + phase[:, 0] * (shape.rv_es_volume - anatomy.rv_volume)
    length = shape.length + phase[:, 0] * (shape.es_length - shape.length)
    area = 1080 * volume / length
    step = 2 * np.pi / _ANGLES
    first = outer @ _RV_PROFILE * step
    second = (_RV_PROFILE**2).sum() * step / 2
    width = (np.sqrt(first**2 + 4 * second * area) - first) / (2 * second)
    free_wall = outer + width[:, None] * _RV_PROFILE
    return tuple((edge / PIXEL).astype(np.float32) for edge in (inner, outer, free_wall))


def _chest(rng: np.random.Generator, fat: float) -> Float32[np.ndarray, "210 210"]:
    """The chest without the heart; `fat` is the thickness below the skin in pixels."""
    row, column, *size = (np.array([108, 107, 80, 95]) + 2 * rng.standard_normal(4)).tolist()
    height, width = size[0] + 0.5 * fat, size[1]
    image = np.full((SIZE, SIZE), 0.01, np.float32)
    _paint(image, _ellipse(row, column, height, width), _FAT + 0.08)
    _paint(image, _ellipse(row, column, height - fat, width - fat), _MUSCLE)
    rib = fat + rng.uniform(6, 10)
    cavity = _ellipse(row - 2, column, height - rib, width - rib)
    texture = _smooth_noise(rng, 42, SIZE)
    _paint(image, cavity, _LUNG + 0.05 * np.maximum(texture - 0.6, 0))

    spot = (3 * rng.standard_normal((4, 2))).tolist()
    # Fat between the right ventricle and the breastbone.
    front = _ellipse(36 + spot[3][0], 96 + spot[3][1], 28, 32 + fat)
    _paint(image, np.minimum(front, cavity), 0.55 + 0.07 * texture)
    stomach = _ellipse(144 + spot[1][0], 142 + spot[1][1], 36, 40)
    _paint(image, np.minimum(stomach, cavity), rng.uniform(0.2, 0.5) + 0.05 * texture)
    liver = _ellipse(138 + spot[0][0], 62 + spot[0][1], 46, 58)
    _paint(image, np.minimum(liver, cavity), _LIVER + 0.025 * texture)
    back = slice(140, SIZE), slice(80, 140)
    spine = _ellipse(174 + 0.5 * spot[2][0], column + 2, 15, 17)[back]
    _paint(image[back], spine, 0.42 + 0.04 * texture[back])
    aorta = _ellipse(154 + 0.5 * spot[2][0], 121 + 0.5 * spot[2][1], 7, 7)[back]
    _paint(image[back], aorta, _BLOOD)
    return image


def _epicardial_fat(
    rng: np.random.Generator, body_mass_index: float
) -> Float32[np.ndarray, " angles"]:
    """Thickness in pixels of the fat on the heart at each angle."""
    size, phase = 0.7 * rng.standard_normal(3), 2 * np.pi * rng.random(3)
    waves = np.cos(np.array([[2], [3], [5]]) * _ANGLE[None] + phase[:, None])
    return np.maximum(0.11 * body_mass_index - 0.6 + size @ waves, 0.4).astype(np.float32)


def _acquire(
    rng: np.random.Generator, frames: Float32[np.ndarray, "3 210 210"]
) -> Float32[np.ndarray, "3 210 210"]:
    """Surface coil sensitivity, gain and Rician noise."""
    slope = np.array([-0.25, 0.0]) + 0.1 * rng.standard_normal(2)
    fall = np.exp(slope[:, None] * np.linspace(-1, 1, SIZE)).astype(np.float32)
    coil = fall[0][:, None] * fall[1][None, :]
    noise = rng.standard_normal((2, *frames.shape), dtype=np.float32)
    noise *= np.float32(0.022 * np.exp(0.25 * rng.standard_normal()))
    gain = np.float32(300 * np.exp(0.3 * rng.standard_normal()))
    noise[0] += frames * coil[None]
    noise *= noise
    return gain * np.sqrt(noise[0] + noise[1])


def _paint(image: np.ndarray, inside: np.ndarray, value: np.ndarray | float) -> None:
    """Covers the pixels whose distance `inside` an edge is positive; the edge itself is soft."""
    cover = inside * np.float32(1 / 1.4)
    cover += np.float32(0.5)
    np.clip(cover, 0, 1, out=cover)
    cover *= value - image
    image += cover


def _ellipse(row: float, column: float, height: float, width: float) -> np.ndarray:
    """About the distance in pixels inside an ellipse with these half axes."""
    down, right = (_ROWS[:, :1] - row) / height, (_COLUMNS[:1] - column) / width
    radius = np.sqrt(down * down + right * right, dtype=np.float32)
    return (1 - radius) * np.float32(min(height, width))


def _smooth_noise(rng: np.random.Generator, knots: int, size: int) -> np.ndarray:
    """Random texture of about unit variance: `knots` by `knots` values, interpolated linearly."""
    place = np.linspace(0, knots - 1, size, dtype=np.float32)
    first = np.minimum(place.astype(np.intp), knots - 2)
    share = place - first.astype(np.float32)
    values = 1.5 * rng.standard_normal((knots, knots), dtype=np.float32)
    # Taking neighbours is as fast as a matrix product and starts no threads in a worker process.
    rows = values[first] + share[:, None] * (values[first + 1] - values[first])
    return rows[:, first] + share[None, :] * (rows[:, first + 1] - rows[:, first])


def _segment_shares() -> Float[np.ndarray, "6 angles"]:
    """Weight of the mid-cavity segments at each angle; they sum to one.

    Seen from the apex with the right ventricle on the left, segment 7 (anterior) is at the top and
    the numbers go round anticlockwise, so the septum (8, 9) is on the left.
    """
    middle = np.deg2rad(90 + 60 * np.arange(6))
    apart = np.abs((_ANGLE[None] - middle[:, None] + np.pi) % (2 * np.pi) - np.pi)
    return np.where(apart < np.pi / 3, np.cos(1.5 * apart) ** 2, 0)


_ANGLE = 2 * np.pi * np.arange(_ANGLES) / _ANGLES
_SEGMENT_SHARES = _segment_shares()
_RV_PROFILE = np.clip(np.cos((_ANGLE - np.pi) * (np.pi / 2) / _RV_REACH), 0, None) ** 0.7
_RV_PROFILE[np.abs(_ANGLE - np.pi) > _RV_REACH] = 0
