"""Short-axis CMR in NIfTI files, with or without label maps, alone or paired with WFDB ECGs.

See `nifti_layouts` for the names of the files. With label maps, the phenotypes that follow from
them are labels of the cohort.
"""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mmcl_jax.data.formats import nifti_layouts, ukb_files, wfdb
from mmcl_jax.data.formats.nifti_layouts import Found
from mmcl_jax.data.images import cmr, nifti_examination
from mmcl_jax.data.images.nifti_examination import Files, Options
from mmcl_jax.data.images.ventricles import CONVENTIONS, Convention, convention
from mmcl_jax.data.signals import ecg
from mmcl_jax.data.subject import RefusedRecord, Subject, assign_split
from mmcl_jax.data.targets.labels import DEMOGRAPHICS, PHENOTYPES, Label
from mmcl_jax.data.tasks.ecg_task import check_splits
from mmcl_jax.data.tasks.paired_task import PairedTask
from mmcl_jax.data.tasks.pairs import add_pairs_arguments, read_pairs

EXAMPLE = "--input ACDC/database --labels acdc --output cohorts/acdc"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source on the command line."""
    parser.add_argument(
        "--input",
        required=True,
        metavar="FOLDER",
        help="folder with .nii or .nii.gz files, at any depth: a folder per examination, or names "
        "that begin with the examination, as in p1_sa_ED.nii.gz",
    )
    parser.add_argument(
        "--layout",
        choices=("auto", *nifti_layouts.LAYOUTS),
        default="auto",
        help="how the files are named: as in ACDC, M&Ms, M&Ms-2, or as the UK Biobank pipeline "
        "does (sa.nii.gz, sa_ED.nii.gz, label_sa_ED.nii.gz, ...); default: told from the names",
    )
    parser.add_argument(
        "--labels",
        metavar="CONVENTION",
        help=f"what the numbers of the label maps mean: {', '.join(CONVENTIONS)}, or own numbers "
        "as in lv=1,myo=2,rv=3; none: leave the label maps alone. Needed where there are any",
    )
    parser.add_argument(
        "--mid",
        choices=nifti_examination.MID,
        default="refuse",
        help="what stands for the mid frame where there are only ED and ES: their mean, or one of "
        "them (the record is flagged); default: such a record is refused",
    )
    parser.add_argument(
        "--reverse-rows",
        action="store_true",
        help="the files were written by dcm2niix, which stores the rows from the bottom up",
    )
    add_pairs_arguments(
        parser,
        "folder of the examination, or its folder and the beginning of the file names",
        "Without it every examination is a subject without ECG",
    )


def make(**options: Any) -> "Nifti":
    """The source that the command line describes."""
    return Nifti(**options)


@dataclasses.dataclass(frozen=True)
class NiftiTask(PairedTask):
    """A record whose CMR is the examination `files`; `cmr` is one of them, for the report."""

    files: Files | None = None


class Nifti:
    """Source of subjects with a CMR, an ECG, or both.

    Args:
        input: folder of the NIfTI files, which paths of the table are relative to.
        layout: see `nifti_layouts.find`.
        labels: see `ventricles.convention`; 'none' leaves label maps alone.
        mid, reverse_rows: see `nifti_examination.Options`.
        pairs: table of pairs; without it every examination is a subject without ECG.
        ecg_input: folder of the ECG records; the folder of the NIfTI files when None.
        seed: of the splits, for subjects to whom neither table nor data set gives one.
        shortest: least length of an ECG in seconds.

    Raises:
        FileNotFoundError: the folder or a table is absent, or there is no file of the layout.
        ValueError: a table cannot be used, `labels` is missing where there are label maps, or two
            examinations have one name and no table says whose they are.
    """

    name = "nifti"

    def __init__(
        self,
        input: str | os.PathLike,
        layout: str = "auto",
        labels: str | None = None,
        *,
        mid: str = "refuse",
        reverse_rows: bool = False,
        pairs: str | os.PathLike | None = None,
        ecg_input: str | os.PathLike | None = None,
        seed: int = 0,
        shortest: float = 10.0,
        ecg_settings: ecg.EcgSettings = ecg.DEFAULT,
        cmr_settings: cmr.CmrSettings = cmr.DEFAULT,
    ):
        folder = pathlib.Path(input)
        layout, found = nifti_layouts.find(folder, layout, seed)
        meaning = None if labels in (None, "none") else convention(labels)
        if labels is None:
            _check_no_label_maps(found)
        self.ecg_settings, self.cmr_settings = ecg_settings, cmr_settings
        self.settings = {"ecg": ecg_settings.as_dict(), "cmr": cmr_settings.as_dict()}
        self._options = Options(meaning, mid, reverse_rows)
        self._shortest = shortest
        self.parameters = {
            "layout": layout,
            "labels": None if meaning is None else dataclasses.asdict(meaning),
            "mid": mid,
            "reverse_rows": reverse_rows,
            "seed": seed,
            "shortest": shortest,
        }
        own = _labels(found, meaning)
        groups = sorted({one.details["group"] for one in found if one.details.get("group")})
        own += tuple(Label(g, "binary", "group", "", f"group of the data set: {g}") for g in groups)
        if pairs is None:
            self.labels = own
            tasks = [_task(one, groups, seed) for one in found]
            _check_names(folder, tasks)
        else:
            ecg_folder = folder if ecg_input is None else pathlib.Path(ecg_input)
            further, rows = read_pairs(pairs, folder, ecg_folder, seed)
            if twice := sorted({x.name for x in own} & {x.name for x in further}):
                raise ValueError(
                    f"{pairs}: columns {', '.join(twice)} also follow from the files; remove them, "
                    "or give the columns other names"
                )
            self.labels = own + further
            tasks = _pair(folder, pathlib.Path(pairs), rows, found, groups)
        self.tasks = tuple(tasks)

    def load(self, task: NiftiTask) -> Subject:
        """Reads and prepares what a record has.

        Raises:
            RefusedRecord: the record is refused, or one of its files cannot be used.
        """
        seconds = self.ecg_settings.samples / self.ecg_settings.rate
        if task.refusal:
            raise RefusedRecord(task.path or "", task.refusal)
        subject = dataclasses.replace(task, cmr=None).load(
            lambda path: wfdb.read(path, seconds=seconds),
            lambda path: None,
            self.ecg_settings,
            self.cmr_settings,
            self._shortest,
        )
        if task.files is not None:
            found = nifti_examination.prepare(task.files, self._options, self.cmr_settings)
            subject.cmr, subject.cmr_box = found.image, found.box
            subject.labels |= found.labels
            subject.flags += found.flags
        return subject


def _check_no_label_maps(found: Sequence[Found]) -> None:
    maps = [path for one in found for path in one.files.label_maps]
    if maps:
        raise ValueError(
            f"there are label maps, such as {maps[0]}: say what their numbers mean with --labels "
            f"({', '.join(CONVENTIONS)}, or lv=1,myo=2,rv=3), or --labels none"
        )


def _labels(found: Sequence[Found], meaning: Convention | None) -> tuple[Label, ...]:
    """What the files may give: phenotypes of the label maps, and what the data set's table says."""
    groups = set()
    if meaning is not None and any(one.files.label_maps for one in found):
        groups = {"LV", "WT"} if meaning.rv is None else {"LV", "WT", "RV"}
    phenotypes = [label for label in PHENOTYPES if label.group in groups]
    if meaning is not None and meaning.rv is None:
        phenotypes = [x for x in phenotypes if x.group != "WT" or x.name == "WT_global"]
    if not any(one.files.cine for one in found):
        phenotypes = [label for label in phenotypes if label.name != "LVCO"]
    given = {name for one in found for name, text in one.details.items() if text}
    return *phenotypes, *(label for label in DEMOGRAPHICS if label.name in given)


def _task(one: Found, groups: Sequence[str], seed: int) -> NiftiTask:
    subject = ukb_files.participant(one.name)
    values, flags = _table_values(one, groups)
    return NiftiTask(
        record=one.name,
        subject=subject,
        split=one.split or assign_split(subject, seed),
        ecg=None,
        cmr=one.path,
        labels=values,
        flags=flags,
        split_assigned=one.split is None,
        refusal=one.problem,
        files=one.files,
    )


def _table_values(one: Found, groups: Sequence[str]) -> tuple[dict[str, float], tuple[str, ...]]:
    values, flags = nifti_layouts.demographics(one.details)
    if one.details.get("group"):
        values |= {group: float(group == one.details["group"]) for group in groups}
    return values, flags


def _check_names(folder: pathlib.Path, tasks: Sequence[NiftiTask]) -> None:
    places: dict[str, pathlib.Path] = {}
    for task in tasks:
        other = places.setdefault(task.record, task.cmr)
        if other != task.cmr:
            raise ValueError(
                f"{folder}: two examinations are called {task.record} ({other} and {task.cmr}); "
                "say with --pairs whose they are"
            )
    check_splits(folder, tasks)


def _pair(
    folder: pathlib.Path,
    table: pathlib.Path,
    rows: Sequence[PairedTask],
    found: Sequence[Found],
    groups: Sequence[str],
) -> list[NiftiTask]:
    """The rows of the table with their examinations; what has no row is refused."""
    places: Mapping[pathlib.Path, Found] = {folder / one.place: one for one in found}
    tasks, used = [], set()
    for row in rows:
        fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
        task = NiftiTask(**fields)
        if row.cmr is not None and not row.refusal:
            one = places.get(row.cmr)
            if one is None:
                reason = "no NIfTI files of this examination in the input folder"
                task = dataclasses.replace(task, refusal=reason)
            else:
                used.add(row.cmr)
                values, flags = _table_values(one, groups)
                task = dataclasses.replace(
                    task,
                    cmr=one.path,
                    files=one.files,
                    labels=values | dict(row.labels),
                    flags=flags,
                    refusal=one.problem,
                )
        tasks.append(task)
    reason = f"{table.name} has no row with this examination"
    for place, one in places.items():
        if place not in used:
            tasks.append(NiftiTask(one.place, "", "", None, one.path, refusal=reason))
    return tasks
