"""Bulk files of UK Biobank: which visit of which participant each belongs to.

Files are named EID_FIELD_INSTANCE_ARRAY, e.g. 1000012_20205_2_0.xml. The instance is the visit: 2
is the first imaging visit, 3 the second.
"""

import collections
import dataclasses
import os
import pathlib
import re

from mmcl_jax.data.formats.folders import files_below

ECG, CMR = 20205, 20209  # fields: resting ECG, short-axis heart images


@dataclasses.dataclass(slots=True)
class Visit:
    """One visit of a participant and its files below the folder, '' where there is none.

    Attributes:
        flags: remarks on the files.
    """

    eid: str
    instance: int
    ecg: str = ""
    cmr: str = ""
    flags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class UkbFiles:
    """What a folder holds: visits by participant and instance, and files of no visit with why."""

    visits: list[Visit]
    strangers: list[tuple[str, str]]


def participant(stem: str) -> str:
    """Who a file is of: the participant where it has a name of UK Biobank, else its own name."""
    return stem.split("_")[0] if re.fullmatch(r"\d+_\d{5}_\d+_\d+", stem) else stem


def find(folder: str | os.PathLike) -> UkbFiles:
    """Looks for ECGs and CMRs at any depth; links are followed. Files of other fields do not count.

    Where a visit has several files of a field, the lowest array index is used and a remark says so.

    Raises:
        FileNotFoundError: the folder is absent or holds none of them.
        OSError: a folder in it cannot be read.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; expected the one of the bulk files")
    found: dict[tuple[str, int], dict[int, list[tuple[int, str]]]] = {}
    strangers = []
    for path in files_below(folder, (".xml", ".zip")):
        file = os.fspath(path.relative_to(folder))
        match = _NAME.fullmatch(os.path.basename(file))
        if match is None:
            strangers.append((file, f"the name is not {_EXPECTED}"))
            continue
        eid, field, instance, index = match[1], int(match[2]), int(match[3]), int(match[4])
        if field not in _SUFFIXES:
            continue
        if match[5].lower() != _SUFFIXES[field]:
            strangers.append((file, f"field {field} is delivered as .{_SUFFIXES[field]}"))
            continue
        fields = found.setdefault((eid, instance), collections.defaultdict(list))
        fields[field].append((index, file))
    if not found:
        raise FileNotFoundError(f"{folder} holds no file named {_EXPECTED}")
    visits = [_visit(*key, found.pop(key)) for key in sorted(found, key=_by_number)]
    return UkbFiles(visits, sorted(strangers))


_SUFFIXES = {ECG: "xml", CMR: "zip"}
_EXPECTED = f"EID_{ECG}_INSTANCE_ARRAY.xml or EID_{CMR}_INSTANCE_ARRAY.zip"
_NAME = re.compile(r"([0-9]+)_([0-9]{1,9})_([0-9]{1,9})_([0-9]{1,9})\.(xml|zip)", re.IGNORECASE)


def _by_number(key: tuple[str, int]) -> tuple[int, str, int]:
    eid, instance = key
    return len(eid), eid, instance


def _visit(eid: str, instance: int, fields: dict[int, list[tuple[int, str]]]) -> Visit:
    visit = Visit(eid, instance)
    for field, files in fields.items():
        (_, used), *others = sorted(files)
        if field == ECG:
            visit.ecg = used
        else:
            visit.cmr = used
        if others:
            names = ", ".join(file for _, file in others)
            visit.flags += (f"several files of field {field}: {used} is used, {names} not",)
    return visit
