"""Reader of WFDB records: a `.hea` header and signal files of integers.

Signals: https://physionet.org/physiotools/wag/signal-5.htm. The signals of one file are
interleaved, and the smallest integer of a format means that nothing was recorded. The `.mat` files
of the CinC challenges are format 16 behind a byte offset.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, UInt8

from mmcl_jax.data.formats.wfdb_header import SignalSpec, header_path, read_header
from mmcl_jax.data.signals.ecg import Recording
from mmcl_jax.data.subject import RefusedRecord


def read(path: str | os.PathLike, seconds: float = math.inf) -> Recording:
    """Reads a record.

    Args:
        path: the header, with or without `.hea`.
        seconds: how much of the record to return; all of it is read and checked.

    Returns:
        The signals in physical units, [C, T] float64, with NaN where nothing was recorded.

    Raises:
        RefusedRecord: a file is absent or truncated, a checksum differs, or the header asks for
            something that is not supported.
    """
    path = header_path(path)
    header = read_header(path)
    wanted = None if math.isinf(seconds) else math.ceil(seconds * header.rate)
    rows = []
    lengths = set()
    # Signals that follow each other in the same file are interleaved there.
    position = 0
    while position < len(header.signals):
        file = header.signals[position].file
        group = [position]
        while group[-1] + 1 < len(header.signals) and header.signals[group[-1] + 1].file == file:
            group.append(group[-1] + 1)
        specs = [header.signals[row] for row in group]
        digital = _read_file(path, specs, header.samples)
        lengths.add(digital.shape[1])
        for spec, samples in zip(specs, digital, strict=True):
            _check_sum(path, spec, samples)
            rows.append(_physical(spec, samples[:wanted]))
        position = group[-1] + 1
    if len(lengths) > 1:
        raise RefusedRecord(path, f"signals of {sorted(lengths)} samples")
    return Recording(
        signal=np.stack(rows),
        names=tuple(spec.name for spec in header.signals),
        units=tuple(spec.unit for spec in header.signals),
        rate=header.rate,
        comments=header.comments,
    )


def _read_file(
    header: pathlib.Path, specs: list[SignalSpec], samples: int
) -> Int[np.ndarray, "C T"]:
    """The integers of one signal file; `samples` 0 means as many as the file holds."""
    formats = {spec.format for spec in specs}
    if unknown := sorted(formats - _CODINGS.keys()):
        raise RefusedRecord(
            header,
            f"signal format {', '.join(unknown)} is not supported; "
            f"{', '.join(_CODINGS)} are, convert the record with xform",
        )
    path = header.with_name(specs[0].file)
    if len(formats) > 1:
        raise RefusedRecord(path, f"signals of formats {', '.join(sorted(formats))} in one file")
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for ever
            raise RefusedRecord(path, "cannot be read: it is no file")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise RefusedRecord(path, "the signal file is absent") from error
    except OSError as error:
        raise RefusedRecord(path, f"cannot be read: {error.strerror or error}") from error
    coding, offset = _CODINGS[specs[0].format], specs[0].offset
    present = max(0, len(content) - offset)
    samples = samples or present * 8 // (coding.bits * len(specs))
    count = samples * len(specs)
    needed = -(-count * coding.bits // 8)  # rounded up
    if present < needed or samples == 0:
        raise RefusedRecord(
            path,
            f"truncated: {offset + needed} bytes expected from the header, {len(content)} found",
        )
    digital = coding.decode(np.frombuffer(content, np.uint8, needed, offset), count)
    return digital.reshape(samples, len(specs)).T


def _check_sum(path: pathlib.Path, spec: SignalSpec, digital: Int[np.ndarray, " T"]) -> None:
    total = int(digital.sum(dtype=np.int64))
    # Headers write the 16-bit sum with or without its sign.
    if spec.checksum is not None and (total - spec.checksum) % 65536:
        raise RefusedRecord(
            path,
            f"checksum of signal {spec.name or '?'} in {spec.file}: {spec.checksum % 65536} "
            f"expected, {total % 65536} found (the file is damaged or belongs to another header)",
        )


def _physical(spec: SignalSpec, digital: Int[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    with np.errstate(over="ignore"):  # an absurd gain: what is infinite counts as missing
        physical = (digital.astype(np.float64) - spec.baseline) / spec.gain
    physical[digital == _CODINGS[spec.format].missing] = np.nan
    return physical


@dataclasses.dataclass(frozen=True)
class _Coding:
    """How a format writes integers: bits per sample, the missing value, bytes to n integers."""

    bits: int
    missing: int
    decode: Callable[[UInt8[np.ndarray, " B"], int], Int[np.ndarray, " n"]]


def _decode_24(content: UInt8[np.ndarray, " B"], count: int) -> Int[np.ndarray, " n"]:
    low, middle, high = content.reshape(count, 3).T.astype(np.int32)
    return low | middle << 8 | high.astype(np.uint8).view(np.int8).astype(np.int32) << 16


def _decode_212(content: UInt8[np.ndarray, " B"], count: int) -> Int[np.ndarray, " n"]:
    """Two 12-bit integers in three bytes; the middle byte holds the upper bits of both."""
    pairs = np.zeros((count + 1) // 2 * 3, np.uint8)
    pairs[: len(content)] = content
    first, middle, second = pairs.reshape(-1, 3).T.astype(np.int16)
    samples = np.stack([first | (middle & 0x0F) << 8, second | (middle & 0xF0) << 4], axis=1)
    # From 12 bits to 16 with the sign.
    return ((samples << 4) >> 4).reshape(-1)[:count]


_CODINGS = {
    "16": _Coding(16, -(2**15), lambda content, _: content.view("<i2")),
    "61": _Coding(16, -(2**15), lambda content, _: content.view(">i2")),
    "160": _Coding(16, -(2**15), lambda content, _: content.view("<u2").astype(np.int32) - 2**15),
    "24": _Coding(24, -(2**23), _decode_24),
    "32": _Coding(32, -(2**31), lambda content, _: content.view("<i4")),
    "80": _Coding(8, -(2**7), lambda content, _: content.astype(np.int16) - 2**7),
    "212": _Coding(12, -(2**11), _decode_212),
}
