"""Which NIfTI files belong to one examination, in the layouts in which cine CMR is published.

acdc   patient001/patient001_4d.nii.gz, patient001_frame01.nii.gz, patient001_frame01_gt.nii.gz,
       Info.cfg; folders training/ and testing/
mms    A0S9V9/A0S9V9_sa.nii.gz, A0S9V9_sa_gt.nii.gz; a table of the subjects; folders Training/,
       Validation/ and Testing/ (M&Ms-1)
mms2   001/001_SA_CINE.nii.gz, 001_SA_ED.nii.gz, 001_SA_ED_gt.nii.gz, ...;
       dataset_information.csv (M&Ms-2)
ukb    1234567/sa.nii.gz, sa_ED.nii.gz, sa_ES.nii.gz, label_sa_ED.nii.gz or seg_sa_ED.nii.gz,
       ...; or all files in one folder with the subject in front: 1234567_sa_ED.nii.gz
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator, Mapping

from mmcl_jax.data.formats.csv_table import CsvTable, number
from mmcl_jax.data.formats.folders import files_below
from mmcl_jax.data.images.nifti_examination import Files
from mmcl_jax.data.subject import assign_split

LAYOUTS = ("acdc", "mms", "mms2", "ukb")


@dataclasses.dataclass
class Found:
    """One examination of a folder.

    Attributes:
        name: of the folder or, where several share one, what their file names begin with.
        place: path of it from the input folder, with the beginning of the file names.
        files: what there is; None when nothing can be read.
        path: a file of it.
        split: of the data set's own division; None where it has none.
        details: cells of the data set's table for it: group, age, sex, height, weight.
        problem: why it cannot be used; '' when it can.
    """

    name: str
    place: str
    files: Files
    path: pathlib.Path
    split: str | None
    details: Mapping[str, str]
    problem: str


def find(folder: pathlib.Path, layout: str = "auto", seed: int = 0) -> tuple[str, list[Found]]:
    """The layout of a folder and its examinations, in the order of their places.

    Args:
        layout: one of `LAYOUTS`, or 'auto' to tell it from the names of the files.
        seed: of the division of ACDC's training set into train and val; it has no val of its own.

    Raises:
        FileNotFoundError: the folder is absent, or holds no file of the layout.
        OSError: a folder in it cannot be read.
        ValueError: a table of the data set cannot be used.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; expected one with NIfTI files")
    groups = _groups(folder)
    if layout == "auto":
        layout = _tell(folder, groups)
    acdc = layout == "acdc"
    groups = {place: roles for place, roles in groups.items() if _is_acdc(roles) == acdc}
    if not groups:
        raise FileNotFoundError(
            f"{folder} holds no NIfTI files named as in layout {layout}; "
            "see python -m mmcl_jax.prepare nifti --help"
        )
    tables = {"mms": _mms_table, "mms2": _mms2_table}
    table = tables[layout](folder) if layout in tables else {}
    found = []
    for (place, name), roles in sorted(groups.items()):
        path = next(iter(sorted(paths[0] for paths in roles.values())))
        info, problem = _info(path.parent / "Info.cfg") if acdc else ({}, "")
        details = table.get(name, info)
        files, clash = _files(roles, details, first_frame=1 if acdc else 0)
        found.append(
            Found(
                name=name,
                place=place,
                files=files,
                path=path,
                split=_split(layout, pathlib.PurePath(place), name, seed),
                details=details,
                problem=problem or clash,
            )
        )
    return layout, found


# Files by role: 'cine', 'ed', 'es' or the number of a frame, and the same with '_labels'.
Roles = dict[str, list[pathlib.Path]]

_LABELS = "label|seg|gt"
_PIPELINE = re.compile(
    rf"(?:(?P<stem>(?!(?:{_LABELS})_).+?)_)?(?:(?P<before>{_LABELS})_)?sa"
    rf"(?:_(?P<phase>ed|es|cine))?(?:_(?P<after>{_LABELS}))?",
    re.IGNORECASE,
)
_ACDC = re.compile(r"(?P<stem>.+)_(?:4d|frame(?P<frame>\d+))(?P<after>_gt)?", re.IGNORECASE)
_MMS_TABLE = "*M&Ms*nformation*.csv"
_MMS2_TABLE = "dataset_information.csv"
_FOLDERS = {"training": "train", "validation": "val", "testing": "test"}


def _groups(folder: pathlib.Path) -> dict[tuple[str, str], Roles]:
    """Files by examination (its place and name) and role."""
    named: dict[tuple[pathlib.Path, str], Roles] = {}
    for path in _nifti_files(folder):
        stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
        if match := _ACDC.fullmatch(stem):
            role = "cine" if match["frame"] is None else str(int(match["frame"]))
            labels = bool(match["after"])
        elif match := _PIPELINE.fullmatch(stem):
            phase = (match["phase"] or "cine").lower()
            role, labels = phase, bool(match["before"] or match["after"])
        else:
            continue  # long axes and what else is beside the short axis
        roles = named.setdefault((path.parent, match["stem"] or ""), {})
        roles.setdefault(role + "_labels" * labels, []).append(path)
    groups = {}
    for (parent, stem), roles in named.items():
        place = parent.relative_to(folder)
        if stem and stem != parent.name:
            place /= stem
        groups[place.as_posix(), stem or parent.resolve().name] = roles
    return groups


def _nifti_files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for path in files_below(folder, (".nii", ".nii.gz")):
        if not path.name.startswith("."):
            yield path


def _is_acdc(roles: Roles) -> bool:
    names = [path.name.lower() for paths in roles.values() for path in paths]
    return any("_4d" in name or "_frame" in name for name in names)


def _tell(folder: pathlib.Path, groups: Mapping[tuple[str, str], Roles]) -> str:
    kinds = {_is_acdc(roles) for roles in groups.values()}
    if len(kinds) > 1:
        raise ValueError(f"{folder} holds files of several layouts; choose one with --layout")
    if kinds == {True}:
        return "acdc"
    if any(folder.glob(_MMS_TABLE)):
        return "mms"
    return "mms2" if (folder / _MMS2_TABLE).is_file() else "ukb"


def _files(roles: Roles, details: Mapping[str, str], first_frame: int) -> tuple[Files, str]:
    """The files by role, and what is wrong with them."""
    problem = ""
    chosen = {}
    for role, paths in roles.items():
        # Manual label maps ('label', 'gt') go before automatic ones ('seg').
        manual = [path for path in paths if not re.search(r"(^|_)seg_", path.name, re.IGNORECASE)]
        paths = manual if role.endswith("_labels") and manual else paths
        if len(paths) > 1:
            problem = f"several files for one thing: {', '.join(path.name for path in paths)}"
        chosen[role] = paths[0]
    ed, es = (_frame(details, name) for name in ("ED", "ES"))
    if ed is not None and es is not None:
        for phase, frame in (("ed", ed), ("es", es)):
            for suffix in ("", "_labels"):
                if f"{frame}{suffix}" in chosen:
                    chosen[phase + suffix] = chosen[f"{frame}{suffix}"]
        ed, es = ed - first_frame, es - first_frame
    fields = ("cine", "cine_labels", "ed", "ed_labels", "es", "es_labels")
    files = Files(**{name: chosen.get(name) for name in fields}, ed_frame=ed, es_frame=es)
    if not problem and (files.cine or files.ed or files.es) is None:
        problem = "no image: only label maps, or frames of which nothing says whether ED or ES"
    return files, problem


def _frame(details: Mapping[str, str], name: str) -> int | None:
    text = details.get(name, "")
    return int(float(text)) if re.fullmatch(r"\d+(\.0*)?", text) else None


def _info(path: pathlib.Path) -> tuple[dict[str, str], str]:
    """What ACDC writes beside the files of a patient, 'key: value', and what is wrong with it."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}, "Info.cfg is absent beside it; it says which frames are ED and ES"
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    info = {key.strip(): value.strip() for key, value in pairs}
    if _frame(info, "ED") is None or _frame(info, "ES") is None:
        return {}, "Info.cfg does not say which frames are ED and ES, as in 'ED: 1'"
    return _details(info, group="Group", height="Height", weight="Weight") | info, ""


def _mms_table(folder: pathlib.Path) -> dict[str, dict[str, str]]:
    paths = sorted(folder.glob(_MMS_TABLE))
    if not paths:
        raise FileNotFoundError(f"{folder}: the table of M&Ms ({_MMS_TABLE}) is absent")
    names = {"group": "Pathology", "age": "Age", "sex": "Sex"}
    names |= {"height": "Height", "weight": "Weight"}
    table = {}
    for row in CsvTable(paths[0], ("External code", "ED", "ES", *names.values())):
        frames = {phase: row.cells[phase] for phase in ("ED", "ES")}
        table[row.cells["External code"]] = _details(row.cells, **names) | frames
    return table


def _mms2_table(folder: pathlib.Path) -> dict[str, dict[str, str]]:
    path = folder / _MMS2_TABLE
    if not path.is_file():
        return {}
    rows = CsvTable(path, ("SUBJECT_CODE", "DISEASE"))
    return {
        row.cells["SUBJECT_CODE"].zfill(3): _details(row.cells, group="DISEASE") for row in rows
    }


def _details(cells: Mapping[str, str], **columns: str) -> dict[str, str]:
    return {name: cells.get(column, "") for name, column in columns.items()}


def _split(layout: str, place: pathlib.PurePath, name: str, seed: int) -> str | None:
    if layout == "mms2" and re.fullmatch(r"\d{3}", name):
        # The subjects of the challenge's training, validation and test set follow each other.
        return "train" if int(name) <= 160 else "val" if int(name) <= 200 else "test"
    if layout not in ("acdc", "mms"):
        return None
    splits = [_FOLDERS[part.lower()] for part in place.parts if part.lower() in _FOLDERS]
    if splits == ["train"] and layout == "acdc":
        return "val" if assign_split(name, seed) == "val" else "train"
    return splits[0] if splits else None


def demographics(details: Mapping[str, str]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Age, sex (1 male), height in cm and weight in kg of a data set's table, and remarks."""
    values, flags = {}, []
    sex = details.get("sex", "").upper()[:1]
    if sex in ("M", "F"):
        values["sex"] = float(sex == "M")
    for name, (low, high) in _PLAUSIBLE.items():
        text = details.get(name, "")
        try:
            value = number({name: text}, name)
        except ValueError:
            value = math.inf
        if low <= value <= high:
            values[name] = value
        elif not math.isnan(value):
            flags.append(f"{name} left out: {text!r}, expected {low:g} to {high:g}")
    return values, tuple(flags)


_PLAUSIBLE = {"age": (0.0, 120.0), "height": (50.0, 250.0), "weight": (2.0, 350.0)}
