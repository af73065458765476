"""A short-axis cine, whatever file it came from, and the frames and heart box taken from it."""

import dataclasses
import os

import numpy as np
from jaxtyping import Float, Float32, UInt8

from mmcl_jax.data.images import cmr, left_ventricle
from mmcl_jax.data.subject import RefusedRecord

PIXEL_SIZES = (0.3, 6.0)  # mm, those that a cine can have


@dataclasses.dataclass
class Cine:
    """A stack of short-axis slices over one heart cycle.

    Attributes:
        pixels: slices along the normal of the stack, frames in time.
        positions: of the slices along the normal, in mm.
        spacing: size of a pixel in mm.
        flags: remarks, e.g. on slices that were left out.
    """

    pixels: Float32[np.ndarray, "Z T H W"]
    positions: tuple[float, ...]
    spacing: float
    flags: tuple[str, ...]


def prepare(
    path: str | os.PathLike, cine: Cine, settings: cmr.CmrSettings = cmr.DEFAULT
) -> tuple[UInt8[np.ndarray, "210 210 3"], tuple[int, int, int, int], tuple[str, ...]]:
    """Image [210, 210, 3], heart box and remarks from a short-axis cine.

    The slice is the middle one of the stack. The phases follow from the blood-pool area of the
    left ventricle over all slices, the box lies around it; where it is not found, a disc at the
    centre of the image stands in for the phases and the box is the constant one. The remarks say
    which frames were taken, and where the box is the constant one.

    Raises:
        RefusedRecord: fewer than 3 frames, or nothing moves.
    """
    middle = len(cine.pixels) // 2
    height, width = cine.pixels.shape[2:]
    found = left_ventricle.find(cine.pixels[middle], cine.spacing)
    ventricle = found or left_ventricle.LeftVentricle(
        height / 2, width / 2, _STAND_IN / cine.spacing
    )
    area = left_ventricle.pool_area(cine.pixels, ventricle)
    image, flags = take_frames(path, cine, area, "blood-pool area", settings)
    box, remarks = heart_box(found, cine.spacing, (height, width), settings)
    return image, box, cine.flags + flags + remarks + size_remarks(cine.spacing)


def heart_box(
    found: left_ventricle.LeftVentricle | None,
    spacing: float,
    shape: tuple[int, int],
    settings: cmr.CmrSettings = cmr.DEFAULT,
) -> tuple[tuple[int, int, int, int], tuple[str, ...]]:
    """Box about a left ventricle found without labels, as large as that of UK Biobank in mm.

    Where none was found, it is the constant box, and the remark says so.
    """
    if found is None:
        return cmr.CONSTANT_BOX, ("constant heart box: no left ventricle found",)
    centre, side = (found.row, found.column), _BOX / spacing
    return cmr.box_around(centre, side, shape, settings.size), ()


def size_remarks(spacing: float) -> tuple[str, ...]:
    """A remark where a pixel, in mm, is more than 10 % larger or smaller than in UK Biobank."""
    if abs(spacing - _UKB_SPACING) <= 0.1 * _UKB_SPACING:
        return ()
    return (f"pixel size kept: {spacing:.2f} mm, UK Biobank has {_UKB_SPACING} mm",)


def take_frames(
    path: str | os.PathLike,
    cine: Cine,
    cavity: Float[np.ndarray, " T"],
    rule: str,
    settings: cmr.CmrSettings = cmr.DEFAULT,
) -> tuple[UInt8[np.ndarray, "210 210 3"], tuple[str, ...]]:
    """The ES, mid and ED frame of the middle slice, and a remark on which they are.

    The middle slice is number Z // 2 along the normal, counted from 0; see `cmr.phases` for the
    frames.

    Args:
        path: named in the refusal, not read.
        cavity: size of the left ventricle's cavity over the cycle, e.g. its area summed over the
            slices of a segmentation, in any unit.
        rule: what the sizes are, for the remark.

    Raises:
        RefusedRecord: fewer than 3 frames, sizes that never change, or frames that show nothing.
    """
    middle = len(cine.pixels) // 2
    frames = cine.pixels[middle]
    try:
        if len(cavity) != len(frames) or not np.isfinite(cavity).all():
            raise ValueError(f"{rule} of {len(cavity)} frames, expected {len(frames)} numbers")
        es, mid, ed = cmr.phases(cavity)
        image = cmr.stack_frames(frames[es], frames[mid], frames[ed], settings)
    except ValueError as error:
        raise RefusedRecord(path, str(error)) from error
    remark = (
        f"phases by {rule}: ES {es}, mid {mid}, ED {ed} of {len(frames)} frames counted from 0, "
        f"slice {middle + 1} of {len(cine.pixels)}"
    )
    return image, (remark,)


_UKB_SPACING = 1.8  # mm
_BOX = cmr.CONSTANT_BOX[2] * _UKB_SPACING  # mm: the box of the published code
_STAND_IN = 30.0  # mm
