"""Any folder of WFDB records of 12-lead ECGs, with a table of subjects and labels or without.

Every `.hea` file of the folder and of those in it is a record, called by its path without suffix.
Age and sex are read from the comments of the headers.
"""

import argparse
import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from mmcl_jax.data.formats.csv_table import CsvTable, declared_label, file_below, label_values
from mmcl_jax.data.formats.header_comments import LABELS, demographics
from mmcl_jax.data.formats.wfdb_header import find_headers
from mmcl_jax.data.signals.ecg import DEFAULT, EcgSettings
from mmcl_jax.data.subject import SPLITS, Subject, assign_split
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.data.tasks.ecg_task import EcgTask, add_length_argument, check_splits, read_wfdb

EXAMPLE = "--input records/ --table labels.csv --output cohorts/records"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source on the command line."""
    parser.add_argument(
        "--input", required=True, metavar="FOLDER", help="folder with .hea files, at any depth"
    )
    parser.add_argument(
        "--table",
        metavar="CSV",
        help="column record (path of the header below the folder, with or without .hea); optional "
        "columns: subject, split (train, val or test), and labels, known ones by name or declared "
        "in the header line as NAME:binary or NAME:regression:UNIT. A record without a row is "
        "refused",
    )
    parser.add_argument(
        "--subject-pattern",
        metavar="REGEX",
        help="finds the subject in the path of a record, e.g. 'patient\\d+'; its first group where "
        "it has one. Default: the table's column subject; without it every record is a person of "
        "its own, which puts people with several records on both sides of a split",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the splits, where the table names none; default: 0"
    )
    add_length_argument(parser)


def make(**options: Any) -> "Wfdb":
    """The source that the command line describes."""
    return Wfdb(**options)


class Wfdb:
    """Source of the records in a folder.

    Args:
        input: the folder.
        table: CSV with the column `record`; see `add_arguments`.
        subject_pattern: regular expression for the subject in the record's path.
        seed: of the splits.
        shortest: least length in seconds.
        settings: of the ECG preprocessing.

    Raises:
        FileNotFoundError: the folder or table is absent, or there is no header.
        ValueError: the table has an undeclared column or puts a subject into two splits, or the
            pattern is no regular expression.
    """

    name = "wfdb"

    def __init__(
        self,
        input: str | os.PathLike,
        table: str | os.PathLike | None = None,
        subject_pattern: str | None = None,
        *,
        seed: int = 0,
        shortest: float = 10.0,
        settings: EcgSettings = DEFAULT,
    ):
        folder = pathlib.Path(input)
        self.ecg_settings, self._shortest = settings, shortest
        self.settings = {"ecg": settings.as_dict()}
        self.parameters = {
            "seed": seed,
            "shortest": shortest,
            "subjects": subject_pattern or "one per record, or the table's",
        }
        try:
            pattern = re.compile(subject_pattern) if subject_pattern else None
        except re.error as error:
            raise ValueError(f"subject pattern {subject_pattern!r}: {error}") from error
        headers = {
            path.relative_to(folder).with_suffix("").as_posix(): path
            for path in find_headers(folder)
        }
        labels: dict[str, Label] = {}
        rows: dict[str, Mapping[str, str]] | None = None
        refusals: dict[str, str] = {}
        if table is not None:
            labels, rows, refusals = _read_table(CsvTable(table, ("record",)))
            for record in rows:
                headers.setdefault(record, folder / f"{record}.hea")
        names = {label.name for label in labels.values()}
        self.labels = tuple(labels.values()) + tuple(x for x in LABELS if x.name not in names)
        tasks = []
        for record in sorted(headers):
            task = EcgTask(record, "", "", headers[record], refusal=refusals.get(record, ""))
            if rows is not None and record not in rows:
                task = dataclasses.replace(task, refusal="the table has no row for this record")
            elif not task.refusal:
                row = {} if rows is None else rows[record]
                task = _complete(task, row, labels, pattern, seed)
            tasks.append(task)
        check_splits(table, tasks)
        self.tasks = tuple(tasks)

    def load(self, task: EcgTask) -> Subject:
        """Reads and preprocesses one record. Raises RefusedRecord when it cannot be used."""
        recording = read_wfdb(task, self.ecg_settings)
        values, flags = demographics(recording.comments)
        task = dataclasses.replace(
            task, labels=values | dict(task.labels), flags=task.flags + flags
        )
        return task.subject_with(recording, self.ecg_settings, self._shortest)


def _read_table(
    table: CsvTable,
) -> tuple[dict[str, Label], dict[str, Mapping[str, str]], dict[str, str]]:
    """Labels by column, cells by record, and the records whose row is unusable with the reason."""
    labels = {
        column: declared_label(table.path, column)
        for column in table.columns
        if column not in ("record", "subject", "split")
    }
    rows: dict[str, Mapping[str, str]] = {}
    refusals: dict[str, str] = {}
    for row in table:
        where = f"{table.path}, line {row.line}"
        record = row.cells["record"].removesuffix(".hea") or f"line {row.line}"
        try:
            file_below(row.cells, "record")
        except ValueError as error:
            refusals[record] = f"{where}: {error}"
        if record in rows:
            refusals[record] = f"{where}: a second row for this record"
        elif row.problem:
            refusals[record] = f"{where}: {row.problem}"
        rows.setdefault(record, row.cells)
    return labels, rows, refusals


def _complete(
    task: EcgTask,
    cells: Mapping[str, str],
    labels: Mapping[str, Label],
    pattern: re.Pattern | None,
    seed: int,
) -> EcgTask:
    """The task with its subject, split and labels, or with the reason why it has none."""
    subject = cells.get("subject") or task.record
    if pattern and not cells.get("subject"):
        match = pattern.search(task.record)
        if match is None:
            return dataclasses.replace(
                task, refusal=f"the subject pattern {pattern.pattern!r} does not occur in its path"
            )
        subject = match[1] if pattern.groups else match[0]
    split = cells.get("split", "")
    if split not in (*SPLITS, ""):
        return dataclasses.replace(
            task, refusal=f"split is {split!r}, expected one of {', '.join(SPLITS)}, or nothing"
        )
    try:
        values = label_values(cells, labels) if cells else {}
    except ValueError as error:
        return dataclasses.replace(task, refusal=str(error))
    return dataclasses.replace(
        task,
        subject=subject,
        split=split or assign_split(subject, seed),
        split_assigned=not split,
        labels=values,
    )
