"""CMR zips, alone or paired with ECG records by a table.

A folder of zips, as UK Biobank delivers its field 20209, is a source of CMR. A table with the
columns `subject`, `cmr` (path of the zip) and `ecg` (path of the WFDB header), one of the two empty
where there is none, makes pairs; further columns are `split` and labels.
"""

import argparse
import os
import pathlib
from typing import Any

from mmcl_jax.data.formats import ukb_files, wfdb
from mmcl_jax.data.images import cmr
from mmcl_jax.data.images.cine import read_zip
from mmcl_jax.data.signals import ecg
from mmcl_jax.data.subject import Subject, assign_split
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.data.tasks.paired_task import PairedTask
from mmcl_jax.data.tasks.pairs import add_pairs_arguments, read_pairs

EXAMPLE = "--input cmr/ --pairs pairs.csv --ecg ecg/ --output cohorts/hospital"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source on the command line."""
    parser.add_argument(
        "--input", required=True, metavar="FOLDER", help="folder with one .zip per examination"
    )
    add_pairs_arguments(parser, "path of the zip", "Without it every zip is a subject without ECG")


def make(**options: Any) -> "DicomZips":
    """The source that the command line describes."""
    return DicomZips(**options)


class DicomZips:
    """Source of subjects with a CMR, an ECG, or both.

    Args:
        input: folder of the zips, which paths of the table are relative to.
        pairs: the table; without it every zip of the folder becomes a subject without ECG.
        ecg_input: folder of the ECG records; the folder of the zips when None.
        seed: of the splits, for subjects without one in the table.
        shortest: least length of an ECG in seconds.

    Raises:
        FileNotFoundError: the folder or the table is absent, or the folder holds no zip.
        ValueError: the table lacks a column, has one that is no declared label, or puts a subject
            into two splits.
    """

    name = "dicom"

    def __init__(
        self,
        input: str | os.PathLike,
        pairs: str | os.PathLike | None = None,
        *,
        ecg_input: str | os.PathLike | None = None,
        seed: int = 0,
        shortest: float = 10.0,
        ecg_settings: ecg.EcgSettings = ecg.DEFAULT,
        cmr_settings: cmr.CmrSettings = cmr.DEFAULT,
    ):
        folder = pathlib.Path(input)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder; expected the folder of the zips")
        self.ecg_settings, self.cmr_settings = ecg_settings, cmr_settings
        self.settings = {"ecg": ecg_settings.as_dict(), "cmr": cmr_settings.as_dict()}
        self._shortest = shortest
        self.parameters = {"seed": seed, "shortest": shortest}
        zips = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".zip")
        if pairs is None:
            if not zips:
                raise FileNotFoundError(f"{folder} holds no .zip; expected one per CMR")
            self.labels: tuple[Label, ...] = ()
            self.tasks = tuple(_task_of_zip(path, seed) for path in zips)
            return
        ecg_folder = folder if ecg_input is None else pathlib.Path(ecg_input)
        self.labels, tasks = read_pairs(pairs, folder, ecg_folder, seed)
        named = {task.cmr for task in tasks}
        reason = f"{pathlib.Path(pairs).name} has no row with this zip"
        tasks += [
            PairedTask(path.stem, "", "", None, path, refusal=reason)
            for path in zips
            if path not in named
        ]
        self.tasks = tuple(tasks)

    def load(self, task: PairedTask) -> Subject:
        """Reads and prepares what a record has. Raises RefusedRecord (see `PairedTask.load`)."""
        seconds = self.ecg_settings.samples / self.ecg_settings.rate
        return task.load(
            lambda path: wfdb.read(path, seconds=seconds),
            read_zip,
            self.ecg_settings,
            self.cmr_settings,
            self._shortest,
        )


def _task_of_zip(path: pathlib.Path, seed: int) -> PairedTask:
    subject = ukb_files.participant(path.stem)
    split = assign_split(subject, seed)
    return PairedTask(path.stem, subject, split, ecg=None, cmr=path, split_assigned=True)
