"""MR images of a zip of DICOM files: where each lies, when it was taken, and its pixels.

Nothing is unpacked to disk. The zip is checked before a file of it is read, and pixels are decoded
only when they are asked for. Classic files hold one image, enhanced ones hold many.
"""

import collections
import dataclasses
import io
import math
import os
import pathlib
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from mmcl_jax.data.subject import RefusedRecord

try:
    import pydicom
    from pydicom import pixels as pydicom_pixels
    from pydicom.errors import BytesLengthException, InvalidDicomError
except ImportError as error:
    raise ImportError("DICOM files need pydicom: pip install 'mmcl_jax[dicom]'") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """One grey MR image with a place in space.

    Attributes:
        member: name of its file in the zip.
        dataset: the file; `index` is the frame where it holds several.
        orientation: directions of a row and of a column.
        position: of the first pixel, in mm.
        spacing: distance between rows and between columns in mm.
        shape: rows and columns.
        series: number, identifier and type of its series.
        trigger: ms after the R wave.
        number: of the image in its series, or of the frame in its file.
        scale: factor and summand from stored to real values.
    """

    member: str
    dataset: pydicom.Dataset
    index: int | None
    orientation: Float[np.ndarray, "6"]
    position: Float[np.ndarray, "3"]
    spacing: tuple[float, float]
    shape: tuple[int, int]
    series: tuple[int, str, str]
    trigger: float | None
    number: int | None
    scale: tuple[float, float]


def read_zip(path: str | os.PathLike) -> tuple[list[Image], dict[str, int]]:
    """The images of a zip, and how many of its other files were left out for which reason.

    Raises:
        RefusedRecord: the zip is absent, damaged, encrypted, too large or names files outside
            itself, or an image in it is damaged.
    """
    images: list[Image] = []
    left_out: collections.Counter[str] = collections.Counter()
    for member, content in _members(path):
        if pathlib.PurePath(member).name.lower().startswith("manifest."):
            continue
        # Some scanners write identifiers that break the standard; none of them is used here.
        with pydicom.config.disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                images += _images(member, content)
            except _LeftOut as reason:
                left_out[str(reason)] += 1
            except _DAMAGED as error:
                raise RefusedRecord(path, f"{member} in the zip: {_brief(error)}") from error
    return images, dict(left_out)


def decode(path: str | os.PathLike, image: Image) -> Float32[np.ndarray, "H W"]:
    """Real values of the pixels of an image.

    Args:
        path: the zip, named in the refusal.

    Raises:
        RefusedRecord: they are damaged, or compressed in a way that no installed library decodes.
    """
    where = f"{image.member} in the zip"
    syntax = None
    try:
        with pydicom.config.disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            syntax = image.dataset.file_meta.TransferSyntaxUID
            if not pydicom_pixels.get_decoder(syntax).is_available:
                raise RefusedRecord(
                    path,
                    f"{where} is compressed as {syntax.name} ({syntax}), for which no decoder is "
                    "installed; install one (pip install pylibjpeg pylibjpeg-libjpeg "
                    "pylibjpeg-openjpeg) or decompress the files (gdcmconv --raw)",
                )
            stored = pydicom_pixels.pixel_array(image.dataset, index=image.index)
    except NotImplementedError as error:
        raise RefusedRecord(
            path, f"{where} is compressed as {syntax}, which is not supported"
        ) from error
    except _DAMAGED as error:
        raise RefusedRecord(path, f"{where}: {_brief(error)}") from error
    if stored.shape != image.shape:
        raise RefusedRecord(path, f"{where} has {stored.shape} pixels, expected {image.shape}")
    factor, summand = image.scale
    return stored * np.float32(factor) + np.float32(summand)


_MAX_MEMBERS = 20_000
_MAX_MEMBER = 256 * 2**20  # bytes: an enhanced file holds a whole stack
_MAX_TOTAL = 768 * 2**20  # bytes; a zip of UK Biobank has about 40 MB
_MAX_SIDE = 2048  # pixels
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_DEFLATED = str(pydicom.uid.DeflatedExplicitVRLittleEndian).encode()
# What pydicom raises for truncated, contradictory or compressed files that it cannot decode.
_DAMAGED = (
    *(ValueError, TypeError, AttributeError, LookupError, EOFError, RuntimeError, OSError),
    *(struct.error, zlib.error, BytesLengthException),
)
_NO_PLACE = "without position, orientation or pixel size"
_NO_MAGNITUDE = {"P", "PHASE", "PHASE MAP", "V", "VELOCITY", "R", "REAL", "I", "IMAGINARY"}


class _LeftOut(Exception):
    """A file that is no image of a cine, and why."""


def _members(path: str | os.PathLike) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file of a zip."""
    try:
        if os.path.getsize(path) == 0:
            raise RefusedRecord(path, "the zip has 0 bytes")
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check_members(path, members)
            for member in members:
                with archive.open(member) as file:
                    # A size keeps a file that is larger than the zip says from being inflated.
                    yield member.filename, file.read(member.file_size + 1)
    except FileNotFoundError as error:
        raise RefusedRecord(path, "the zip is absent") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise RefusedRecord(path, f"not a readable zip: {error}") from error
    except OSError as error:
        raise RefusedRecord(path, f"cannot be read: {error.strerror or error}") from error
    except (ValueError, struct.error) as error:
        raise RefusedRecord(path, f"not a readable zip: {error}") from error


def _check_members(path: str | os.PathLike, members: Sequence[zipfile.ZipInfo]) -> None:
    total = sum(member.file_size for member in members)
    large = any(member.file_size > _MAX_MEMBER for member in members)
    if total > _MAX_TOTAL or large or len(members) > _MAX_MEMBERS:
        raise RefusedRecord(
            path,
            f"{len(members):,} files of {total / 2**20:,.0f} MiB unpacked, more than a cine needs",
        )
    for member in members:
        name = member.filename
        parts = re.split(r"[/\\]", member.filename)
        if ".." in parts or parts[0] == "" or re.match(r"[A-Za-z]:", parts[0]):
            raise RefusedRecord(path, f"the zip names a file outside itself: {name!r}")
        if member.flag_bits & 1:
            raise RefusedRecord(
                path, f"{name} in the zip is encrypted; zip the files again without a password"
            )
        if member.compress_type not in _METHODS:
            raise RefusedRecord(
                path,
                f"{name} in the zip is packed with method {member.compress_type}, "
                "expected 0 (stored) or 8 (deflated)",
            )


def _images(member: str, content: bytes) -> list[Image]:
    """The images of one file. Raises _LeftOut where it has none that a cine could consist of."""
    if content[:2] == b"PK":
        raise _LeftOut("zips within the zip, not opened")
    # Anywhere: what stands before the transfer syntax may be of any length.
    if _DEFLATED in content:
        raise _LeftOut("deflated DICOM files, not supported")
    try:
        dataset = pydicom.dcmread(io.BytesIO(content))
    except InvalidDicomError as error:
        raise _LeftOut("not DICOM") from error
    if "PixelData" not in dataset:
        raise _LeftOut("without pixels")
    grey = dataset.get("PhotometricInterpretation", "MONOCHROME2") == "MONOCHROME2"
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or not grey:
        raise _LeftOut("not grey images (MONOCHROME2)")
    if "InlineVF" in str(dataset.get("SeriesDescription")):
        raise _LeftOut("with contours drawn in (InlineVF)")
    kind = [str(value).upper() for value in dataset.get("ImageType") or ()]
    if _NO_MAGNITUDE & set(kind[2:]):
        raise _LeftOut("not magnitude images")
    if not 0 < max(int(dataset.Rows), int(dataset.Columns)) <= _MAX_SIDE:
        raise _LeftOut(f"of more than {_MAX_SIDE} pixels a side")
    return [_image(member, dataset, kind, index) for index in _indices(dataset)]


def _indices(dataset: pydicom.Dataset) -> Sequence[int | None]:
    """Numbers of the frames of an enhanced file; None alone for a classic one."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    # Some programs add an empty group to classic files.
    if frames == 1 and ("ImagePositionPatient" in dataset or not groups):
        return [None]
    if len(groups) != frames:
        raise _LeftOut("of several frames without the place of each")
    return range(frames)


def _image(member: str, dataset: pydicom.Dataset, kind: list[str], index: int | None) -> Image:
    def value(sequence: str, keyword: str) -> Any:
        return _frame_value(dataset, index, sequence, keyword)

    orientation = _numbers(value("PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    position = _numbers(value("PlanePositionSequence", "ImagePositionPatient"), 3)
    spacing = _numbers(value("PixelMeasuresSequence", "PixelSpacing"), 2)
    if orientation is None or position is None or spacing is None or spacing.min() <= 0:
        raise _LeftOut(_NO_PLACE)
    axes = orientation.reshape(2, 3)
    # Unit vectors at right angles, but for rounding.
    if np.abs(axes @ axes.T - np.eye(2)).max() > 0.05:
        raise _LeftOut(_NO_PLACE)

    if index is None:
        trigger, number = dataset.get("TriggerTime"), dataset.get("InstanceNumber")
    else:
        trigger = value("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime")
        number = index + 1
    slope = value("PixelValueTransformationSequence", "RescaleSlope")
    intercept = value("PixelValueTransformationSequence", "RescaleIntercept")
    # Empty elements are None or ''.
    scale = (float(slope or 1), float(intercept or 0))
    if not np.isfinite(scale).all():
        raise ValueError(f"RescaleSlope is {slope}, RescaleIntercept {intercept}, expected numbers")
    return Image(
        member=member,
        dataset=dataset,
        index=index,
        orientation=orientation,
        position=position,
        spacing=(float(spacing[0]), float(spacing[1])),
        shape=(int(dataset.Rows), int(dataset.Columns)),
        series=(
            int(dataset.get("SeriesNumber") or 0),
            str(dataset.get("SeriesInstanceUID")),
            "\\".join(kind),
        ),
        trigger=None if trigger in (None, "") or math.isnan(float(trigger)) else float(trigger),
        number=None if number in (None, "") else int(number),
        scale=scale,
    )


def _frame_value(dataset: pydicom.Dataset, index: int | None, sequence: str, keyword: str) -> Any:
    """An element of an image; enhanced files keep it in a sequence of the frame or of all."""
    if index is None:
        return dataset.get(keyword)
    groups = [dataset.PerFrameFunctionalGroupsSequence[index]]
    groups += list(dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
    for group in groups:
        if items := group.get(sequence):
            return items[0].get(keyword)
    return None


def _numbers(value: Any, count: int) -> Float[np.ndarray, " n"] | None:
    """The numbers of an element, None where they are not `count` finite ones."""
    if value in (None, "") or isinstance(value, str | float):
        return None
    numbers = np.array([float(entry) for entry in value])
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _brief(error: Exception) -> str:
    """The message of an error; those of pydicom may quote the whole file, or hold addresses."""
    text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(error).split()))
    return text if len(text) <= 200 else f"{text[:200]}..."
