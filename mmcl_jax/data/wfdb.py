"""Reader of WFDB records: a `.hea` header and signal files in format 16.

Header: https://physionet.org/physiotools/wag/header-5.htm, signals: signal-5.htm. Format 16 is a
little-endian 16-bit integer per sample, the signals of one file interleaved; -32768 means that
nothing was recorded. The `.mat` files of the CinC challenges are the same behind a byte offset.
"""

import dataclasses
import os
import pathlib
import re

import numpy as np
from jaxtyping import Float, Int16

from mmcl_jax.data.ecg import Recording
from mmcl_jax.data.subject import RefusedRecord


@dataclasses.dataclass(frozen=True)
class SignalSpec:
    """One signal line of a header.

    Attributes:
        file: name of the signal file, beside the header.
        offset: bytes before the first sample in that file.
        gain: integer steps per unit.
        baseline: integer that stands for 0 in the unit.
        unit: physical unit as spelled.
        checksum: sum of all samples modulo 65536; None when the line does not give it.
        name: description of the signal, for an ECG the name of the lead.
    """

    file: str
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


def read(path: str | os.PathLike) -> Recording:
    """Reads a record.

    Args:
        path: the header, with or without `.hea`.

    Returns:
        The signals in physical units, [C, T] float64, with NaN where nothing was recorded.

    Raises:
        RefusedRecord: a file is absent or truncated, a checksum differs, or the header asks for
            something that is not supported.
    """
    path = _header_path(path)
    header = read_header(path)
    rows = []
    # Signals that follow each other in the same file are interleaved there.
    position = 0
    while position < len(header.signals):
        file = header.signals[position].file
        group = [position]
        while group[-1] + 1 < len(header.signals) and header.signals[group[-1] + 1].file == file:
            group.append(group[-1] + 1)
        specs = [header.signals[row] for row in group]
        digital = _read_file(path.with_name(file), specs, header.samples)
        for spec, samples in zip(specs, digital, strict=True):
            rows.append(_physical(path, spec, samples))
        position = group[-1] + 1
    if len({len(row) for row in rows}) > 1:
        raise RefusedRecord(path, f"signals of {sorted({len(row) for row in rows})} samples")
    return Recording(
        signal=np.stack(rows),
        names=tuple(spec.name for spec in header.signals),
        units=tuple(spec.unit for spec in header.signals),
        rate=header.rate,
        comments=header.comments,
    )


def read_header(path: str | os.PathLike) -> Header:
    """Reads a header. Raises RefusedRecord naming the line that cannot be used."""
    path = _header_path(path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise RefusedRecord(path, "the header is absent") from error
    except OSError as error:
        raise RefusedRecord(path, f"cannot be read: {error.strerror or error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    comments = tuple(line[1:].strip() for line in lines if line.startswith("#"))
    lines = [line for line in lines if not line.startswith("#")]
    if not lines:
        raise RefusedRecord(path, "the header is empty")
    count, rate, samples = _parse_record_line(path, lines[0])
    if len(lines) != 1 + count:
        raise RefusedRecord(path, f"{len(lines) - 1} signal lines, the first line says {count}")
    signals = tuple(_parse_signal_line(path, line) for line in lines[1:])
    return Header(rate=rate, samples=samples, signals=signals, comments=comments)


def _header_path(path: str | os.PathLike) -> pathlib.Path:
    path = pathlib.Path(path)
    # `with_suffix` would cut a record name such as `subject.1`.
    return path if path.suffix == ".hea" else path.with_name(path.name + ".hea")


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
        raise RefusedRecord(path, f"unreadable record line {line!r}") from error
    if count < 1 or rate <= 0 or samples < 0:
        raise RefusedRecord(path, f"no signals, rate or samples in the record line {line!r}")
    return count, rate, samples


def _parse_signal_line(path: pathlib.Path, line: str) -> SignalSpec:
    """file format [gain [resolution [zero [first value [checksum [block size [name]]]]]]]"""
    fields = line.split(maxsplit=8)
    layout = _FORMAT.fullmatch(fields[1]) if len(fields) > 1 else None
    scale = _GAIN.fullmatch(fields[2] if len(fields) > 2 else "")
    if layout is None or scale is None:
        raise RefusedRecord(path, f"unreadable signal line {line!r}")
    if layout["format"] != "16":
        raise RefusedRecord(path, f"signal format {layout['format']} is not supported, only 16 is")
    if layout["frames"] not in (None, "1") or layout["skew"] not in (None, "0"):
        raise RefusedRecord(path, f"several samples per frame or a skew, as in {fields[1]!r}")
    if pathlib.PurePath(fields[0]).name != fields[0] or fields[0] == "-":
        raise RefusedRecord(path, f"signal file {fields[0]!r} is not a file beside the header")
    try:
        zero = int(fields[4]) if len(fields) > 4 else 0
        checksum = int(fields[6]) if len(fields) > 6 else None
        gain = float(scale["gain"] or 0)
    except ValueError as error:
        raise RefusedRecord(path, f"unreadable signal line {line!r}") from error
    return SignalSpec(
        file=fields[0],
        offset=int(layout["offset"] or 0),
        # A gain of 0 means that it is not known; the format then assumes 200.
        gain=gain or 200.0,
        baseline=int(scale["baseline"]) if scale["baseline"] else zero,
        unit=scale["unit"] or "mV",
        checksum=checksum,
        name=fields[8] if len(fields) > 8 else "",
    )


_FORMAT = re.compile(r"(?P<format>\d+)(x(?P<frames>\d+))?(:(?P<skew>\d+))?(\+(?P<offset>\d+))?")
_GAIN = re.compile(r"(?P<gain>[-+\d.eE]+)?(\((?P<baseline>-?\d+)\))?(/(?P<unit>\S+))?")
_MISSING = -32768


def _read_file(
    path: pathlib.Path, specs: list[SignalSpec], samples: int
) -> Int16[np.ndarray, "C T"]:
    """The integers of one signal file; `samples` 0 means as many as the file holds."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise RefusedRecord(path, "the signal file is absent") from error
    except OSError as error:
        raise RefusedRecord(path, f"cannot be read: {error.strerror or error}") from error
    offset = specs[0].offset
    frame = 2 * len(specs)
    samples = samples or max(0, len(content) - offset) // frame
    expected = offset + samples * frame
    if len(content) < expected or samples == 0:
        raise RefusedRecord(
            path, f"truncated: {expected} bytes expected from the header, {len(content)} found"
        )
    digital = np.frombuffer(content, dtype="<i2", count=samples * len(specs), offset=offset)
    return digital.reshape(samples, len(specs)).T


def _physical(
    path: pathlib.Path, spec: SignalSpec, digital: Int16[np.ndarray, "T"]
) -> Float[np.ndarray, "T"]:
    """Checks the sum of a signal and converts it to its unit."""
    total = int(digital.sum(dtype=np.int64))
    # Headers write the 16-bit sum with or without its sign.
    if spec.checksum is not None and (total - spec.checksum) % 65536:
        raise RefusedRecord(
            path,
            f"checksum of signal {spec.name or '?'} in {spec.file}: {spec.checksum % 65536} "
            f"expected, {total % 65536} found (the file is damaged or belongs to another header)",
        )
    physical = (digital.astype(np.float64) - spec.baseline) / spec.gain
    physical[digital == _MISSING] = np.nan
    return physical
