"""CODE-15%: 345,779 ECGs of Brazilian primary care with six diagnoses, in HDF5 files.

Ribeiro et al., Zenodo 2021, doi 10.5281/zenodo.4916206. Signals are at 400 Hz in a frame of 4096
samples (10.24 s) with zeros before and after shorter ones; these zeros are cut off. The data set
says that its unit is '1e-4 V: if the signal is in V it should be multiplied by 1000', which is mV;
its authors confirm mV elsewhere and the amplitudes agree.
"""

import argparse
import functools
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from mmcl_jax.data.formats.csv_table import CsvTable, file_below, integer, number, truth
from mmcl_jax.data.signals.ecg import DEFAULT, EcgSettings, Recording
from mmcl_jax.data.subject import RefusedRecord, Subject
from mmcl_jax.data.targets.labels import DEMOGRAPHICS, Label
from mmcl_jax.data.tasks.ecg_task import EcgTask, add_length_argument
from mmcl_jax.data.tasks.task_columns import TaskColumns

try:
    import h5py
except ImportError as error:
    raise ImportError("CODE-15% needs h5py: pip install 'mmcl_jax[hdf5]'") from error

EXAMPLE = "--input code-15 --shortest 7 --output cohorts/code15"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source on the command line."""
    parser.add_argument(
        "--input",
        required=True,
        metavar="FOLDER",
        help="folder with exams.csv and the exams_part*.hdf5 files",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the splits; default: %(default)s")
    add_length_argument(parser)


def make(**options: Any) -> "Code15":
    """The source that the command line describes."""
    return Code15(**options)


DIAGNOSES = (
    Label("1dAVb", "binary", "diagnosis", "", "first degree atrioventricular block"),
    Label("RBBB", "binary", "diagnosis", "", "right bundle branch block"),
    Label("LBBB", "binary", "diagnosis", "", "left bundle branch block"),
    Label("SB", "binary", "diagnosis", "", "sinus bradycardia"),
    Label("ST", "binary", "diagnosis", "", "sinus tachycardia"),
    Label("AF", "binary", "diagnosis", "", "atrial fibrillation"),
    Label("normal_ecg", "binary", "diagnosis", "", "normal ECG"),
)
OUTCOME = (
    Label("death", "binary", "outcome", "", "died within the follow-up, which differs in length"),
    Label("timey", "regression", "outcome", "years", "time to death or to the last contact"),
)

LEADS = ("DI", "DII", "DIII", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
RATE = 400.0  # Hz


class Code15:
    """Source of CODE-15% exams; patients are split by a hash.

    Args:
        input: folder with `exams.csv` and the HDF5 files that it names.
        seed: of the splits.
        shortest: least length in seconds.
        settings: of the ECG preprocessing.

    Raises:
        FileNotFoundError: the table is absent.
        ValueError: it lacks a column.
    """

    name = "code15"
    labels = DIAGNOSES + OUTCOME + tuple(x for x in DEMOGRAPHICS if x.name in ("age", "sex"))

    def __init__(
        self,
        input: str | os.PathLike,
        *,
        seed: int = 0,
        shortest: float = 10.0,
        settings: EcgSettings = DEFAULT,
    ):
        self.ecg_settings, self._shortest = settings, shortest
        self.settings = {"ecg": settings.as_dict()}
        self.parameters = {"seed": seed, "shortest": shortest}
        table = CsvTable(pathlib.Path(input) / "exams.csv", _COLUMNS)
        self.tasks = TaskColumns(input, [label.name for label in self.labels], seed)
        for line, cells, problem in table:
            try:
                if problem:
                    raise ValueError(problem)
                exam, patient = integer(cells, "exam_id"), integer(cells, "patient_id")
                file = file_below(cells, "trace_file")
                self.tasks.append(str(exam), str(patient), file, _values(cells))
            except ValueError as error:
                name, nothing = cells["exam_id"] or f"line {line}", [math.nan] * len(self.labels)
                reason = f"{table.path.name}, line {line}: {error}"
                self.tasks.append(name, "", cells["trace_file"], nothing, reason)
        for file, exam in _without_row(pathlib.Path(input), self.tasks):
            nothing, reason = [math.nan] * len(self.labels), "exams.csv has no row for this exam"
            self.tasks.append(str(exam), "", file, nothing, reason)

    def load(self, task: EcgTask) -> Subject:
        """Reads and preprocesses one exam. Raises RefusedRecord when it cannot be used."""
        task.check()
        recording = Recording(
            signal=_read(task.path, int(task.record)), names=LEADS, units=("mV",) * 12, rate=RATE
        )
        return task.subject_with(recording, self.ecg_settings, self._shortest)


_COLUMNS = ("exam_id", "patient_id", "trace_file", "age", "is_male", "death", "timey")
_COLUMNS += tuple(label.name for label in DIAGNOSES)


def _values(cells: Mapping[str, str]) -> list[float]:
    """The labels of a row in the order of `Code15.labels`."""
    values = [truth(cells, label.name) for label in DIAGNOSES]
    return [
        *values,
        truth(cells, "death"),
        number(cells, "timey"),
        number(cells, "age"),
        truth(cells, "is_male"),
    ]


def _without_row(folder: pathlib.Path, tasks: TaskColumns) -> list[tuple[str, int]]:
    """File and id of the exams that the files hold and the table does not."""
    known = {task.record for task in tasks} | {_FILLER}
    extra = []
    for path in sorted({task.path for task in tasks if not task.refusal}):
        try:
            rows = _open(path)[1]
        except (OSError, KeyError, RuntimeError, RefusedRecord):
            continue  # `load` says what is wrong with it
        file = path.relative_to(folder).as_posix()
        extra += [(file, exam) for exam in rows if str(exam) not in known]
    return extra


_FILLER = "0"  # the published files end with a row of zeros of this id


def _read(path: pathlib.Path, exam: int) -> Float[np.ndarray, "12 T"]:
    """The signals of an exam in mV, without the zeros around them."""
    if not path.is_file():
        raise RefusedRecord(path, "the trace file is absent")
    try:
        tracings, rows = _open(path)
        row = rows.get(exam)
        signal = None if row is None else tracings[row].T.astype(np.float64)
    except (OSError, KeyError, RuntimeError) as error:
        raise RefusedRecord(path, f"cannot be read: {error}") from error
    if signal is None:
        raise RefusedRecord(path, f"holds no exam {exam}")
    present = np.flatnonzero((signal != 0).any(axis=0))
    if not len(present):
        raise RefusedRecord(path, f"exam {exam} is all zeros")
    return signal[:, present[0] : present[-1] + 1]


@functools.lru_cache(maxsize=32)
def _open(path: pathlib.Path) -> tuple[h5py.Dataset, dict[int, int]]:
    """The tracings of a file and the row of every exam; a process keeps its files open."""
    file = h5py.File(path, "r")
    exams, tracings = (_dataset(path, file, name) for name in ("exam_id", "tracings"))
    if exams.ndim != 1 or exams.dtype.kind not in "iu" or tracings.ndim != 3:
        raise RefusedRecord(
            path,
            f"exam_id is {exams.dtype}{list(exams.shape)}, tracings {list(tracings.shape)}; "
            "expected integers [n] and tracings [n, samples, 12]",
        )
    if len(exams) != len(tracings) or tracings.shape[2] != len(LEADS):
        raise RefusedRecord(
            path,
            f"{len(exams)} exams, tracings {list(tracings.shape)}; expected [n, samples, 12]",
        )
    return tracings, {int(exam): row for row, exam in enumerate(exams[:])}


def _dataset(path: pathlib.Path, file: h5py.File, name: str) -> h5py.Dataset:
    """A data set of the file itself: HDF5 can also refer to any other file of the machine."""
    link = file.get(name, getlink=True)
    found = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise RefusedRecord(path, f"has no data set {name!r} of its own")
    return found
