"""Reader of NIfTI volumes (.nii, .nii.gz): pixels as a DICOM viewer shows them, sizes in mm.

Rows are the second and columns the first axis of the file, slices are sorted along the normal of
the image plane (column direction x row direction). Programs that keep the order of the DICOM
pixels (ITK, SimpleITK, the UK Biobank pipeline, the files of ACDC and M&Ms) thus give the very
pixels that `mmcl_jax.data.images.cine` reads from the DICOM files. dcm2niix reverses the rows;
`reverse_rows` undoes that.
"""

import dataclasses
import gzip
import os
import zlib

import numpy as np
from jaxtyping import Float, Float32

from mmcl_jax.data.images.short_axis import PIXEL_SIZES
from mmcl_jax.data.subject import RefusedRecord

try:
    import nibabel
except ImportError as error:
    raise ImportError("NIfTI files need nibabel: pip install 'mmcl_jax[nifti]'") from error


@dataclasses.dataclass
class Volume:
    """A stack of short-axis slices, of one frame or of a whole cycle.

    Attributes:
        values: slices along the normal of the stack, frames in time.
        spacing: height and width of a pixel in mm.
        distance: of the centres of neighbouring slices in mm (thickness and gap).
        affine: from column, row and slice number of `values` to mm in the body (RAS).
        oriented: whether the file says how the stack lies in the body.
        cycle: duration of all frames in s; None where the file gives none that can be true.
        flags: remarks.
    """

    values: Float32[np.ndarray, "Z T H W"]
    spacing: tuple[float, float]
    distance: float
    affine: Float[np.ndarray, "4 4"]
    oriented: bool
    cycle: float | None
    flags: tuple[str, ...] = ()


def read(path: str | os.PathLike, reverse_rows: bool = False) -> Volume:
    """Reads a volume of 3 or 4 dimensions (columns, rows, slices, frames).

    Args:
        reverse_rows: the file stores the rows from the bottom up, as dcm2niix does.

    Raises:
        RefusedRecord: the file is absent, damaged or no NIfTI, holds NaN, or its dimensions, pixel
            sizes or affine are those of no short-axis stack.
    """
    image = _image(path)
    values = _values(path, image)
    affine = _affine(path, image)
    flags = ()
    if reverse_rows:
        values, affine = _reverse(values, affine, axis=1)
    elif _rows_run_up(affine):
        flags = (
            "rows run upwards in the body: upside down, if dcm2niix wrote it (--reverse-rows)",
        )
    if np.linalg.det(affine[:3, :3]) < 0:
        values, affine = _reverse(values, affine, axis=2)
    steps = affine[:3, :3]
    # An affine holds float32: to six decimals, sizes are what the DICOM files said.
    column, row = (round(float(np.linalg.norm(steps[:, axis])), 6) for axis in (0, 1))
    distance = float(np.linalg.det(steps) / np.linalg.norm(np.cross(steps[:, 0], steps[:, 1])))
    if distance < _CLOSE:
        flags += (f"slices closer than those of a short-axis cine: {distance:.2f} mm apart",)
    return Volume(
        values=np.ascontiguousarray(values.transpose(2, 3, 1, 0)),
        spacing=(row, column),
        distance=distance,
        affine=affine,
        oriented=_oblique(affine),
        cycle=_cycle(image),
        flags=flags,
    )


_MAX_BYTES = 2**30
_MAX_VOXELS = 2**27  # 512 MiB as float32
_PIXELS = 32  # of the short side of an image
_CLOSE = 3.0  # mm
_CYCLE = (0.3, 3.0)  # s, of a heart beat
_HEADERS = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}
_DAMAGED = (OSError, EOFError, zlib.error, ValueError, OverflowError)
_DAMAGED += (nibabel.spatialimages.HeaderDataError, nibabel.filebasedimages.ImageFileError)
_DAMAGED += (nibabel.wrapstruct.WrapStructError,)


def _image(path: str | os.PathLike) -> nibabel.Nifti1Image:
    content = _content(path)
    if not content:
        raise RefusedRecord(path, "the file is empty")
    sizes = {int.from_bytes(content[:4], order) for order in ("little", "big")}
    found = [kind for size, kind in _HEADERS.items() if size in sizes]
    if not found:
        raise RefusedRecord(path, "not a NIfTI file")
    try:
        image = found[0].from_bytes(content)
        voxels = int(np.prod(image.shape, dtype=object))
        kind = image.get_data_dtype()
        expected = int(image.header.get_data_offset()) + voxels * kind.itemsize
    except _DAMAGED as error:
        raise RefusedRecord(path, f"unreadable NIfTI header: {error}") from error
    if len(content) < expected:
        raise RefusedRecord(
            path, f"truncated: {expected} bytes expected from the header, {len(content)} found"
        )
    if voxels > _MAX_VOXELS:
        raise RefusedRecord(path, f"{voxels:,} voxels, more than a cine can need")
    if kind.kind not in "iuf":
        raise RefusedRecord(path, f"values of type {kind}, expected one number per voxel")
    return image


def _content(path: str | os.PathLike) -> bytes:
    """The bytes of the file, unpacked; reading to the end also checks the checksum of gzip."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would wait for ever
            raise RefusedRecord(path, "cannot be read: it is no file")
        with open(path, "rb") as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            stream = gzip.GzipFile(fileobj=file) if packed else file
            content = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise RefusedRecord(path, "the file is absent") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RefusedRecord(path, f"damaged gzip file: {error}") from error
    except OSError as error:
        raise RefusedRecord(path, f"cannot be read: {error.strerror or error}") from error
    if len(content) > _MAX_BYTES:
        raise RefusedRecord(path, "more than 1 GiB unpacked, more than a cine can need")
    return content


def _values(path: str | os.PathLike, image: nibabel.Nifti1Image) -> Float32[np.ndarray, "W H Z T"]:
    shape = list(image.shape)
    while len(shape) > 4 and shape[-1] == 1:
        shape.pop()
    if len(shape) == 3:
        shape.append(1)
    written = " x ".join(map(str, image.shape))
    if len(shape) != 4 or min(shape) < 1:
        raise RefusedRecord(
            path, f"dimensions {written}, expected columns x rows x slices, or with frames"
        )
    if min(shape[:2]) < _PIXELS:
        raise RefusedRecord(
            path, f"dimensions {written}, expected at least {_PIXELS} columns and rows at first"
        )
    try:
        # float32 holds every 16-bit value exactly.
        values = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(shape)
    except _DAMAGED as error:
        raise RefusedRecord(path, f"unreadable voxels: {error}") from error
    if not np.isfinite(values).all():
        raise RefusedRecord(path, f"{(~np.isfinite(values)).sum()} voxels are NaN or infinite")
    return values


def _affine(path: str | os.PathLike, image: nibabel.Nifti1Image) -> Float[np.ndarray, "4 4"]:
    """From column, row and slice number to mm, counted to the right, front and top of the body."""
    affine = np.array(image.affine, dtype=np.float64)
    steps = affine[:3, :3]
    if not np.isfinite(affine).all() or abs(np.linalg.det(steps)) < 1e-6:
        raise RefusedRecord(path, "the affine is not invertible: the slices have no place in space")
    unit = image.header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise RefusedRecord(path, f"unit of length is {unit}, expected mm")
    sizes = np.linalg.norm(steps, axis=0)
    stated = np.abs(np.array(image.header.get_zooms()[:3], dtype=np.float64))
    if not np.allclose(sizes, stated, rtol=0.02):
        raise RefusedRecord(
            path,
            f"voxels of {_join(stated)} mm by pixdim, of {_join(sizes)} mm by the affine: "
            "one is wrong, repair the header",
        )
    directions = steps / sizes
    if abs(directions[:, 0] @ directions[:, 1]) > 0.02:
        raise RefusedRecord(path, "rows and columns are not perpendicular in the affine")
    low, high = PIXEL_SIZES
    if not (low <= sizes[:2].min() and sizes[:2].max() <= high):
        raise RefusedRecord(
            path, f"voxels of {_join(sizes)} mm, expected pixels of {low:g} to {high:g} mm"
        )
    return affine


def _reverse(values: np.ndarray, affine: Float[np.ndarray, "4 4"], axis: int) -> tuple:
    """The same voxels at the same places in the body, counted from the other end of an axis."""
    affine = affine.copy()
    affine[:, 3] += (values.shape[axis] - 1) * affine[:, axis]
    affine[:, axis] *= -1
    return np.flip(values, axis), affine


def _join(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


def _oblique(affine: Float[np.ndarray, "4 4"]) -> bool:
    """Whether the normal of the stack is more than 10 degrees from every axis of the body.

    A short-axis stack is; along an axis, the file does not say how it lies.
    """
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    return bool(np.abs(normal / np.linalg.norm(normal)).max() < np.cos(np.deg2rad(10.0)))


def _rows_run_up(affine: Float[np.ndarray, "4 4"]) -> bool:
    row = affine[:3, 1]
    main = int(np.argmax(np.abs(row)))
    return _oblique(affine) and main > 0 and row[main] > 0


def _cycle(image: nibabel.Nifti1Image) -> float | None:
    if image.ndim < 4 or image.shape[3] < 3:
        return None
    factor = {"msec": 1e-3, "usec": 1e-6}.get(image.header.get_xyzt_units()[1], 1.0)
    seconds = float(image.header.get_zooms()[3]) * factor * image.shape[3]
    return seconds if _CYCLE[0] <= seconds <= _CYCLE[1] else None
