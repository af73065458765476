"""Thickness of the left ventricular wall at end-diastole, per segment of the AHA.

The principle is that of the UK Biobank short-axis pipeline (Bai et al., Nature Medicine 2020): the
thickness at a point of the endocardium is the distance to the nearest point of the epicardium. The
slices are divided into three rings from base to apex. The middle of the septum is the middle of
the wall that the right ventricle touches; the segments are counted from there.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage, spatial


def wall_thickness(
    cavity: Bool[np.ndarray, "Z H W"],
    myocardium: Bool[np.ndarray, "Z H W"],
    rv: Bool[np.ndarray, "Z H W"],
    *,
    spacing: tuple[float, float],
    oriented: bool,
) -> tuple[dict[str, float], tuple[str, ...]]:
    """WT_1 to WT_16 and WT_global in mm, and remarks.

    Points are weighted by the length of endocardium that they stand for. Where the ring is open,
    nothing is measured. Without a right ventricle, with fewer than three slices, or where no ring
    can be divided, only WT_global is given; without any wall, nothing.

    Args:
        cavity, myocardium, rv: slices along the normal of the stack (column x row direction).
        spacing: height and width of a pixel in mm.
        oriented: the order of the slices tells the view. Otherwise the view is taken to be the
            usual one, from the apex.
    """
    rings = []
    for z in range(len(cavity)):
        if ring := _ring(z, cavity[z], myocardium[z], spacing):
            rings.append(ring)
    if not rings:
        return {}, ("wall thickness left out: no slice with cavity and wall",)
    values = {"WT_global": _mean(rings)}
    if not rv.any():
        return values, ()
    septum = _septum(rings, rv, spacing)
    if len(rings) < 3 or septum is None:
        return values, ("wall thickness by segment left out: fewer than 3 slices, or no septum",)

    whole = cavity | myocardium | rv
    areas = [whole[ring.slice].sum() for ring in rings]
    base_last = np.polyfit(range(len(areas)), areas, 1)[0] > 0
    if base_last:
        rings.reverse()
    flags = ()
    if not oriented:
        flags = ("wall segments assume a view from the apex: the affine gives no orientation",)
    # Seen from the apex, with the septum on the left, the anterior wall is on top.
    turn = 1.0 if base_last or not oriented else -1.0
    first, second = math.ceil(len(rings) / 3), math.ceil(2 * len(rings) / 3)
    for part, start, count in (
        (rings[:first], 1, 6),
        (rings[first:second], 7, 6),
        (rings[second:], 13, 4),
    ):
        for number in range(count):
            inside = [_in_segment(ring.angles, septum, turn, number, count) for ring in part]
            value = _mean(part, inside)
            if not math.isnan(value):
                values[f"WT_{start + number}"] = value
    return values, flags


@dataclasses.dataclass(frozen=True)
class _Ring:
    """The wall of one slice, at points along the endocardium.

    Attributes:
        slice: its number.
        angles: from the centre of the cavity, from the direction of the columns to that of the
            rows.
        outer: points of the epicardium, x and y in mm.
        thickness: in mm; NaN where there is no wall.
        weights: length of endocardium in mm.
    """

    slice: int
    angles: Float[np.ndarray, " N"]
    outer: Float[np.ndarray, "N 2"]
    thickness: Float[np.ndarray, " N"]
    weights: Float[np.ndarray, " N"]


_POINTS = 360
_FEW_PIXELS = 10  # of cavity or wall; as the pipeline of UK Biobank
_SMOOTH = 1.0  # pixels; takes out the steps of the pixels, of known rings to 0.05 pixel
_STEP = 0.2  # pixels, along a ray


def _ring(
    number: int,
    cavity: Bool[np.ndarray, "H W"],
    myocardium: Bool[np.ndarray, "H W"],
    spacing: tuple[float, float],
) -> _Ring | None:
    if min(cavity.sum(), myocardium.sum()) < _FEW_PIXELS:
        return None
    cavity = _largest(cavity)
    whole = _largest(ndimage.binary_fill_holes(cavity | myocardium))
    if cavity.sum() < _FEW_PIXELS or not (whole & cavity).any():
        return None
    angles = np.linspace(0.0, 2 * np.pi, _POINTS, endpoint=False)
    centre = np.argwhere(cavity).mean(axis=0)
    inner = _contour(cavity, centre, angles, spacing)
    outer = _contour(whole, centre, angles, spacing)
    steps = np.linalg.norm(inner - np.roll(inner, 1, axis=0), axis=1)
    thickness, _ = spatial.KDTree(outer).query(inner)
    wall = np.linalg.norm(outer - inner, axis=1) > 0.5 * min(spacing)
    return _Ring(
        slice=number,
        angles=angles,
        outer=outer,
        thickness=np.where(wall, thickness, np.nan),
        weights=(steps + np.roll(steps, -1)) / 2,
    )


def _contour(
    mask: Bool[np.ndarray, "H W"],
    centre: Float[np.ndarray, "2"],
    angles: Float[np.ndarray, " N"],
    spacing: tuple[float, float],
) -> Float[np.ndarray, "N 2"]:
    """Where rays from the centre leave a mask for the last time, as x and y in mm."""
    height, width = spacing
    pixel = min(spacing)
    far = np.hypot(mask.shape[0] * height, mask.shape[1] * width)
    reach = np.arange(0.0, far, _STEP * pixel)
    directions = np.stack([np.sin(angles) / height, np.cos(angles) / width])  # pixels per mm
    points = centre[:, None, None] + directions[:, :, None] * reach[None, None, :]
    smooth = ndimage.gaussian_filter(mask.astype(np.float32), _SMOOTH)
    inside = ndimage.map_coordinates(smooth, points, order=1)
    last = inside.shape[1] - 1 - np.argmax(inside[:, ::-1] >= 0.5, axis=1)
    rows = np.arange(len(angles))
    beyond = np.minimum(last + 1, inside.shape[1] - 1)
    drop = inside[rows, last] - inside[rows, beyond]
    share = np.where(drop > 0, (inside[rows, last] - 0.5) / np.where(drop > 0, drop, 1.0), 0.0)
    radius = reach[last] + np.clip(share, 0.0, 1.0) * _STEP * pixel
    start = centre[::-1] * (width, height)
    return start + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _septum(
    rings: list[_Ring], rv: Bool[np.ndarray, "Z H W"], spacing: tuple[float, float]
) -> float | None:
    """Angle of the middle of the septum, in the slice nearest to the middle that shows one."""
    middle = np.average([r.slice for r in rings], weights=[r.weights.sum() for r in rings])
    height, width = spacing
    for ring in sorted(rings, key=lambda ring: abs(ring.slice - middle)):
        if rv[ring.slice].sum() < _FEW_PIXELS:
            continue
        right = np.argwhere(rv[ring.slice])[:, ::-1] * (width, height)
        gaps, _ = spatial.KDTree(right).query(ring.outer)
        # Pixels that touch have centres one pixel apart; the contour runs between them.
        touching = gaps <= gaps.min() + 1.5 * max(spacing)
        if gaps.min() <= 5 * max(spacing):
            return float(np.angle(np.exp(1j * ring.angles[touching]).sum()))
    return None


def _in_segment(
    angles: Float[np.ndarray, " N"], septum: float, turn: float, number: int, count: int
) -> Bool[np.ndarray, " N"]:
    """Points in segment `number` from 0 of a ring of `count`: 0 is centred on the anterior wall."""
    anterior = septum + turn * np.pi / 2
    position = turn * (anterior - angles) * count / (2 * np.pi)
    return np.floor(position + 0.5) % count == number


def _mean(rings: list[_Ring], chosen: list[Bool[np.ndarray, " N"]] | None = None) -> float:
    thickness = np.concatenate([ring.thickness for ring in rings])
    weights = np.concatenate([ring.weights for ring in rings])
    used = ~np.isnan(thickness)
    if chosen is not None:
        used &= np.concatenate(chosen)
    return float(np.average(thickness[used], weights=weights[used])) if used.any() else math.nan


def _largest(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    objects, count = ndimage.label(mask)
    return mask if count < 2 else objects == 1 + np.argmax(np.bincount(objects.ravel())[1:])
