"""MIMIC-IV-ECG: 800,000 diagnostic ECGs of patients of the MIMIC-IV clinical database.

Gow et al., PhysioNet 2023, doi 10.13026/4nqg-sb35. The records store aVF before aVL; leads are
taken by name. The ECG module has no diagnoses, age or sex; a table of labels brings them.
"""

import argparse
import array
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mmcl_jax.data.formats.csv_table import (
    CsvTable,
    declared_label,
    file_below,
    integer,
    label_values,
    number,
)
from mmcl_jax.data.signals.ecg import DEFAULT, EcgSettings
from mmcl_jax.data.subject import Subject
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.data.tasks.ecg_task import EcgTask, add_length_argument, read_wfdb
from mmcl_jax.data.tasks.task_columns import TaskColumns

EXAMPLE = "--input mimic-iv-ecg-1.0 --measurements --output cohorts/mimic"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source on the command line."""
    parser.add_argument(
        "--input", required=True, metavar="FOLDER", help="folder with record_list.csv and files/"
    )
    parser.add_argument(
        "--labels",
        metavar="CSV",
        help="column study_id or subject_id, and labels: known ones by name or declared in the "
        "header line as NAME:binary or NAME:regression:UNIT",
    )
    parser.add_argument(
        "--measurements",
        action="store_true",
        help="intervals and axes of machine_measurements.csv as labels",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the splits; default: %(default)s")
    add_length_argument(parser)


def make(**options: Any) -> "MimicIvEcg":
    """The source that the command line describes."""
    return MimicIvEcg(**options)


# What the ECG cart measured on its average beat, and the limits outside of which a value is none:
# the cart writes 29999 or 65535 where it found no such wave.
MEASUREMENTS = (
    (Label("rr_interval", "regression", "ECG", "ms", "RR interval"), 200, 4000),
    (Label("pr_interval", "regression", "ECG", "ms", "P onset to QRS onset"), 50, 600),
    (Label("qrs_duration", "regression", "ECG", "ms", "QRS onset to QRS end"), 30, 400),
    (Label("qt_interval", "regression", "ECG", "ms", "QRS onset to T end"), 150, 900),
    (Label("p_axis", "regression", "ECG", "degrees", "axis of the P wave"), -360, 360),
    (Label("qrs_axis", "regression", "ECG", "degrees", "axis of the QRS complex"), -360, 360),
    (Label("t_axis", "regression", "ECG", "degrees", "axis of the T wave"), -360, 360),
)


class MimicIvEcg:
    """Source of MIMIC-IV-ECG records, called by their study; subjects are split by a hash.

    Args:
        input: folder with `record_list.csv`, `files/` and, for `measurements`,
            `machine_measurements.csv`.
        labels: CSV by study or subject.
        measurements: whether the intervals and axes of the cart become labels.
        seed: of the splits.
        shortest: least length in seconds.
        settings: of the ECG preprocessing.

    Raises:
        FileNotFoundError: a table is absent.
        ValueError: a table lacks a column or has one that is no label.
    """

    name = "mimic-iv-ecg"

    def __init__(
        self,
        input: str | os.PathLike,
        labels: str | os.PathLike | None = None,
        measurements: bool = False,
        *,
        seed: int = 0,
        shortest: float = 10.0,
        settings: EcgSettings = DEFAULT,
    ):
        folder = pathlib.Path(input)
        self.ecg_settings, self._shortest = settings, shortest
        self.settings = {"ecg": settings.as_dict()}
        self.parameters = {"seed": seed, "shortest": shortest, "measurements": measurements}
        records = CsvTable(folder / "record_list.csv", ("subject_id", "study_id", "path"))
        tables = [_own_labels(pathlib.Path(labels))] if labels else []
        if measurements:
            tables.append(_measurements(folder / "machine_measurements.csv"))
        self.labels = tuple(label for table in tables for label in table.labels)
        self.tasks = _tasks(records, tables, seed)

    def load(self, task: EcgTask) -> Subject:
        """Reads and preprocesses one record. Raises RefusedRecord when it cannot be used."""
        recording = read_wfdb(task, self.ecg_settings)
        return task.subject_with(recording, self.ecg_settings, self._shortest)


class _Labels:
    """Values by the key of a table, as columns: there may be a million rows.

    Args:
        table: the file.
        key: its column of study or subject ids.
        labels: what `read` returns for the cells of a row, NaN where a value is missing.

    Raises:
        ValueError: the key of a row is no integer.
    """

    def __init__(
        self,
        table: CsvTable,
        key: str,
        labels: Sequence[Label],
        read: Callable[[Mapping[str, str]], Iterable[float]],
    ):
        self.path, self.key, self.labels = table.path, key, tuple(labels)
        self._values = array.array("d")
        self._rows: dict[int, int] = {}
        self._problems: dict[int, str] = {}
        for line, cells, problem in table:
            where = f"{table.path.name}, line {line}"
            try:
                identity = integer(cells, key)
            except ValueError as error:
                raise ValueError(f"{table.path}, line {line}: {problem or error}") from error
            try:
                values = list(read(cells))
            except ValueError as error:
                problem = problem or str(error)
            if identity in self._rows or identity in self._problems:
                problem = f"a second row for {key} {identity}"
            if problem:
                self._problems[identity] = f"{where}: {problem}"
            else:
                self._rows[identity] = len(self._rows)
                self._values.extend(values)

    def __contains__(self, identity: int) -> bool:
        return identity in self._rows

    def values(self, identity: int) -> Sequence[float]:
        """One value per label. Raises ValueError when the row of this id is unusable."""
        if identity in self._problems:
            raise ValueError(self._problems[identity])
        if identity not in self._rows:
            return [math.nan] * len(self.labels)
        start = self._rows[identity] * len(self.labels)
        return self._values[start : start + len(self.labels)]


def _own_labels(path: pathlib.Path) -> _Labels:
    """Labels that the user gives, by study where the table has it and by subject otherwise."""
    table = CsvTable(path, ())
    keys = [name for name in ("study_id", "subject_id") if name in table.columns]
    if not keys:
        raise ValueError(
            f"{path}: column study_id or subject_id is missing; found {', '.join(table.columns)}"
        )
    by_column = {
        column: declared_label(path, column) for column in table.columns if column not in keys
    }

    def read(cells: Mapping[str, str]) -> list[float]:
        values = label_values(cells, by_column)
        return [values.get(label.name, math.nan) for label in by_column.values()]

    return _Labels(table, keys[0], tuple(by_column.values()), read)


def _measurements(path: pathlib.Path) -> _Labels:
    columns = ("rr_interval", "p_onset", "qrs_onset", "qrs_end", "t_end")
    columns += ("p_axis", "qrs_axis", "t_axis")

    def read(cells: Mapping[str, str]) -> Iterable[float]:
        raw = (number(cells, name) for name in columns)
        rr, p, qrs, qrs_end, t_end, *axes = (x if abs(x) < _NOTHING else math.nan for x in raw)
        found = (rr, qrs - p, qrs_end - qrs, t_end - qrs, *axes)
        for value, (_, low, high) in zip(found, MEASUREMENTS, strict=True):
            yield value if low <= value <= high else math.nan

    table = CsvTable(path, ("study_id", *columns))
    return _Labels(table, "study_id", tuple(label for label, _, _ in MEASUREMENTS), read)


_NOTHING = 29999


def _tasks(records: CsvTable, tables: Sequence[_Labels], seed: int) -> TaskColumns:
    labels = [label.name for table in tables for label in table.labels]
    if repeated := sorted({name for name in labels if labels.count(name) > 1}):
        raise ValueError(f"{tables[0].path}: labels {', '.join(repeated)} occur more than once")
    tasks = TaskColumns(records.path.parent, labels, seed)
    unmatched = set(tables)
    for line, cells, problem in records:
        try:
            if problem:
                raise ValueError(problem)
            ids = {name: integer(cells, name) for name in ("study_id", "subject_id")}
            file = file_below(cells, "path")
            unmatched = {table for table in unmatched if ids[table.key] not in table}
            values = [value for table in tables for value in table.values(ids[table.key])]
            tasks.append(str(ids["study_id"]), str(ids["subject_id"]), file, values)
        except ValueError as error:
            name = cells["study_id"] or f"line {line}"
            reason = f"{records.path.name}, line {line}: {error}"
            tasks.append(name, "", cells["path"], [math.nan] * len(labels), reason)
    if unmatched:
        table = unmatched.pop()
        raise ValueError(f"{table.path}: no {table.key} of it is in {records.path.name}")
    return tasks
