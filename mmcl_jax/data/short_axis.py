"""A short-axis cine, whatever file it came from, and the frames and heart box taken from it."""

import dataclasses
import os

import numpy as np
from jaxtyping import Float32

from mmcl_jax.data import cmr, left_ventricle
from mmcl_jax.data.subject import RefusedRecord


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
) -> tuple[np.ndarray, tuple[int, int, int, int], tuple[str, ...]]:
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
    try:
        es, mid, ed = cmr.phases(left_ventricle.pool_area(cine.pixels, ventricle))
        frames = cine.pixels[middle]
        image = cmr.stack_frames(frames[es], frames[mid], frames[ed], settings)
    except ValueError as error:
        raise RefusedRecord(path, str(error)) from error

    flags = (
        f"phases by blood-pool area: ES {es}, mid {mid}, ED {ed} of {len(frames)} frames counted "
        f"from 0, slice {middle + 1} of {len(cine.pixels)}",
    )
    if found is None:
        box = cmr.CONSTANT_BOX
        flags += ("constant heart box: no left ventricle found",)
    else:
        centre, side = (found.row, found.column), _BOX / cine.spacing
        box = cmr.box_around(centre, side, (height, width), settings.size)
    if abs(cine.spacing - _UKB_SPACING) > 0.1 * _UKB_SPACING:
        flags += (f"pixel size kept: {cine.spacing:.2f} mm, UK Biobank has {_UKB_SPACING} mm",)
    return image, box, cine.flags + flags


_UKB_SPACING = 1.8  # mm
_BOX = cmr.CONSTANT_BOX[2] * _UKB_SPACING  # mm: the box of the published code
_STAND_IN = 30.0  # mm
