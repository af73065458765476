"""Where the left ventricle is in a short-axis cine, and how its blood pool changes, without labels.

In a bright-blood cine the blood pool of the left ventricle is the round bright object in a dark
ring that moves with the beat, near the centre of the image. The constants below were chosen on the
three Sunnybrook patients that the tests read. Those tests therefore show that the rule fits them;
how well it does on other patients and scanners has not been measured. A segmentation is better
where there is one.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage


@dataclasses.dataclass(frozen=True)
class LeftVentricle:
    """Centre and radius of the blood pool, in pixels of the cine."""

    row: float
    column: float
    radius: float


def find(cine: Float[np.ndarray, "T H W"], spacing: float) -> LeftVentricle | None:
    """Locates the blood pool of the left ventricle in the cine of one slice.

    The mean frame is cut at many intensities. Every connected bright object of 300 to 7000 mm2 is
    rated by its roundness, the motion at its border and its distance from the centre.

    Args:
        spacing: size of a pixel in mm.

    Returns:
        The best object, or None when there is none.
    """
    scaled = _clip(cine)
    mean = scaled.mean(axis=0)
    motion = ndimage.gaussian_filter(scaled.std(axis=0), _SMOOTH / spacing)
    body = mean[mean > _BACKGROUND]
    if not body.size or not motion.any():
        return None
    motion /= motion.mean()

    best, best_score = None, 0.0
    for threshold in np.quantile(body, np.linspace(0.40, 0.98, 30)):
        objects, _ = ndimage.label(mean > threshold)
        sizes = np.bincount(objects.ravel())[1:] * spacing**2
        windows = ndimage.find_objects(objects)
        for index in np.flatnonzero((sizes > _AREA[0]) & (sizes < _AREA[1])):
            window = _widen(windows[index], _BORDER, mean.shape)
            score, found = _rate(objects[window] == index + 1, window, motion, spacing)
            if score > best_score:
                best, best_score = found, score
    return best


def pool_area(
    slices: Float[np.ndarray, "Z T H W"], ventricle: LeftVentricle
) -> Float[np.ndarray, " T"]:
    """Bright area inside the left ventricle over the cycle, summed over the slices, in pixels.

    Bright is what exceeds Otsu's threshold within a disc a fifth wider than the ventricle. The
    sum is smoothed over three frames of the cycle (weights 1/4, 1/2, 1/4).
    """
    rows, columns = np.ogrid[: slices.shape[2], : slices.shape[3]]
    distance = (rows - ventricle.row) ** 2 + (columns - ventricle.column) ** 2
    disc = distance < (1.2 * ventricle.radius) ** 2
    area = np.zeros(slices.shape[1])
    for cine in slices:
        inside = _clip(cine)[:, disc]
        area += (inside > otsu(inside)).sum(axis=1)
    return 0.25 * np.roll(area, 1) + 0.5 * area + 0.25 * np.roll(area, -1)


def otsu(values: Float[np.ndarray, "..."]) -> float:
    """Threshold that separates two classes of intensity best. Otsu, IEEE Trans. SMC 1979."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    total_below = np.cumsum(counts * centres)[:-1]
    total_above = (counts * centres).sum() - total_below
    mean_below = total_below / np.maximum(below, 1)
    mean_above = total_above / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(below * above * (mean_above - mean_below) ** 2)])


_AREA = (300.0, 7000.0)  # mm2: a small apex to a dilated ventricle
_SMOOTH = 3.0  # mm, of the motion map
_BACKGROUND = 0.05  # share of the clipped intensity that air and lung stay below
_BORDER = 3  # pixels around an object in which motion counts as its own
_CENTRAL = 60.0  # mm from the centre of the image at which a rating has dropped to 0.6
_MOTION = 2.0  # times the mean motion; more is no better, vessels and fat also move


def _widen(window: tuple[slice, slice], margin: int, shape: tuple[int, int]) -> tuple[slice, slice]:
    rows, columns = (
        slice(max(0, part.start - margin), min(length, part.stop + margin))
        for part, length in zip(window, shape, strict=True)
    )
    return rows, columns


def _rate(
    pool: Bool[np.ndarray, "h w"],
    window: tuple[slice, slice],
    motion: Float[np.ndarray, "H W"],
    spacing: float,
) -> tuple[float, LeftVentricle]:
    """Score of the object `pool`, seen through a window of the image, and where it is."""
    # Papillary muscles are dark islands in the pool.
    pool = ndimage.binary_fill_holes(pool)
    points = np.argwhere(pool) + (window[0].start, window[1].start)
    centre = points.mean(axis=0)
    radius = np.sqrt(((points - centre) ** 2).sum(axis=1).max())
    # Share of the smallest disc about the centre that the object fills: 1 when it is round.
    roundness = len(points) / (np.pi * radius**2)
    border = ndimage.binary_dilation(pool, iterations=_BORDER)
    moving = min(motion[window][border].mean(), _MOTION)
    distance = np.hypot(*(centre - np.array(motion.shape) / 2)) * spacing
    score = roundness * moving * np.exp(-0.5 * (distance / _CENTRAL) ** 2)
    return float(score), LeftVentricle(float(centre[0]), float(centre[1]), float(radius))


def _clip(cine: Float[np.ndarray, "T H W"]) -> Float[np.ndarray, "T H W"]:
    """Intensities from 0 to 1 without the brightest 1 %."""
    high = np.quantile(cine, 0.99)
    return np.clip(cine / high, 0.0, 1.0) if high > 0 else np.zeros_like(cine)
