"""UK Biobank: resting ECGs (field 20205), short-axis cines (field 20209) and the main table.

A record is one imaging visit of one participant, with an ECG, a CMR or both. The two belong
together when they have the same instance; labels are those of the same instance too.
"""

import argparse
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from mmcl_jax.data.formats import cardiosoft, ukb_files
from mmcl_jax.data.formats.ukb_files import UkbFiles
from mmcl_jax.data.formats.ukb_table import UkbTable
from mmcl_jax.data.images import cmr
from mmcl_jax.data.images.cine import read_zip
from mmcl_jax.data.signals import ecg
from mmcl_jax.data.subject import Subject, assign_split
from mmcl_jax.data.targets import icd10
from mmcl_jax.data.targets.ukb_labels import GROUPS, UkbLabels
from mmcl_jax.data.tasks.ecg_task import add_length_argument
from mmcl_jax.data.tasks.paired_task import PairedTask

EXAMPLE = "--input bulk/ --table ukb.csv --withdrawn withdrawn.txt --output cohorts/ukb"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source on the command line."""
    parser.add_argument(
        "--input",
        required=True,
        metavar="FOLDER",
        help="folder with files named EID_20205_INSTANCE_ARRAY.xml and "
        "EID_20209_INSTANCE_ARRAY.zip, at any depth",
    )
    parser.add_argument(
        "--table",
        metavar="FILE",
        help="the main table as CSV or Parquet; a participant without a row is refused. Without "
        "it the cohort has no labels",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        choices=GROUPS,
        default=GROUPS,
        metavar="GROUP",
        help=f"what to take from the table, some of {', '.join(GROUPS)}; default: all",
    )
    parser.add_argument(
        "--diseases",
        metavar="TOML",
        help="definitions of diseases by ICD-10 codes, in place of CAD, AF and DM",
    )
    parser.add_argument(
        "--withdrawn",
        metavar="FILE",
        help="participants who withdrew, one eid per line; their records are refused",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the splits; default: 0")
    add_length_argument(parser)


def make(**options: Any) -> "Ukb":
    """The source that the command line describes."""
    return Ukb(**options)


class Ukb:
    """Source of UK Biobank's imaging visits.

    Args:
        input: folder of the files of the two fields; links are followed.
        table: the main table; without it there are no labels.
        labels: groups of labels to take from the table.
        diseases: TOML file with definitions, in place of those of the paper.
        withdrawn: list of participants who withdrew.
        seed: of the splits.
        shortest: least length of an ECG in seconds.

    Raises:
        FileNotFoundError: the folder or a file is absent, or the folder holds no file of the two
            fields.
        ValueError: a file cannot be used, a field is missing, or the table has no row for any of
            the participants.
    """

    name = "ukb"

    def __init__(
        self,
        input: str | os.PathLike,
        table: str | os.PathLike | None = None,
        *,
        labels: Sequence[str] = GROUPS,
        diseases: str | os.PathLike | None = None,
        withdrawn: str | os.PathLike | None = None,
        seed: int = 0,
        shortest: float = 10.0,
        ecg_settings: ecg.EcgSettings = ecg.DEFAULT,
        cmr_settings: cmr.CmrSettings = cmr.DEFAULT,
    ):
        if diseases and (table is None or "diseases" not in labels):
            raise ValueError(
                "definitions of diseases need a table, and 'diseases' among the labels"
            )
        definitions = icd10.read_definitions(diseases) if diseases else icd10.DISEASES
        recipe = UkbLabels(labels, definitions) if table else UkbLabels(())
        gone = _withdrawn(withdrawn) if withdrawn else frozenset()
        names = [label.name for label in recipe.labels]
        self.tasks = Tasks(input, ukb_files.find(input), names, seed)
        for position, visit in enumerate(self.tasks.visits):
            if visit.eid in gone:
                self.tasks.refusals[position] = "withdrawn"
        if table:
            _read_labels(self.tasks, UkbTable(table), recipe)
        self.labels = recipe.labels
        self.ecg_settings, self.cmr_settings = ecg_settings, cmr_settings
        self.settings = {"ecg": ecg_settings.as_dict(), "cmr": cmr_settings.as_dict()}
        self.shortest = shortest
        self.parameters = {
            "seed": seed,
            "shortest": shortest,
            "diseases": {
                disease.label.name: {"codes": list(disease.codes), "when": disease.when}
                for disease in (definitions if table and "diseases" in labels else ())
            },
        }

    def load(self, task: PairedTask) -> Subject:
        """Reads and prepares what a visit has. Raises RefusedRecord (see `PairedTask.load`)."""
        return task.load(
            cardiosoft.read, read_zip, self.ecg_settings, self.cmr_settings, self.shortest
        )


class Tasks(Sequence[PairedTask]):
    """The visits as tasks, made when they are asked for: the values of all take 50 MB.

    Args:
        folder: of the files.
        files: what is in it.
        labels: names of the values of a visit.
        seed: of the splits.
    """

    def __init__(
        self, folder: str | os.PathLike, files: UkbFiles, labels: Sequence[str], seed: int
    ):
        self.visits = files.visits
        self.values = np.full((len(files.visits), len(labels)), np.nan)
        self.refusals: dict[int, str] = {}
        self._folder, self._strangers = pathlib.Path(folder), files.strangers
        self._labels, self._seed = tuple(labels), seed

    def __len__(self) -> int:
        return len(self.visits) + len(self._strangers)

    @overload
    def __getitem__(self, index: int) -> PairedTask: ...

    @overload
    def __getitem__(self, index: slice) -> list[PairedTask]: ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        if position >= len(self.visits):
            file, reason = self._strangers[position - len(self.visits)]
            return PairedTask(file, "", "", self._folder / file, None, refusal=reason)
        visit, values = self.visits[position], self.values[position]
        return PairedTask(
            record=f"{visit.eid}_{visit.instance}",
            subject=visit.eid,
            split=assign_split(visit.eid, self._seed),
            ecg=self._folder / visit.ecg if visit.ecg else None,
            cmr=self._folder / visit.cmr if visit.cmr else None,
            labels={
                name: value
                for name, value in zip(self._labels, values.tolist(), strict=True)
                if not math.isnan(value)
            },
            flags=visit.flags,
            split_assigned=True,
            refusal=self.refusals.get(position, ""),
        )


def _withdrawn(path: str | os.PathLike) -> frozenset[str]:
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is absent; expected the list of withdrawals") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file of eids: {error}") from error
    eids = [line.strip().strip('"') for line in lines]
    for number, eid in enumerate(eids, start=1):
        if eid and not (eid.isascii() and eid.isdigit()) and (number > 1 or eid != "eid"):
            raise ValueError(f"{path}, line {number}: {eid[:40]!r}, expected one eid per line")
    return frozenset(eids) - {"", "eid"}


def _read_labels(tasks: Tasks, table: UkbTable, recipe: UkbLabels) -> None:
    """Fills in the values of all visits that are not refused, and refuses those without any."""
    positions: dict[str, list[int]] = {}
    for position, visit in enumerate(tasks.visits):
        if position not in tasks.refusals:
            positions.setdefault(visit.eid, []).append(position)
    instances = {visit.instance for visit in tasks.visits}
    recipe.check(table, instances)
    seen: set[str] = set()
    for row in table.rows(recipe.fields(instances), positions):
        twice = "the participant has more than one row" if row.eid in seen else ""
        seen.add(row.eid)
        for position in positions[row.eid]:
            try:
                if problem := twice or row.problem:
                    raise ValueError(problem)
                values = recipe.values(row, tasks.visits[position].instance)
            except ValueError as error:
                tasks.refusals[position] = f"{table.path.name}: {error}"
            else:
                tasks.values[position] = [
                    values.get(label.name, math.nan) for label in recipe.labels
                ]
    if positions and not seen:
        raise ValueError(
            f"{table.path}: no row for any of the {len(positions):,} participants with files; "
            "every application of UK Biobank has eids of its own, these are of different ones"
        )
    for eid in positions.keys() - seen:
        for position in positions[eid]:
            tasks.refusals[position] = (
                f"{table.path.name}: the participant has no row; withdrawn, or left out of it"
            )
