"""Tables that pair CMRs with ECGs: columns subject, cmr, ecg; optional split, and labels."""

import argparse
import dataclasses
import pathlib
from collections.abc import Mapping

from mmcl_jax.data.formats.csv_table import CsvTable, Row, declared_label, file_below, label_values
from mmcl_jax.data.subject import SPLITS, assign_split
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.data.tasks.ecg_task import add_length_argument, check_splits
from mmcl_jax.data.tasks.paired_task import PairedTask


def add_pairs_arguments(parser: argparse.ArgumentParser, cmr: str, otherwise: str) -> None:
    """The options of a source of CMRs that can be paired with ECGs.

    Args:
        cmr: what the column `cmr` holds.
        otherwise: what happens without a table, as a sentence.
    """
    parser.add_argument(
        "--pairs",
        metavar="CSV",
        help=f"columns subject, cmr ({cmr}) and ecg (path of the WFDB header), one of the two "
        "empty where there is none; optional columns: split (train, val or test), and labels, "
        "known ones by name or declared in the header line as NAME:binary or "
        f"NAME:regression:UNIT. {otherwise}",
    )
    parser.add_argument(
        "--ecg",
        dest="ecg_input",
        metavar="FOLDER",
        help="folder that the ECG paths are relative to; default: the input folder",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the splits, where nothing names one; default: 0"
    )
    add_length_argument(parser)


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
