"""Reader of resting ECGs in the XML of GE CardioSoft, as UK Biobank delivers its field 20205.

The element `StripData` holds the recording: a rate, a resolution and one `WaveformData` per lead,
integers separated by commas over several lines. The file holds other waveforms before and after
it (`MedianSamples`, `VectorLoops`, `FullDisclosure`); none of them is read.
"""

import os
import pathlib
import re
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from jaxtyping import Float

from mmcl_jax.data.signals.ecg import Recording
from mmcl_jax.data.subject import RefusedRecord

try:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring
except ImportError as error:
    raise ImportError("ECGs in XML files need defusedxml: pip install 'mmcl_jax[ukb]'") from error


def read(path: str | os.PathLike) -> Recording:
    """Reads the recording of a file.

    Empty fields between commas are missing samples where they are needed to reach the declared
    number of samples, and otherwise nothing.

    Returns:
        The signals in uV, [C, T] float64, with NaN where a sample is missing.

    Raises:
        RefusedRecord: the file is absent, no XML of this kind, declares a document type, or its
            recording is incomplete or contradicts itself.
    """
    strip = _strip(path, _root(path))
    rate = _number(path, strip, "SampleRate", "Hz")
    resolution = _number(path, strip, "Resolution", "uVperLsb")
    count = _declared_count(path, strip)
    rows: dict[str, np.ndarray] = {}
    for waveform in strip.findall("WaveformData"):
        lead = (waveform.get("lead") or "").strip()
        if not lead or lead in rows:
            raise RefusedRecord(
                path,
                f"WaveformData {len(rows) + 1} of StripData has the lead name {lead!r}, "
                "expected another name for every waveform",
            )
        rows[lead] = _samples(path, lead, waveform.text or "", count)
    if not rows:
        raise RefusedRecord(path, "StripData has no WaveformData, expected one per lead")
    lengths = {len(row): lead for lead, row in rows.items()}
    if len(lengths) > 1:
        found = ", ".join(f"{lead} {length}" for length, lead in lengths.items())
        raise RefusedRecord(path, f"leads of different numbers of samples: {found}")
    signal = np.stack(list(rows.values())) * resolution
    return Recording(signal, names=tuple(rows), units=("uV",) * len(rows), rate=rate)


_MAX_SIZE = 16 * 2**20  # bytes; a file of UK Biobank has about 1 MB


def _root(path: str | os.PathLike) -> Element:
    path = pathlib.Path(path)
    try:
        size = path.stat().st_size
        if not 0 < size <= _MAX_SIZE:
            raise RefusedRecord(
                path, f"{size:,} bytes, expected an ECG of at most {_MAX_SIZE // 2**20} MiB"
            )
        root = fromstring(path.read_bytes(), forbid_dtd=True)
    except FileNotFoundError as error:
        raise RefusedRecord(path, "the ECG is absent") from error
    except OSError as error:
        raise RefusedRecord(path, f"cannot be read: {error.strerror or error}") from error
    except DefusedXmlException as error:
        raise RefusedRecord(
            path, "declares a document type or entities, which no ECG needs; refused unread"
        ) from error
    # LookupError and ValueError: an encoding that the parser does not know.
    except (ParseError, LookupError, ValueError) as error:
        raise RefusedRecord(path, f"not readable XML: {error}") from error
    if root.tag != "CardiologyXML":
        raise RefusedRecord(
            path, f"root element is {root.tag!r}, expected 'CardiologyXML' (GE CardioSoft)"
        )
    return root


def _strip(path: str | os.PathLike, root: Element) -> Element:
    strips = root.findall("StripData")
    if len(strips) != 1:
        raise RefusedRecord(
            path,
            f"{len(strips)} elements StripData, expected one (the 10 s recording; the medians of "
            "RestingECGMeasurements are no substitute)",
        )
    return strips[0]


def _number(path: str | os.PathLike, strip: Element, name: str, unit: str) -> float:
    """The positive number in an element of StripData that must have a certain unit."""
    element = strip.find(name)
    if element is None:
        raise RefusedRecord(path, f"StripData has no {name}")
    found = (element.get("units") or "").strip()
    if found.lower() != unit.lower():
        raise RefusedRecord(path, f"{name} of StripData has the unit {found!r}, expected {unit!r}")
    text = (element.text or "").strip()
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    if not 0 < number < np.inf:
        raise RefusedRecord(path, f"{name} of StripData is {text!r}, expected a positive number")
    return number


def _declared_count(path: str | os.PathLike, strip: Element) -> int | None:
    """Samples per lead as the file states them, None where it does not."""
    text = (strip.findtext("ChannelSampleCountTotal") or "").strip()
    if not text:
        return None
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise RefusedRecord(
            path, f"ChannelSampleCountTotal of StripData is {text!r}, expected a positive integer"
        )
    return int(text)


def _samples(
    path: str | os.PathLike, lead: str, text: str, count: int | None
) -> Float[np.ndarray, " T"]:
    """The numbers of one lead; `count` of them where it is given."""
    fields = text.split(",")
    try:
        # `float` ignores white space. Most files have no empty field.
        numbers = [float(field) for field in fields]
    except ValueError:
        numbers = [_number_or_gap(path, lead, place, f) for place, f in enumerate(fields, start=1)]
        filled = [number for number in numbers if number is not None]
        if len(filled) == count:
            numbers = filled
        while numbers and numbers[-1] is None:
            numbers.pop()
    if not numbers or len(numbers) != (count or len(numbers)):
        stated = f"{count} (ChannelSampleCountTotal)" if count else "some"
        raise RefusedRecord(path, f"lead {lead}: {len(numbers)} samples, expected {stated}")
    return np.array(numbers, dtype=np.float64)  # None becomes NaN


def _number_or_gap(path: str | os.PathLike, lead: str, place: int, field: str) -> float | None:
    """The value of a field, None where it is empty."""
    if not field.strip():
        return None
    try:
        return float(field)
    except ValueError:
        shown = field.strip()[:20]
        raise RefusedRecord(path, f"lead {lead}: sample {place} is {shown!r}, no number") from None
