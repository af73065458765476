"""Records of the PhysioNet/CinC Challenges 2020 and 2021: diagnoses as SNOMED CT codes in headers.

Perez Alday et al., Physiological Measurement 2020, doi 10.1088/1361-6579/abc960; Reyna et al.,
Computing in Cardiology 2021. The labels are the classes that the challenge of 2021 scores, those
that it takes for equivalent in one. A record is positive for the classes that its header names and
negative for all others.
"""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mmcl_jax.data.formats.csv_table import CsvTable
from mmcl_jax.data.formats.header_comments import LABELS, comment, demographics
from mmcl_jax.data.formats.wfdb_header import find_headers
from mmcl_jax.data.signals.ecg import DEFAULT, EcgSettings
from mmcl_jax.data.subject import Subject, assign_split
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.data.tasks.ecg_task import EcgTask, add_length_argument, read_wfdb

EXAMPLE = "--input challenge-2021/training --output cohorts/cinc"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source on the command line."""
    parser.add_argument(
        "--input",
        required=True,
        metavar="FOLDER",
        help="folder with the .hea and .mat files, at any depth",
    )
    parser.add_argument(
        "--classes",
        metavar="CSV",
        help="columns code (SNOMED CT) and name: other classes than those that the challenge "
        "scores; codes of the same name are one class",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the splits; default: %(default)s")
    add_length_argument(parser)


def make(**options: Any) -> "Cinc":
    """The source that the command line describes."""
    return Cinc(**options)


# Name, what it is, and its codes: dx_mapping_scored.csv of the challenge of 2021.
SCORED = (
    ("AF", "atrial fibrillation", ("164889003",)),
    ("AFL", "atrial flutter", ("164890007",)),
    ("BBB", "bundle branch block", ("6374002",)),
    ("Brady", "bradycardia", ("426627000",)),
    ("LBBB", "complete left bundle branch block", ("733534002", "164909002")),
    ("RBBB", "complete right bundle branch block", ("713427006", "59118001")),
    ("IAVB", "first degree atrioventricular block", ("270492004",)),
    ("IRBBB", "incomplete right bundle branch block", ("713426002",)),
    ("LAD", "left axis deviation", ("39732003",)),
    ("LAnFB", "left anterior fascicular block", ("445118002",)),
    ("LQRSV", "low QRS voltages", ("251146004",)),
    ("NSIVCB", "nonspecific intraventricular conduction disorder", ("698252002",)),
    ("NSR", "sinus rhythm", ("426783006",)),
    ("PAC", "premature atrial or supraventricular beats", ("284470004", "63593006")),
    ("PR", "pacing rhythm", ("10370003",)),
    ("PRWP", "poor R wave progression", ("365413008",)),
    ("PVC", "premature ventricular beats", ("427172004", "17338001")),
    ("LPR", "prolonged PR interval", ("164947007",)),
    ("LQT", "prolonged QT interval", ("111975006",)),
    ("QAb", "abnormal Q wave", ("164917005",)),
    ("RAD", "right axis deviation", ("47665007",)),
    ("SA", "sinus arrhythmia", ("427393009",)),
    ("SB", "sinus bradycardia", ("426177001",)),
    ("STach", "sinus tachycardia", ("427084000",)),
    ("TAb", "abnormal T wave", ("164934002",)),
    ("TInv", "T wave inversion", ("59931005",)),
)


class Cinc:
    """Source of challenge records.

    The headers do not say whose a record is, so every record is a person of its own.

    Args:
        input: folder of the records.
        classes: CSV of code and name; the scored classes when None.
        seed: of the splits.
        shortest: least length in seconds.
        settings: of the ECG preprocessing.

    Raises:
        FileNotFoundError: the folder or table is absent, or there is no header.
        ValueError: the table lacks a column, or gives one code two names.
    """

    name = "cinc"

    def __init__(
        self,
        input: str | os.PathLike,
        classes: str | os.PathLike | None = None,
        *,
        seed: int = 0,
        shortest: float = 10.0,
        settings: EcgSettings = DEFAULT,
    ):
        self.ecg_settings, self._shortest = settings, shortest
        self.settings = {"ecg": settings.as_dict()}
        self.parameters = {"seed": seed, "shortest": shortest}
        if classes is None:
            self._class_of = {code: name for name, _, codes in SCORED for code in codes}
            diagnoses = tuple(
                Label(name, "binary", "diagnosis", "", f"{text} (SNOMED CT {', '.join(codes)})")
                for name, text, codes in SCORED
            )
        else:
            self._class_of = _read_classes(CsvTable(classes, ("code", "name")))
            self.parameters["classes"] = self._class_of
            diagnoses = tuple(
                Label(name, "binary", "diagnosis")
                for name in dict.fromkeys(self._class_of.values())
            )
        self.labels = diagnoses + LABELS
        self.tasks = tuple(
            EcgTask(path.stem, path.stem, assign_split(path.stem, seed), path, split_assigned=True)
            for path in find_headers(pathlib.Path(input))
        )

    def load(self, task: EcgTask) -> Subject:
        """Reads and preprocesses one record. Raises RefusedRecord when it cannot be used."""
        recording = read_wfdb(task, self.ecg_settings)
        diagnoses, remarks = _diagnoses(recording.comments, self._class_of)
        persons, more = demographics(recording.comments)
        task = dataclasses.replace(task, labels=diagnoses | persons, flags=remarks + more)
        return task.subject_with(recording, self.ecg_settings, self._shortest)


def _diagnoses(
    comments: Sequence[str], class_of: Mapping[str, str]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """The binary labels, none where the header gives no diagnosis, and remarks."""
    text = comment(comments, "Dx") or ""
    codes = [code for code in text.replace(",", " ").split() if code.lower() != "unknown"]
    if not codes:
        return {}, ("no diagnosis in the header, its labels are missing",)
    present = {class_of[code] for code in codes if code in class_of}
    flags = ()
    if others := sorted({code for code in codes if code not in class_of}):
        flags = (f"codes without a class: {', '.join(others)}",)
    return {name: float(name in present) for name in class_of.values()}, flags


def _read_classes(table: CsvTable) -> dict[str, str]:
    class_of: dict[str, str] = {}
    for line, cells, problem in table:
        code, name = cells["code"], cells["name"]
        if problem or not code or not name:
            raise ValueError(
                f"{table.path}, line {line}: {problem or 'a row needs a code and a name'}"
            )
        if name in (label.name for label in LABELS):
            raise ValueError(f"{table.path}, line {line}: {name} is the name of another label")
        if class_of.setdefault(code, name) != name:
            raise ValueError(
                f"{table.path}, line {line}: code {code} is {name} and {class_of[code]}"
            )
    if not class_of:
        raise ValueError(f"{table.path}: no classes")
    return class_of
