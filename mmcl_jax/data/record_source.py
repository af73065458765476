"""Reading the records of a cohort, whole ones and damaged ones.

ArrayRecord keeps a checksum of every record and compares it in reading.
"""

import bisect
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import SupportsIndex

import numpy as np
from google.protobuf.message import DecodeError
from jaxtyping import Bool, Int

from mmcl_jax.data.records import FIELDS, decode, open_records
from mmcl_jax.retry import as_os_error, retry, say

# What to do about a record that is damaged.
ON_CORRUPT = ("stop", "skip")


class CorruptRecord(ValueError):
    """A record does not have its checksum, or is none of ours."""


class RecordSource:
    """Random access to the records of one split. Picklable; files are opened on first use.

    Args:
        folder: of the cohort.
        shards: 'file' and 'records' of its files.
        fields: to read.
        names: of the records, for messages.
        on_corrupt: 'stop' raises CorruptRecord at a damaged record; with 'skip', `fill` leaves it
            out and says so.

    Attributes:
        skipped: numbers of the records that were left out so far.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        shards: Sequence[Mapping[str, str | int]],
        fields: Sequence[str] = FIELDS,
        *,
        names: np.ndarray | None = None,
        on_corrupt: str = "stop",
    ):
        if unknown := sorted(set(fields) - set(FIELDS)):
            raise ValueError(
                f"unknown fields {', '.join(unknown)}; a record has {', '.join(FIELDS)}"
            )
        if on_corrupt not in ON_CORRUPT:
            raise ValueError(
                f"data.on_corrupt is {on_corrupt!r}, expected {' or '.join(ON_CORRUPT)}"
            )
        self.fields = tuple(fields)
        self.skipped: set[int] = set()
        self._on_corrupt, self._names = on_corrupt, names
        self._files = [os.fspath(folder / shard["file"]) for shard in shards]
        # Of the first record after each file.
        self._ends = list(itertools.accumulate(shard["records"] for shard in shards))
        self._length = self._ends[-1] if shards else 0
        self._folder, self._shards = folder, shards
        self._records = self._open()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        """Fields of one record (see `decode`).

        Raises:
            IndexError: outside [0, len).
            CorruptRecord: it is damaged, naming record and file.
            OSError: the file cannot be read, also not when tried again for a while.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"record {index} of a split with {self._length} records")
        try:
            return decode(self._read(int(index)), self.fields)
        except (RuntimeError, DecodeError, IndexError, ValueError) as error:
            raise CorruptRecord(self._damage(int(index), error)) from error

    def fill(
        self, arrays: Mapping[str, np.ndarray], rows: Int[np.ndarray, " n"]
    ) -> Bool[np.ndarray, " n"]:
        """Writes record rows[i] to arrays[field][i], for every field of the source.

        Negative rows come last and are skipped: padding stays as it is.

        Returns:
            False where a record is damaged and was left out, see `on_corrupt`; its place stays as
            it is.
        """
        whole = np.ones(len(rows), bool)
        for position, row in enumerate(rows[rows >= 0].tolist()):
            try:
                record = self[row]
            except CorruptRecord as error:
                if self._on_corrupt == "stop":
                    raise
                if row not in self.skipped:
                    say(f"left out: {error}")
                self.skipped.add(row)
                whole[position] = False
                continue
            for name, value in record.items():
                arrays[name][position] = value
        return whole

    def _open(self):
        return open_records(self._folder, self._shards) if self._shards else ()

    def _read(self, index: int) -> bytes:
        def attempt() -> bytes:
            try:
                return self._records[index]
            except RuntimeError as error:
                # A reader that has failed once fails again, or returns something else.
                self._records = self._open()
                if (found := as_os_error(error)) is None:
                    raise
                raise OSError(found.errno, found.strerror, self._place(index)[0]) from error

        return retry(attempt, f"reading record {index}")

    def _place(self, index: int) -> tuple[str, int]:
        """File of a record, and its number there."""
        file = bisect.bisect_right(self._ends, index)
        return self._files[file], index - (self._ends[file - 1] if file else 0)

    def _damage(self, index: int, error: Exception) -> str:
        file, number = self._place(index)
        name = f" ({self._names[index]})" if self._names is not None else ""
        return (
            f"{file}: record {number}{name} is damaged: {str(error).partition(' (')[0]}. Copy the "
            "file again or prepare the cohort again; with data.on_corrupt='skip', training leaves "
            "such records out"
        )


def stand_in(
    arrays: Mapping[str, np.ndarray], whole: Bool[np.ndarray, " n"], rows: Int[np.ndarray, " n"]
) -> None:
    """Puts another of the records where `RecordSource.fill` has left one out.

    The loss does not see it; batch statistics do, and zeros would be no recording.
    """
    others = np.flatnonzero(whole & (rows >= 0))
    if not whole.all() and len(others):
        for array in arrays.values():
            array[: len(rows)][~whole] = array[others[0]]
