"""Short-axis cine of a zip of DICOM files, as UK Biobank delivers its field 20209.

Nothing is taken from file names: slices are told apart by their position along the normal of the
image plane, frames of a slice are ordered by trigger time. A slice may be a series of its own
(Siemens) or one series may hold them all (GE), and the stack may run from base to apex or back.
"""

import collections
import os
from collections.abc import Sequence

import numpy as np

from mmcl_jax.data.formats import dicom_images
from mmcl_jax.data.formats.dicom_images import Image
from mmcl_jax.data.images.short_axis import PIXEL_SIZES, Cine
from mmcl_jax.data.subject import RefusedRecord


def read_zip(path: str | os.PathLike) -> Cine:
    """Reads the short-axis cine of a zip.

    The largest set of images with one orientation is the stack. A slice that was acquired twice is
    taken from its last series; a slice with another number of frames or another size than most is
    left out. Remarks tell what was left out.

    Raises:
        RefusedRecord: the zip cannot be read (see `dicom_images`), or holds no usable cine.
    """
    images, left_out = dicom_images.read_zip(path)
    if not images:
        found = _listing(left_out) or "no file"
        raise RefusedRecord(
            path, f"no MR image with a position and an orientation in the zip; it holds {found}"
        )
    stack = max(_planes(images), key=len)
    if len(stack) < len(images):
        left_out["of other planes"] = len(images) - len(stack)

    slices = {place: _last_series(group) for place, group in _places(stack).items()}
    kinds = collections.Counter(_kind(group) for group in slices.values())
    kind = max(kinds, key=lambda kind: (kinds[kind], kind))
    kept = {place: _in_time(path, g) for place, g in slices.items() if _kind(g) == kind}
    flags = ()
    if left_out:
        flags += (f"files of the zip left out: {_listing(left_out)}",)
    if len(kept) < len(slices):
        flags += (f"slices left out: {len(slices) - len(kept)} of other size or number of frames",)
    flags += _geometry_flags(tuple(kept), kind)

    frames, shape, size = kind
    low, high = PIXEL_SIZES
    if not (low <= min(size) and max(size) <= high):
        found = " x ".join(f"{side:g}" for side in size)
        raise RefusedRecord(path, f"pixels of {found} mm, expected {low:g} to {high:g} mm")
    if len(kept) * frames * shape[0] * shape[1] > _MAX_PIXELS:
        raise RefusedRecord(
            path, f"{len(kept)} slices of {frames} frames of {shape}, more than a cine needs"
        )
    # float32 halves the memory of a stack and holds every 16-bit value exactly.
    pixels = np.empty((len(kept), frames, *shape), np.float32)
    for row, group in zip(pixels, kept.values(), strict=True):
        for frame, image in zip(row, group, strict=True):
            frame[:] = dicom_images.decode(path, image)
    spacing = next(iter(kept.values()))[0].spacing
    return Cine(pixels, tuple(kept), float(np.mean(spacing)), flags)


_FEW_SLICES = 7  # the published code drops such volumes
_SAME_PLANE = 0.01  # of a direction vector, about half a degree
_SAME_PLACE = 0.5  # mm along the normal; slices lie several mm apart
_MAX_PIXELS = 2**27  # of a stack: 512 MiB

Kind = tuple[int, tuple[int, int], tuple[float, float]]


def _planes(images: Sequence[Image]) -> list[list[Image]]:
    """The images by orientation."""
    planes: list[list[Image]] = []
    for image in images:
        for plane in planes:
            if np.abs(image.orientation - plane[0].orientation).max() < _SAME_PLANE:
                plane.append(image)
                break
        else:
            planes.append([image])
    return planes


def _places(stack: Sequence[Image]) -> dict[float, list[Image]]:
    """The images of a stack by their position along its normal in mm, in ascending order."""
    normal = np.cross(stack[0].orientation[:3], stack[0].orientation[3:])
    along = np.array([normal @ image.position for image in stack])
    order = np.argsort(along, kind="stable")
    borders = np.flatnonzero(np.diff(along[order]) > _SAME_PLACE) + 1
    return {
        round(float(along[group].mean()), 1): [stack[index] for index in group]
        for group in np.split(order, borders)
    }


def _last_series(images: Sequence[Image]) -> list[Image]:
    """The images of the last of the series that have most frames at this place."""
    series = collections.defaultdict(list)
    for image in images:
        series[image.series].append(image)
    return series[max(series, key=lambda key: (len(series[key]), key))]


def _kind(images: Sequence[Image]) -> Kind:
    """What all slices of a stack share: number of frames, shape, size of a pixel in mm."""
    rows, columns = images[0].spacing
    return len(images), images[0].shape, (round(rows, 4), round(columns, 4))


def _in_time(path: str | os.PathLike, images: list[Image]) -> list[Image]:
    """Images of a slice by trigger time, or by their number where times say nothing."""
    if len(sizes := {(image.shape, image.spacing) for image in images}) > 1:
        raise RefusedRecord(path, f"the frames of a slice have {len(sizes)} different sizes")
    times = {image.trigger for image in images}
    numbers = {image.number for image in images}
    if None not in times and len(times) == len(images):
        return sorted(images, key=lambda image: image.trigger)
    if None not in times and len(times) > 1:
        raise RefusedRecord(
            path,
            f"{len(images)} frames of a slice have {len(times)} different trigger times, "
            "expected one each; does a series hold two acquisitions?",
        )
    if None not in numbers and len(numbers) == len(images):
        return sorted(images, key=lambda image: image.number)
    raise RefusedRecord(
        path, "the frames of a slice have neither distinct trigger times nor instance numbers"
    )


def _geometry_flags(places: tuple[float, ...], kind: Kind) -> tuple[str, ...]:
    flags = ()
    if len(places) <= _FEW_SLICES:
        flags += (f"few slices: {len(places)}",)
    gaps = np.diff(places)
    if len(gaps) and gaps.max() > 1.5 * np.median(gaps):
        usual = float(np.median(gaps))
        flags += (f"a slice is missing: a gap of {gaps.max():.1f} mm, {usual:.1f} mm elsewhere",)
    rows, columns = kind[2]
    if abs(rows - columns) > 0.01 * columns:
        flags += (f"pixels are not square: {rows:.2f} x {columns:.2f} mm",)
    return flags


def _listing(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
