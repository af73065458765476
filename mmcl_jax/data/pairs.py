"""Tables that pair CMRs with ECGs: columns subject, cmr, ecg; optional split, and labels."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from mmcl_jax.data.csv_table import CsvTable, Row, declared_label, file_below, label_values
from mmcl_jax.data.ecg_task import torn_subjects
from mmcl_jax.data.labels import Label
from mmcl_jax.data.paired_task import PairedTask
from mmcl_jax.data.subject import SPLITS, assign_split


def read_pairs(
    path: str | pathlib.Path, cmr_folder: pathlib.Path, ecg_folder: pathlib.Path, seed: int
) -> tuple[tuple[Label, ...], list[PairedTask]]:
    """Labels and tasks of a table; a row that cannot be used gives a task that is refused.

    Args:
        cmr_folder, ecg_folder: what the paths of the two columns are relative to.
        seed: of the splits, where the table names none.

    Raises:
        FileNotFoundError: the table is absent.
        ValueError: it lacks a column, has one that is no declared label, or puts a subject into
            two splits.
    """
    table = CsvTable(path, _COLUMNS)
    labels = {
        column: declared_label(table.path, column)
        for column in table.columns
        if column not in (*_COLUMNS, "split")
    }
    tasks = [_task(table, row, cmr_folder, ecg_folder, labels, seed) for row in table]
    check_splits(table.path, tasks)
    return tuple(labels.values()), tasks


def check_splits(place: pathlib.Path, tasks: Sequence[PairedTask]) -> None:
    """Raises ValueError where a subject is in more than one split."""
    if torn := torn_subjects(tasks):
        raise ValueError(
            f"{place}: {len(torn)} subjects are in more than one split "
            f"({', '.join(torn[:10])}); give all records of a person the same split"
        )


_COLUMNS = ("subject", "cmr", "ecg")


def _task(
    table: CsvTable,
    row: Row,
    cmr_folder: pathlib.Path,
    ecg_folder: pathlib.Path,
    labels: Mapping[str, Label],
    seed: int,
) -> PairedTask:
    cells = row.cells
    subject, split = cells["subject"], cells.get("split", "")
    stems = [pathlib.PurePath(cells[name]).stem for name in ("cmr", "ecg") if cells[name]]
    task = PairedTask(
        record="+".join((subject, *stems)) or f"line {row.line}",
        subject=subject,
        split=split or assign_split(subject, seed),
        ecg=None,
        cmr=None,
        split_assigned=not split,
    )
    try:
        if row.problem:
            raise ValueError(row.problem)
        if not subject or not stems:
            raise ValueError("a row needs a subject and a path under cmr, ecg or both")
        if split not in (*SPLITS, ""):
            raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}, or nothing")
        task = dataclasses.replace(
            task,
            ecg=ecg_folder / file_below(cells, "ecg") if cells["ecg"] else None,
            cmr=cmr_folder / file_below(cells, "cmr") if cells["cmr"] else None,
        )
        return dataclasses.replace(task, labels=label_values(cells, labels))
    except ValueError as error:
        return dataclasses.replace(task, refusal=f"{table.path}, line {row.line}: {error}")
