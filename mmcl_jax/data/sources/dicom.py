"""CMR zips, alone or paired with ECG records by a table.

A folder of zips, as UK Biobank delivers its field 20209, is a source of CMR. A table with the
columns `subject`, `cmr` (path of the zip) and `ecg` (path of the WFDB header), one of the two empty
where there is none, makes pairs; further columns are `split` and labels.
"""

import argparse
import csv
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmcl_jax.data import cmr, ecg, short_axis, wfdb
from mmcl_jax.data.cine import read_zip
from mmcl_jax.data.labels import DEMOGRAPHICS, DISEASES, PHENOTYPES, Label
from mmcl_jax.data.subject import SPLITS, Subject, assign_split

EXAMPLE = "--input cmr/ --pairs pairs.csv --ecg ecg/ --output cohorts/hospital"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source on the command line."""
    parser.add_argument(
        "--input", required=True, metavar="FOLDER", help="folder with one .zip per examination"
    )
    parser.add_argument(
        "--pairs",
        metavar="CSV",
        help="columns subject, cmr (path of the zip) and ecg (path of the WFDB header), one of the "
        "two empty where there is none; optional columns: split, and labels by name. Without it "
        "every zip is a subject without ECG",
    )
    parser.add_argument(
        "--ecg",
        dest="ecg_input",
        metavar="FOLDER",
        help="folder that the ECG paths are relative to; default: the input folder",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the splits, where the CSV names none; default: 0"
    )


def make(**options: Any) -> "DicomZips":
    """The source that the command line describes."""
    return DicomZips(**options)


KNOWN_LABELS = DISEASES + PHENOTYPES + DEMOGRAPHICS


@dataclasses.dataclass(frozen=True)
class DicomTask:
    """One record: where its two halves are, and what the table says about it."""

    record: str
    subject: str
    split: str
    cmr: pathlib.Path | None
    ecg: pathlib.Path | None
    labels: Mapping[str, float]


class DicomZips:
    """Source of subjects with a CMR, an ECG, or both.

    Args:
        input: folder of the zips, which paths of the table are relative to.
        pairs: the table; without it every zip of the folder becomes a subject without ECG.
        ecg_input: folder of the ECG records; the folder of the zips when None.
        labels: what a column of the table may be called; the known labels when None.
        seed: of the splits, for subjects without one in the table.

    Raises:
        FileNotFoundError: the folder or the table is absent, or the folder holds no zip.
        ValueError: the table has an unknown column, an unusable value, a record twice or a subject
            in two splits.
    """

    name = "dicom"

    def __init__(
        self,
        input: str | os.PathLike,
        pairs: str | os.PathLike | None = None,
        *,
        ecg_input: str | os.PathLike | None = None,
        labels: Sequence[Label] | None = None,
        seed: int = 0,
        ecg_settings: ecg.EcgSettings = ecg.DEFAULT,
        cmr_settings: cmr.CmrSettings = cmr.DEFAULT,
    ):
        folder = pathlib.Path(input)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder; expected the folder of the zips")
        self.ecg_settings, self.cmr_settings = ecg_settings, cmr_settings
        self.settings = {"ecg": ecg_settings.as_dict(), "cmr": cmr_settings.as_dict()}
        self.parameters = {"seed": seed}
        if pairs is None:
            self.labels: tuple[Label, ...] = ()
            self.tasks = _tasks_of_folder(folder, seed)
        else:
            known = KNOWN_LABELS if labels is None else tuple(labels)
            ecg_folder = folder if ecg_input is None else pathlib.Path(ecg_input)
            self.labels, self.tasks = _tasks_of_table(
                pathlib.Path(pairs), folder, ecg_folder, known, seed
            )

    def load(self, task: DicomTask) -> Subject:
        """Reads and prepares both halves of a record.

        Raises:
            RefusedRecord: one of them cannot be used.
        """
        subject = Subject(
            record=task.record,
            subject=task.subject,
            split=task.split,
            ecg=None,
            cmr=None,
            cmr_box=None,
            labels=dict(task.labels),
        )
        if task.cmr is not None:
            image, box, flags = short_axis.prepare(task.cmr, read_zip(task.cmr), self.cmr_settings)
            subject.cmr, subject.cmr_box, subject.flags = image, box, flags
        if task.ecg is not None:
            subject.ecg, flags = ecg.prepare(task.ecg, wfdb.read(task.ecg), self.ecg_settings)
            subject.flags += flags
        return subject


_COLUMNS = ("subject", "cmr", "ecg")
_UKB_NAME = re.compile(r"(?P<subject>\d+)_\d{5}_\d+_\d+")


def _tasks_of_folder(folder: pathlib.Path, seed: int) -> tuple[DicomTask, ...]:
    paths = sorted(folder.glob("*.zip"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no .zip; expected one per CMR")
    tasks = []
    for path in paths:
        # UK Biobank: participant_field_visit_array.
        named = _UKB_NAME.fullmatch(path.stem)
        subject = named["subject"] if named else path.stem
        split = assign_split(subject, seed)
        tasks.append(DicomTask(path.stem, subject, split, cmr=path, ecg=None, labels={}))
    return tuple(tasks)


def _tasks_of_table(
    table: pathlib.Path,
    cmr_folder: pathlib.Path,
    ecg_folder: pathlib.Path,
    known: Sequence[Label],
    seed: int,
) -> tuple[tuple[Label, ...], tuple[DicomTask, ...]]:
    if not table.is_file():
        raise FileNotFoundError(f"{table} is absent; expected a table of pairs")
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        rows = list(reader)
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise ValueError(f"{table}: columns {', '.join(missing)} are missing")
    named = {label.name: label for label in known}
    extra = [name for name in columns if name not in (*_COLUMNS, "split")]
    if unknown := [name for name in extra if name not in named]:
        raise ValueError(
            f"{table}: columns {', '.join(unknown)} are no known labels; remove or declare them"
        )

    tasks: dict[str, DicomTask] = {}
    splits: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        try:
            task = _task(row, cmr_folder, ecg_folder, extra, seed)
            if task.record in tasks:
                raise ValueError(f"record {task.record} occurs twice")
            if splits.setdefault(task.subject, task.split) != task.split:
                raise ValueError(
                    f"subject {task.subject} is in {task.split} and in {splits[task.subject]}"
                )
        except ValueError as error:
            raise ValueError(f"{table}, line {number}: {error}") from error
        tasks[task.record] = task
    return tuple(named[name] for name in extra), tuple(tasks.values())


def _task(
    row: Mapping[str, str],
    cmr_folder: pathlib.Path,
    ecg_folder: pathlib.Path,
    labels: Sequence[str],
    seed: int,
) -> DicomTask:
    cells = {name: (value or "").strip() for name, value in row.items() if name is not None}
    subject = cells["subject"]
    if not subject or not (cells["cmr"] or cells["ecg"]):
        raise ValueError("a row needs a subject and a path under cmr, ecg or both")
    split = cells.get("split") or assign_split(subject, seed)
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    values = {}
    for name in labels:
        if cells[name]:
            values[name] = float(cells[name])
            if not math.isfinite(values[name]):
                raise ValueError(f"{name} is {cells[name]!r}; leave it empty when it is missing")
    stems = [pathlib.PurePath(cells[name]).stem for name in ("cmr", "ecg") if cells[name]]
    return DicomTask(
        record="+".join((subject, *stems)),
        subject=subject,
        split=split,
        cmr=cmr_folder / cells["cmr"] if cells["cmr"] else None,
        ecg=ecg_folder / cells["ecg"] if cells["ecg"] else None,
        labels=values,
    )
