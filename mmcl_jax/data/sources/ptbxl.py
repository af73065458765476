"""PTB-XL in its native layout: 12-lead ECGs with diagnostic superclasses and demographics.

Wagner et al., Scientific Data 2020, doi 10.1038/s41597-020-0495-6. Only the 500 Hz records are
read. A record is positive for a superclass when any of its SCP statements, whatever its likelihood,
is a diagnostic one of that class. Of a record without a diagnostic statement all five are missing:
the benchmarks of this data set leave it out of training and evaluation.
"""

import argparse
import ast
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mmcl_jax.data.formats.csv_table import CsvTable, file_below, integer, number, truth
from mmcl_jax.data.signals.ecg import DEFAULT, EcgSettings
from mmcl_jax.data.subject import Subject
from mmcl_jax.data.targets.labels import DEMOGRAPHICS, Label
from mmcl_jax.data.tasks.ecg_task import EcgTask, read_wfdb, torn_subjects

EXAMPLE = "--input ptb-xl-1.0.3 --output cohorts/ptbxl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source on the command line."""
    parser.add_argument(
        "--input",
        required=True,
        metavar="FOLDER",
        help="folder with ptbxl_database.csv, scp_statements.csv and records500/",
    )


def make(**options: Any) -> "PtbXl":
    """The source that the command line describes."""
    return PtbXl(**options)


SUPERCLASSES = (
    Label("NORM", "binary", "superclass", "", "normal ECG"),
    Label("MI", "binary", "superclass", "", "myocardial infarction"),
    Label("STTC", "binary", "superclass", "", "ST or T change"),
    Label("CD", "binary", "superclass", "", "conduction disturbance"),
    Label("HYP", "binary", "superclass", "", "hypertrophy"),
)

# The folds that the authors of the data set recommend.
FOLDS = {"train": (1, 2, 3, 4, 5, 6, 7, 8), "val": (9,), "test": (10,)}


class PtbXl:
    """Source of PTB-XL subjects.

    Args:
        input: folder with `ptbxl_database.csv`, `scp_statements.csv` and `records500/`.
        folds: numbers of `strat_fold` by split; a record of any other fold is left out.
        settings: of the ECG preprocessing.

    Raises:
        FileNotFoundError: one of the two tables is absent.
        ValueError: a column is missing, or a patient is in two splits.
    """

    name = "ptbxl"
    labels = SUPERCLASSES + DEMOGRAPHICS

    def __init__(
        self,
        input: str | os.PathLike,
        folds: Mapping[str, Sequence[int]] = FOLDS,
        settings: EcgSettings = DEFAULT,
    ):
        folder = pathlib.Path(input)
        self.ecg_settings = settings
        self.settings = {"ecg": settings.as_dict()}
        self.parameters = {"folds": {split: list(numbers) for split, numbers in folds.items()}}
        classes = _diagnostic_classes(folder / "scp_statements.csv")
        split_of_fold = {fold: split for split, numbers in folds.items() for fold in numbers}
        table = folder / "ptbxl_database.csv"
        tasks = []
        for line, row, problem in CsvTable(table, _COLUMNS):
            try:
                if problem:
                    raise ValueError(problem)
                fold = integer(row, "strat_fold")
                if not 1 <= fold <= _FOLDS:
                    raise ValueError(f"strat_fold is {fold}, expected 1 to {_FOLDS}")
                split = split_of_fold.get(fold)
                if split is not None:
                    tasks.append(_task(folder, row, split, classes))
            except ValueError as error:
                path, reason = folder / row["filename_hr"], f"{table.name}, line {line}: {error}"
                tasks.append(EcgTask(row["ecg_id"], "", "", path, refusal=reason))
        _check_patients(table, tasks)
        self.tasks = tuple(tasks)

    def load(self, task: EcgTask) -> Subject:
        """Reads and preprocesses one record. Raises RefusedRecord when it cannot be used."""
        return task.subject_with(read_wfdb(task, self.ecg_settings), self.ecg_settings)


_COLUMNS = ("ecg_id", "patient_id", "age", "sex", "height", "weight", "scp_codes", "strat_fold")
_COLUMNS += ("filename_hr",)
_FOLDS = 10
# PTB-XL writes 300 for every age above 89.
_AGE_WITHHELD = 300


def _diagnostic_classes(path: pathlib.Path) -> dict[str, str]:
    """Superclass of every SCP code that is a diagnostic statement."""
    # The column of the codes has no name in the published file.
    table = CsvTable(path, ("", "diagnostic", "diagnostic_class"))
    return {
        cells[""]: cells["diagnostic_class"]
        for _, cells, _ in table
        if number(cells, "diagnostic") == 1.0
    }


def _task(
    folder: pathlib.Path, row: Mapping[str, str], split: str, classes: Mapping[str, str]
) -> EcgTask:
    present = {classes[code] for code in _codes(row["scp_codes"]) if code in classes}
    labels = {label.name: float(label.name in present) for label in SUPERCLASSES if present}
    flags = ()

    values = {label.name: number(row, label.name) for label in DEMOGRAPHICS}
    if values["age"] == _AGE_WITHHELD:
        values["age"] = math.nan
        flags = ("age above 89, withheld by the data set",)
    # PTB-XL writes 0 for male and 1 for female, the label is 1 for male.
    values["sex"] = 1.0 - truth(row, "sex")
    labels |= {name: value for name, value in values.items() if not math.isnan(value)}

    return EcgTask(
        record=f"{integer(row, 'ecg_id'):05d}",
        subject=str(integer(row, "patient_id")),
        split=split,
        path=folder / file_below(row, "filename_hr"),
        labels=labels,
        flags=flags,
    )


def _codes(text: str) -> dict[str, float]:
    try:
        codes = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        codes = None
    if not isinstance(codes, dict):
        raise ValueError(f"scp_codes is {text[:80]!r}, expected a dictionary")
    return codes


def _check_patients(table: pathlib.Path, tasks: Sequence[EcgTask]) -> None:
    if torn := torn_subjects(tasks):
        shown = ", ".join(torn[:10]) + (", ..." if len(torn) > 10 else "")
        raise ValueError(
            f"{table}: {len(torn)} patients are in more than one split (patient_id {shown}); "
            "choose folds that keep the records of a patient together"
        )
