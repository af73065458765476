"""What inference reads: the records of files, of a folder or of a cohort, one after another."""

import csv
import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, Float32

from mmcl_jax.data import records
from mmcl_jax.data.cohort import Cohort, open_cohort
from mmcl_jax.data.cohort_format import MARKER
from mmcl_jax.data.formats.ecg_files import EcgFiles
from mmcl_jax.data.preparing.loading import Refused, load_in_order, printable

TEXT = ("record", "file", "subject", "split", "flags", "refused")


@dataclasses.dataclass
class Row:
    """One record.

    Attributes:
        record, subject: see `Subject`; the subject of a file is its record unless told otherwise.
        file: where it was read; '' in a cohort.
        split: of a cohort; '' of a file.
        flags: remarks on its quality, joined by '; '.
        refused: why it cannot be used; '' where it can.
        ecg: preprocessed; None where it is refused.
    """

    record: str
    file: str
    subject: str
    split: str
    flags: str = ""
    refused: str = ""
    ecg: Float32[np.ndarray, "12 T"] | None = None


class Rows(Protocol):
    """Records in an order that stays."""

    def __len__(self) -> int: ...

    def digest(self) -> str:
        """A hash of the names of all records."""
        ...

    def names(self) -> Iterator[str]:
        """The names of all records."""
        ...

    def read(self, start: int, workers: int) -> Iterator[Row]:
        """The records from number `start` on; `workers` processes read them where it takes any."""
        ...

    def measured(self, number: int) -> Float[np.ndarray, "12 t"] | None:
        """A record in mV, before its preprocessing; None where only the preprocessed one is kept.

        Raises:
            RefusedRecord: it cannot be read.
        """
        ...


class FileRows:
    """The ECGs of `EcgFiles`, preprocessed on the way."""

    def __init__(self, source: EcgFiles):
        self._source = source

    def __len__(self) -> int:
        return len(self._source.tasks)

    def digest(self) -> str:
        return _digest(f"{task.path}/{task.row}" for task in self._source.tasks)

    def names(self) -> Iterator[str]:
        return (printable(task.record) for task in self._source.tasks)

    def read(self, start: int, workers: int) -> Iterator[Row]:
        tasks = self._source.tasks
        rest = (tasks[number] for number in range(start, len(tasks)))
        found = load_in_order(self._source, workers, rest)
        for number, entry in enumerate(found, start):
            task = tasks[number]
            row = Row(
                record=printable(task.record),
                file=printable(os.fspath(task.path)),
                subject=printable(task.subject),
                split="",
            )
            if isinstance(entry, Refused):
                row.refused = _in_one_line(entry.reason)
            else:
                row.flags = "; ".join(entry.flags)
                row.ecg = records.decode(entry.payload, ("ecg",))["ecg"]
            yield row

    def measured(self, number: int) -> Float[np.ndarray, "12 t"] | None:
        return self._source.measured(self._source.tasks[number])


class CohortRows:
    """The records of a cohort, split by split."""

    def __init__(self, cohort: Cohort, splits: Sequence[str]):
        self._cohort = cohort
        self._tables = {split: cohort.table(split) for split in splits}

    def __len__(self) -> int:
        return sum(len(table["record"]) for table in self._tables.values())

    def digest(self) -> str:
        return _digest([self._cohort.settings_hash, *self.names()])

    def names(self) -> Iterator[str]:
        return (name for table in self._tables.values() for name in table["record"].tolist())

    def read(self, start: int, workers: int) -> Iterator[Row]:
        del workers
        flags = _flags(self._cohort.path)
        for split, table in self._tables.items():
            size = len(table["record"])
            source = self._cohort.source(split, ("ecg",))
            for number in range(start, size):
                record = str(table["record"][number])
                row = Row(record, "", str(table["subject"][number]), split)
                row.flags = "; ".join(flags.get(record, ()))
                if table["has_ecg"][number]:
                    row.ecg = source[number]["ecg"]
                else:
                    row.refused = "the record has no ECG"
                yield row
            start = max(0, start - size)

    def measured(self, number: int) -> None:
        return None


def find(rows: Rows, record: str) -> int:
    """Number of the record of that name; '' for the only one that there is.

    Raises:
        ValueError: there is no such record, or there are several and none is named.
    """
    if not record and len(rows) == 1:
        return 0
    for number, name in enumerate(rows.names()):
        if name == record:
            return number
    found = f"no record {record!r}" if record else f"{len(rows):,} records, and none is named"
    some = ", ".join(itertools.islice(rows.names(), 3))
    raise ValueError(f"the input has {found}; name one of them with --record, such as {some}")


def is_cohort(path: str | os.PathLike) -> bool:
    return (pathlib.Path(path) / MARKER).is_file()


def cohort_rows(path: str | os.PathLike, splits: Sequence[str]) -> tuple[Cohort, CohortRows]:
    """An opened cohort and its records, of all splits where none is named."""
    cohort = open_cohort(path)
    return cohort, CohortRows(cohort, splits or tuple(cohort.splits))


def _flags(folder: pathlib.Path) -> dict[str, list[str]]:
    """Remarks of the preparation by record."""
    found: dict[str, list[str]] = {}
    file = folder / "flagged.csv"
    if file.is_file():
        with file.open(newline="", encoding="utf-8") as lines:
            for line in csv.DictReader(lines):
                found.setdefault(line["record"], []).append(line["remark"])
    return found


def _digest(names: Iterable[str]) -> str:
    found = hashlib.sha256()
    for name in names:
        found.update(name.encode(errors="surrogateescape") + b"\0")
    return found.hexdigest()


def _in_one_line(text: str) -> str:
    return " ".join(text.split())
