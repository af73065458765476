"""WFDB headers: what the `.hea` file of a record says about its signals.

https://physionet.org/physiotools/wag/header-5.htm. A header is text of unknown origin: whatever is
wrong with it refuses the record, and a signal file can only be one beside the header.
"""

import dataclasses
import math
import os
import pathlib
import re

from mmcl_jax.data.formats.folders import files_below
from mmcl_jax.data.subject import RefusedRecord


@dataclasses.dataclass(frozen=True)
class SignalSpec:
    """One signal line of a header.

    Attributes:
        file: name of the signal file, beside the header.
        format: how the samples are coded, such as '16' or '212'.
        offset: bytes before the first sample in that file.
        gain: integer steps per unit.
        baseline: integer that stands for 0 in the unit.
        unit: physical unit as spelled.
        checksum: sum of all samples modulo 65536; None when the line does not give it.
        name: description of the signal, for an ECG the name of the lead.
    """

    file: str
    format: str
    offset: int
    gain: float
    baseline: int
    unit: str
    checksum: int | None
    name: str


@dataclasses.dataclass(frozen=True)
class Header:
    """A header: samples per second, samples per signal (0 when not stated), signals, comments."""

    rate: float
    samples: int
    signals: tuple[SignalSpec, ...]
    comments: tuple[str, ...]


def read_header(path: str | os.PathLike) -> Header:
    """Reads a header. Raises RefusedRecord naming the line that cannot be used."""
    path = header_path(path)
    lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
    comments = tuple(_readable(line[1:].strip()) for line in lines if line.startswith("#"))
    lines = [line for line in lines if not line.startswith("#")]
    if not lines:
        raise RefusedRecord(path, "the header is empty")
    count, rate, samples = _parse_record_line(path, lines[0])
    if len(lines) != 1 + count:
        raise RefusedRecord(path, f"{len(lines) - 1} signal lines, the first line says {count}")
    signals = tuple(_parse_signal_line(path, line) for line in lines[1:])
    return Header(rate=rate, samples=samples, signals=signals, comments=comments)


def header_path(path: str | os.PathLike) -> pathlib.Path:
    """The path of a header that may be given without `.hea`."""
    path = pathlib.Path(path)
    # `with_suffix` would cut a record name such as `subject.1`.
    return path if path.suffix == ".hea" else path.with_name(path.name + ".hea")


def find_headers(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The `.hea` files of a folder and of the folders in it, sorted; links are followed.

    Raises:
        FileNotFoundError: it is no folder, or there is none.
        OSError: a folder in it cannot be read.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; expected the folder of the records")
    paths = sorted(path for path in files_below(folder, (".hea",)) if path.suffix == ".hea")
    if not paths:
        raise FileNotFoundError(f"{folder} holds no .hea file; expected one per record")
    return paths


_LONGEST = 2**20  # bytes; a header has a line per signal


def _text(path: pathlib.Path) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for ever
            raise RefusedRecord(path, "cannot be read: it is no file")
        with path.open("rb") as file:
            content = file.read(_LONGEST + 1)
    except FileNotFoundError as error:
        raise RefusedRecord(path, "the header is absent") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise RefusedRecord(path, f"cannot be read: {error}") from error
    if len(content) > _LONGEST:
        raise RefusedRecord(path, "is no header: more than a megabyte")
    # Bytes that are not UTF-8 stay what they are in the name of a file.
    return content.decode("utf-8-sig", errors="surrogateescape")


def _readable(text: str) -> str:
    """Text for people: what is not UTF-8 is taken for Latin-1, which older recorders write."""
    content = text.encode("utf-8", "surrogateescape")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _parse_record_line(path: pathlib.Path, line: str) -> tuple[int, float, int]:
    """Number of signals, samples per second (250 unless stated) and samples per signal."""
    fields = line.split()
    if "/" in fields[0]:
        raise RefusedRecord(path, "a record of several segments, which is not supported")
    try:
        count = int(fields[1])
        # 'frequency/counter frequency(base counter)': only the first part concerns the samples.
        rate = float(re.split(r"[/(]", fields[2])[0]) if len(fields) > 2 else 250.0
        samples = int(fields[3]) if len(fields) > 3 else 0
    except (IndexError, ValueError) as error:
        raise RefusedRecord(path, f"unreadable record line {_short(line)}") from error
    if count < 1 or not 0 < rate < math.inf or samples < 0:
        raise RefusedRecord(path, f"no signals, rate or samples in the record line {_short(line)}")
    return count, rate, samples


def _parse_signal_line(path: pathlib.Path, line: str) -> SignalSpec:
    """file format [gain [resolution [zero [first value [checksum [block size [name]]]]]]]"""
    fields = line.split(maxsplit=8)
    layout = _FORMAT.fullmatch(fields[1]) if len(fields) > 1 else None
    scale = _GAIN.fullmatch(fields[2] if len(fields) > 2 else "")
    if layout is None or scale is None:
        raise RefusedRecord(path, f"unreadable signal line {_short(line)}")
    if layout["frames"] not in (None, "1") or layout["skew"] not in (None, "0"):
        raise RefusedRecord(path, f"several samples per frame or a skew, as in {fields[1]!r}")
    if not _is_beside(fields[0]):
        raise RefusedRecord(path, f"signal file {fields[0]!r} is not a file beside the header")
    try:
        baseline = int(scale["baseline"] or (fields[4] if len(fields) > 4 else 0))
        if abs(baseline) > 2**32:
            raise ValueError("no format has integers as large")
        return SignalSpec(
            file=fields[0],
            format=layout["format"],
            offset=int(layout["offset"] or 0),
            # A gain of 0 means that it is not known; the format then assumes 200.
            gain=float(scale["gain"] or 0) or 200.0,
            # The ADC zero stands in for an absent baseline.
            baseline=baseline,
            unit=_readable(scale["unit"] or "mV"),
            checksum=int(fields[6]) if len(fields) > 6 else None,
            name=_readable(fields[8]) if len(fields) > 8 else "",
        )
    except ValueError as error:
        raise RefusedRecord(path, f"unreadable signal line {_short(line)}") from error


_FORMAT = re.compile(r"(?P<format>\d+)(x(?P<frames>\d+))?(:(?P<skew>\d+))?(\+(?P<offset>\d+))?")
_GAIN = re.compile(r"(?P<gain>[-+\d.eE]+)?(\((?P<baseline>-?\d+)\))?(/(?P<unit>\S+))?")


def _is_beside(file: str) -> bool:
    """Whether a name is that of a file in the folder of the header; '-' and '~' are no files."""
    return pathlib.PurePath(file).name == file and file not in ("-", "~", "..") and "\0" not in file


def _short(line: str, most: int = 80) -> str:
    return repr(line if len(line) <= most else line[:most] + "...")
