"""Short-axis cine of a zip of DICOM files, as UK Biobank delivers its field 20209.

Nothing is taken from file names: slices are told apart by their position along the normal of the
image plane, frames of a slice are ordered by trigger time. Nothing is written to disk.
"""

import collections
import dataclasses
import io
import os
import struct
import zipfile
import zlib

import numpy as np
from jaxtyping import Float32

from mmcl_jax.data.short_axis import Cine
from mmcl_jax.data.subject import RefusedRecord

try:
    import pydicom
except ImportError as error:
    raise ImportError("DICOM files need pydicom: pip install 'mmcl_jax[dicom]'") from error


def read_zip(path: str | os.PathLike) -> Cine:
    """Reads the short-axis cine of a zip.

    The largest set of images with one orientation is the stack. A slice that was acquired twice is
    taken from its last series; a slice with another number of frames or another size than most is
    left out. Series with contours drawn into the image (InlineVF) are not read.

    Raises:
        RefusedRecord: the zip is damaged, absent or too large, or holds no usable cine.
    """
    stacks = collections.defaultdict(list)
    for image in _images(path):
        stacks[image.orientation].append(image)
    if not stacks:
        raise RefusedRecord(path, "no MR image with a position and an orientation in the zip")
    stack = max(stacks.values(), key=len)

    by_place = collections.defaultdict(list)
    for image in stack:
        by_place[image.position].append(image)
    slices = {place: _last_series(images) for place, images in by_place.items()}
    kinds = collections.Counter(_kind(images) for images in slices.values())
    kind = max(kinds, key=lambda kind: (kinds[kind], kind))
    kept = {place: images for place, images in slices.items() if _kind(images) == kind}
    flags = ()
    if len(kept) < len(slices):
        flags += (f"slices left out: {len(slices) - len(kept)} of other size or number of frames",)
    if len(kept) <= _FEW_SLICES:
        flags += (f"few slices: {len(kept)}",)

    places = sorted(kept)
    pixels = np.stack([[image.pixels for image in _in_time(path, kept[place])] for place in places])
    return Cine(pixels, tuple(places), stack[0].spacing, flags)


_FEW_SLICES = 7  # the published code drops such volumes
_MAX_MEMBER = 64 * 2**20  # bytes
_MAX_TOTAL = 2 * 2**30  # bytes


@dataclasses.dataclass(frozen=True)
class _Image:
    """One DICOM image: where it is, when it was, what it shows."""

    orientation: tuple[float, ...]
    position: float
    spacing: float
    series: tuple[int, str]
    trigger: float | None
    instance: int | None
    pixels: Float32[np.ndarray, "H W"]


def _images(path: str | os.PathLike) -> list[_Image]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            total = sum(member.file_size for member in members)
            if total > _MAX_TOTAL or any(member.file_size > _MAX_MEMBER for member in members):
                raise RefusedRecord(
                    path, f"{total / 2**20:.0f} MiB unpacked, more than a cine can need"
                )
            images = [_image(path, member.filename, archive.read(member)) for member in members]
    except FileNotFoundError as error:
        raise RefusedRecord(path, "the zip is absent") from error
    # A damaged zip shows itself in any of these, encryption as RuntimeError.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise RefusedRecord(path, f"not a readable zip: {error}") from error
    except OSError as error:
        raise RefusedRecord(path, f"cannot be read: {error.strerror or error}") from error
    return [image for image in images if image is not None]


def _image(path: str | os.PathLike, member: str, content: bytes) -> _Image | None:
    """One image, or None for what is no grey image of the short axis (manifest, report)."""
    # Some scanners write identifiers that break the standard; none of them is used here.
    with pydicom.config.disable_value_validation():
        try:
            dataset = pydicom.dcmread(io.BytesIO(content))
            if not _is_slice(dataset):
                return None
            orientation = np.array(dataset.ImageOrientationPatient, dtype=float)
            normal = np.cross(orientation[:3], orientation[3:])
            # float32 halves the memory of a stack and holds every 16-bit value exactly.
            pixels = dataset.pixel_array * np.float32(dataset.get("RescaleSlope") or 1)
            pixels += np.float32(dataset.get("RescaleIntercept") or 0)
            trigger, instance = dataset.get("TriggerTime"), dataset.get("InstanceNumber")
            return _Image(
                orientation=tuple(np.round(orientation, 2) + 0.0),
                position=round(float(normal @ np.array(dataset.ImagePositionPatient, float)), 1),
                spacing=float(np.mean(np.array(dataset.PixelSpacing, dtype=float))),
                series=(int(dataset.get("SeriesNumber") or 0), str(dataset.SeriesInstanceUID)),
                trigger=None if trigger is None else float(trigger),
                instance=None if instance is None else int(instance),
                pixels=pixels,
            )
        except pydicom.errors.InvalidDicomError:
            return None
        except _DAMAGED as error:
            raise RefusedRecord(path, f"{member} in the zip: {error}") from error


# What pydicom raises for truncated, contradictory or compressed files that it cannot decode.
_DAMAGED = (ValueError, TypeError, AttributeError, KeyError, EOFError, RuntimeError, struct.error)


def _is_slice(dataset: pydicom.Dataset) -> bool:
    """Whether a DICOM file is one grey image with a place in space and nothing drawn into it."""
    needed = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "PixelData")
    return (
        all(dataset.get(name) is not None for name in needed)
        and int(dataset.get("NumberOfFrames") or 1) == 1
        and dataset.get("SamplesPerPixel", 1) == 1
        and "InlineVF" not in str(dataset.get("SeriesDescription"))
    )


def _last_series(images: list[_Image]) -> list[_Image]:
    """The images of the last of the series that have most frames at this place."""
    series = collections.defaultdict(list)
    for image in images:
        series[image.series].append(image)
    return series[max(series, key=lambda key: (len(series[key]), key))]


def _kind(images: list[_Image]) -> tuple[int, tuple[int, ...]]:
    return len(images), images[0].pixels.shape


def _in_time(path: str | os.PathLike, images: list[_Image]) -> list[_Image]:
    """Images of a slice by trigger time, or by instance number where times say nothing."""
    for field in ("trigger", "instance"):
        times = [getattr(image, field) for image in images]
        if None not in times and len(set(times)) == len(times):
            return [image for _, image in sorted(zip(times, images, strict=True), key=_first)]
    raise RefusedRecord(
        path, "the frames of a slice have neither distinct trigger times nor instance numbers"
    )


def _first(pair: tuple[float, _Image]) -> float:
    return pair[0]
