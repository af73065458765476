"""ECGs in any file that the preparation reads, without labels: what inference is made of.

WFDB records (`.hea`), CardioSoft XML, and arrays in `.npy`, `.npz`, HDF5 and `.pt`: one ECG
[12, samples], or one per row [N, 12, samples].
"""

import bisect
import functools
import importlib
import itertools
import os
import pathlib
import re
from typing import Any

import numpy as np
from jaxtyping import Float

from mmcl_jax.data.formats import arrays, wfdb
from mmcl_jax.data.formats.folders import files_below
from mmcl_jax.data.signals.ecg import DEFAULT, EcgSettings, Recording, standardise
from mmcl_jax.data.subject import Subject
from mmcl_jax.data.tasks.row_task import RowTask, RowTasks, signals

SUFFIXES = (".hea", ".xml", *arrays.SUFFIXES)


class EcgFiles:
    """Source of the ECGs of one file, or of all files in a folder and in the folders below it.

    A record goes by its path below the folder without suffix, with `[row]` behind it where an
    array holds several. Files with other suffixes do not count. A file that cannot be opened is
    one record, which `load` refuses; so is an array among other files without rate and unit.

    Args:
        path: the file or folder; a WFDB record also without `.hea`, or by its signal file.
        array: name of the array where a file holds several.
        rate, unit, leads, preprocessed: of the arrays, see `row_task.signals`; the other files
            say it themselves.
        subject_pattern: regular expression for the subject in the name of a record, its first
            group where it has one; without it every record is a person of its own.
        shortest: least length in seconds.
        settings: of the preprocessing.

    Raises:
        FileNotFoundError: there is no such path, or no file that may hold an ECG.
        ValueError: it is a file of another kind, or an option is missing or wrong.
        ImportError: the reader of a file is not installed.
    """

    name = "files"
    labels = ()

    def __init__(
        self,
        path: str | os.PathLike,
        array: str = "",
        *,
        rate: float = 0.0,
        unit: str = "",
        leads: str = "",
        preprocessed: bool = False,
        subject_pattern: str | None = None,
        shortest: float = 10.0,
        settings: EcgSettings = DEFAULT,
    ):
        self._folder, self._files = _find(pathlib.Path(path))
        try:
            self._pattern = re.compile(subject_pattern) if subject_pattern else None
        except re.error as error:
            raise ValueError(f"subject pattern {subject_pattern!r}: {error}") from error
        if any(_suffix(file) == ".xml" for file in self._files):
            # Says so now, and not for each file, where its extra is not installed.
            importlib.import_module("mmcl_jax.data.formats.cardiosoft")
        are_arrays = [_suffix(file) in arrays.SUFFIXES for file in self._files]
        needed = all(are_arrays)
        self._signals = signals(leads, rate, unit, preprocessed, shortest, settings, needed=needed)
        self._declared = bool((rate and unit) or preprocessed)
        self._array = array
        self._refusals: dict[int, str] = {}
        counts = [self._count(number) for number in range(len(self._files))]
        self._single = [count is None for count in counts]
        # Number of records before each file.
        ends = itertools.accumulate(1 if count is None else count for count in counts)
        self._starts = [0, *ends]
        self.settings = {"ecg": self._signals.as_settings()}
        self.parameters = {"array": array, **self._signals.as_parameters()}
        self.tasks = RowTasks(self._starts[-1], self._task)

    def load(self, task: RowTask) -> Subject:
        """Reads and preprocesses one record. Raises RefusedRecord when it cannot be used."""
        return self._signals.subject(task, functools.partial(self._recording, task))

    def measured(self, task: RowTask) -> Float[np.ndarray, "12 t"] | None:
        """A record in mV, as `standardise` leaves it; None where it came preprocessed.

        Raises:
            RefusedRecord: it cannot be used.
        """
        if self._signals.preprocessed:
            return None
        task.check()
        recording, declared = self._recording(task), self._signals
        return standardise(task.path, recording, declared.settings, declared.shortest)[0]

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes get all that they need from a task.
        return {"_signals": self._signals, "_array": self._array}

    def _recording(self, task: RowTask) -> Recording:
        suffix = _suffix(task.path)
        if suffix == ".hea":
            settings = self._signals.settings
            return wfdb.read(task.path, seconds=settings.samples / settings.rate)
        if suffix == ".xml":
            from mmcl_jax.data.formats import cardiosoft

            return cardiosoft.read(task.path)
        rows = arrays.open_rows(task.path, self._array)
        return self._signals.recording(np.asarray(rows if task.row < 0 else rows[task.row]))

    def _count(self, number: int) -> int | None:
        """Rows of a file; None where it is one record."""
        file = self._files[number]
        if _suffix(file) not in arrays.SUFFIXES:
            return None
        if not self._declared:
            # An array among other files may be anything.
            self._refusals[number] = (
                "an array says neither its rate nor its unit; give both if it is an ECG"
            )
            return None
        try:
            rows = arrays.open_rows(self._folder / file, self._array)
        except (ValueError, OSError) as error:
            self._refusals[number] = str(error).removeprefix(f"{self._folder / file}: ")
            return None
        if getattr(rows, "ndim", 3) == 2:
            return None
        if not len(rows):
            self._refusals[number] = "holds no record"
            return None
        return len(rows)

    def _task(self, position: int) -> RowTask:
        number = bisect.bisect_right(self._starts, position) - 1
        file = self._files[number]
        record = pathlib.PurePath(file).with_suffix("").as_posix()
        row = -1 if self._single[number] else position - self._starts[number]
        if row >= 0:
            record += f"[{row}]"
        refusal, subject = self._refusals.get(number, ""), record
        if self._pattern:
            match = self._pattern.search(record)
            if match is None:
                refusal = refusal or (
                    f"the subject pattern {self._pattern.pattern!r} does not occur in {record!r}"
                )
            else:
                subject = match[1] if self._pattern.groups else match[0]
        # Inference has no splits; a subject has to have one.
        path = self._folder / file
        return RowTask(record, subject or record, "test", path, refusal=refusal, row=row)


def _find(path: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
    """A folder, and the paths of the files in it."""
    if path.is_dir():
        files = [os.path.relpath(file, path) for file in files_below(path, SUFFIXES)]
        if not files:
            raise FileNotFoundError(f"{path} holds no file of {', '.join(SUFFIXES)}")
        return path, files
    header = path.with_suffix(".hea") if path.suffix in (".dat", ".mat") else path
    if _suffix(header) not in SUFFIXES and not header.exists():
        header = path.with_name(f"{path.name}.hea")
    if not header.exists():
        raise FileNotFoundError(f"there is no {path}")
    if _suffix(header) not in SUFFIXES:
        raise ValueError(f"{path}: expected a folder or a file of {', '.join(SUFFIXES)}")
    return header.parent, [header.name]


def _suffix(file: str | os.PathLike) -> str:
    return os.path.splitext(file)[1].lower()
