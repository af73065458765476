"""Tensors as the published code reads them: `.pt` files of ECGs, images and labels, per split.

ECGs are (N, 12, 5000). Images are a tensor or list of (3, 210, 210): ES, mid, ED. Labels are a list
of class numbers or a one-hot tensor, phenotypes a tensor (N, 75) with a mask. Row i of each belongs
to row i of the others. No PyTorch is needed and nothing in the files is executed.
"""

import argparse
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from mmcl_jax.data.formats.arrays import CmrArray
from mmcl_jax.data.formats.csv_table import KNOWN_LABELS
from mmcl_jax.data.images.cmr import DEFAULT as CMR_DEFAULT
from mmcl_jax.data.images.cmr import CmrSettings
from mmcl_jax.data.signals.ecg import DEFAULT, EcgSettings
from mmcl_jax.data.subject import SPLITS, Subject
from mmcl_jax.data.targets.labels import PHENOTYPES, Label
from mmcl_jax.data.tasks.ecg_task import add_length_argument
from mmcl_jax.data.tasks.row_task import RowTask, RowTasks, add_signal_arguments, signals
from mmcl_jax.port import torch_file

EXAMPLE = (
    "--input tensors --preprocessed --train-labels CAD=labels_train_CAD.pt --output cohorts/pt"
)


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of one split.

    Attributes:
        ecg: tensor (N, 12, T).
        images: frames of the same rows.
        labels: file by label name.
        phenotypes, mask: tensors (N, 75); 1 where a phenotype is known.
    """

    ecg: pathlib.Path
    images: pathlib.Path | None = None
    labels: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    phenotypes: pathlib.Path | None = None
    mask: pathlib.Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source on the command line."""
    parser.add_argument(
        "--input",
        default="",
        metavar="FOLDER",
        help="folder that the other paths are relative to. A split whose ECGs are not given takes "
        "the file ecgs_SPLIT_*.pt of it, where there is one",
    )
    for split in SPLITS:
        parser.add_argument(f"--{split}-ecg", default="", metavar="FILE", help="(N, 12, 5000)")
        parser.add_argument(f"--{split}-images", default="", metavar="FILE", help="(3, 210, 210)")
        parser.add_argument(
            f"--{split}-labels",
            default="",
            metavar="NAME=FILE,...",
            help="class numbers or one-hot; CAD, AF and DM are known names",
        )
        parser.add_argument(
            f"--{split}-phenotypes", default="", metavar="FILE", help="(N, 75), as published"
        )
        parser.add_argument(f"--{split}-mask", default="", metavar="FILE", help="of the phenotypes")
    parser.add_argument(
        "--phenotypes-in",
        choices=("sd", "units"),
        default="sd",
        help="phenotypes are z-scored, as the published code wants them, or in mL, g, mm and %%; "
        "default: sd",
    )
    add_signal_arguments(parser)
    add_length_argument(parser)


def make(**options: Any) -> "Pt":
    """The source that the command line describes."""
    folder = pathlib.Path(options.pop("input"))
    files = {}
    for split in SPLITS:
        kinds = ("ecg", "images", "labels", "phenotypes", "mask")
        given = {kind: options.pop(f"{split}_{kind}") for kind in kinds}
        labels = _named_files(split, given.pop("labels"))
        ecg = given.pop("ecg") or _find_ecgs(folder, split)
        if ecg:
            others = {kind: folder / file if file else None for kind, file in given.items()}
            paths = {name: folder / file for name, file in labels.items()}
            files[split] = Files(folder / ecg, labels=paths, **others)
        elif labels or any(given.values()):
            raise ValueError(f"--{split}-ecg is missing, but other files of the split are given")
    return Pt(files, **options)


class Pt:
    """Source of subjects in tensors.

    Args:
        files: by split.
        phenotypes_in: 'sd' where they are z-scored, 'units' where they are in their own units.
        leads, rate, unit, preprocessed, shortest: see `row_task.signals`.

    Raises:
        FileNotFoundError: a file is absent.
        ValueError: no split is given, tensors do not fit each other, or hold something else.
    """

    name = "pt"

    def __init__(
        self,
        files: Mapping[str, Files],
        *,
        phenotypes_in: str = "sd",
        rate: float = 0.0,
        unit: str = "",
        leads: str = "",
        preprocessed: bool = False,
        shortest: float = 10.0,
        settings: EcgSettings = DEFAULT,
        cmr_settings: CmrSettings = CMR_DEFAULT,
    ):
        if not files:
            raise ValueError("no ECGs: give --train-ecg, or --input with a file ecgs_train_*.pt")
        self._signals = signals(leads, rate, unit, preprocessed, shortest, settings)
        self._ecgs = {split: self._signals.array(f.ecg) for split, f in files.items()}
        self._images = {
            split: CmrArray(os.fspath(f.images), "") for split, f in files.items() if f.images
        }
        for split, ecgs in self._ecgs.items():
            first = range(min(_LOOKED_AT, len(ecgs)))
            reads = [functools.partial(ecgs.recording, row) for row in first]
            self._signals.check_first(files[split].ecg, reads)
            if split in self._images:
                _check_length(files[split].images, len(self._images[split]), files[split].ecg, ecgs)
        self.labels, values = _labels(files, self._ecgs, phenotypes_in)
        self._cmr_settings = cmr_settings
        self.settings = {"ecg": self._signals.as_settings()}
        if self._images:
            self.settings["cmr"] = self._signals.as_image_settings(cmr_settings)
        self.parameters = {"phenotypes_in": phenotypes_in, **self._signals.as_parameters()}
        rows = [(split, row) for split, ecgs in self._ecgs.items() for row in range(len(ecgs))]
        self.tasks = RowTasks(len(rows), functools.partial(_task, rows, files, self.labels, values))

    def load(self, task: RowTask) -> Subject:
        """Reads and preprocesses one record. Raises RefusedRecord when it cannot be used."""
        read = functools.partial(self._ecgs[task.split].recording, task.row)
        return self._signals.subject(task, read, self._images.get(task.split), self._cmr_settings)


# A cohort whose first recordings all contradict what was declared is not begun.
_LOOKED_AT = 3

# Columns of the published phenotype tensors in the order of `PHENOTYPES`. Columns 10 to 23, atria
# and aorta, are not used.
_PHENOTYPE_COLUMNS = (*range(10), *range(24, 75))
_PUBLISHED_WIDTH = 75


def _find_ecgs(folder: pathlib.Path, split: str) -> str:
    found = sorted(path.name for path in folder.glob(f"ecgs_{split}_*.pt"))
    if len(found) > 1:
        raise ValueError(f"{folder} holds {', '.join(found)}; choose one with --{split}-ecg")
    return found[0] if found else ""


def _named_files(split: str, text: str) -> dict[str, str]:
    named = {}
    for part in filter(None, text.split(",")):
        name, _, file = (piece.strip() for piece in part.partition("="))
        if not name or not file or name in named:
            raise ValueError(f"--{split}-labels: {part!r} cannot be read, expected NAME=FILE")
        named[name] = file
    return named


def _labels(
    files: Mapping[str, Files], ecgs: Mapping[str, Any], phenotypes_in: str
) -> tuple[tuple[Label, ...], dict[str, Float32[np.ndarray, "N K"]]]:
    """The labels of all splits, and their values by split, NaN where missing."""
    labels: list[Label] = []
    columns: dict[str, list[np.ndarray]] = {split: [] for split in files}

    def add(found: tuple[Label, ...], values: Mapping[str, np.ndarray]) -> None:
        labels.extend(found)
        for split, rows in columns.items():
            absent = np.full((len(ecgs[split]), len(found)), np.nan)
            rows.append(values.get(split, absent))

    for name in dict.fromkeys(name for f in files.values() for name in f.labels):
        numbers, classes = {}, 2
        for split, f in files.items():
            if name in f.labels:
                numbers[split], count = _class_numbers(f.labels[name])
                classes = max(classes, count)
                _check_length(f.labels[name], len(numbers[split]), f.ecg, ecgs[split])
        add((_class_label(name, classes),), {s: n[:, None] for s, n in numbers.items()})

    phenotypes = {}
    for split, f in files.items():
        if f.phenotypes:
            phenotypes[split] = _phenotypes(f)
            _check_length(f.phenotypes, len(phenotypes[split]), f.ecg, ecgs[split])
            _check_scale(f.phenotypes, phenotypes[split], phenotypes_in)
        elif f.mask:
            raise ValueError(f"{f.mask}: a mask without phenotypes")
    if phenotypes:
        unit = {"unit": "sd"} if phenotypes_in == "sd" else {}
        add(tuple(dataclasses.replace(label, **unit) for label in PHENOTYPES), phenotypes)
    values = {
        split: np.concatenate([np.empty((len(ecgs[split]), 0)), *rows], 1).astype(np.float32)
        for split, rows in columns.items()
    }
    return tuple(labels), values


def _class_numbers(path: pathlib.Path) -> tuple[Float[np.ndarray, " N"], int]:
    """Number of the class of each row, and how many classes the file knows of."""
    found = torch_file.load(path)
    try:
        numbers = np.asarray(found, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected class numbers, found {type(found).__name__}") from error
    if numbers.ndim == 2 and numbers.shape[1] > 1:
        bad = np.flatnonzero((numbers.max(axis=1) != 1) | (np.abs(numbers).sum(axis=1) != 1))
        if len(bad):
            raise ValueError(
                f"{path}: row {bad[0]} is {numbers[bad[0]]}, expected one 1 and else 0"
            )
        return numbers.argmax(axis=1).astype(np.float64), numbers.shape[1]
    numbers = numbers.reshape(len(numbers), -1) if numbers.ndim else numbers
    if numbers.ndim != 2 or numbers.shape[1] != 1:
        raise ValueError(f"{path}: shape is {np.shape(found)}, expected (N,) or one-hot (N, C)")
    numbers = numbers[:, 0]
    bad = np.flatnonzero((numbers < 0) | (numbers >= _MOST_CLASSES) | (numbers % 1 != 0))
    if len(bad):
        raise ValueError(
            f"{path}: row {bad[0]} is {numbers[bad[0]]:g}, expected the number of a class"
        )
    return numbers, int(numbers.max(initial=0)) + 1


_MOST_CLASSES = 100


def _class_label(name: str, classes: int) -> Label:
    if classes > 2:
        return Label(name, "multiclass", name, classes=tuple(map(str, range(classes))))
    known = [label for label in KNOWN_LABELS if (label.name, label.kind) == (name, "binary")]
    return known[0] if known else Label(name, "binary", "label")


def _phenotypes(files: Files) -> Float[np.ndarray, "N 61"]:
    """The 61 phenotypes of a split, NaN where the mask is 0."""
    tensors = []
    for path in filter(None, (files.phenotypes, files.mask)):
        tensor = torch_file.open_tensor(path)
        if tensor.ndim != 2 or tensor.shape[1] != _PUBLISHED_WIDTH:
            raise ValueError(f"{path}: shape is {tensor.shape}, expected (N, {_PUBLISHED_WIDTH})")
        tensors.append(tensor[:, _PHENOTYPE_COLUMNS].astype(np.float64))
    values = np.where(np.isfinite(tensors[0]), tensors[0], np.nan)
    if files.mask:
        mask = tensors[1]
        if mask.shape != values.shape:
            raise ValueError(f"{files.mask} has {len(mask)} rows, {files.phenotypes} {len(values)}")
        if not np.isin(mask, (0, 1)).all():
            raise ValueError(f"{files.mask}: a mask holds 0 and 1 only")
        values = np.where(mask == 1, values, np.nan)
    return values


def _check_scale(path: pathlib.Path, values: Float[np.ndarray, "N 61"], declared: str) -> None:
    """Raises ValueError where most phenotypes are z-scores and are not declared so, or reverse."""
    known = [column[~np.isnan(column)] for column in values.T]
    known = [column for column in known if len(column) >= _ENOUGH]
    standard = [abs(c.mean()) < 0.5 and 0.5 < c.std() < 2 for c in known]
    if known and (np.mean(standard) > 0.5) != (declared == "sd"):
        other = "units" if declared == "sd" else "sd"
        found = "not z-scored" if declared == "sd" else "z-scored"
        raise ValueError(
            f"{path}: the phenotypes are {found}, the first has mean {known[0].mean():.3g}; use "
            f"--phenotypes-in {other}"
        )


_ENOUGH = 20  # values for a mean and a standard deviation that say something


def _check_length(path: pathlib.Path, found: int, ecg: pathlib.Path, ecgs: Any) -> None:
    if found != len(ecgs):
        raise ValueError(
            f"{path} has {found:,} rows, {ecg} {len(ecgs):,}; row i of the one must belong to row "
            "i of the other"
        )


def _task(
    rows: list[tuple[str, int]],
    files: Mapping[str, Files],
    labels: tuple[Label, ...],
    values: Mapping[str, Float32[np.ndarray, "N K"]],
    index: int,
) -> RowTask:
    split, row = rows[index]
    record = f"{split}{row:06d}"
    pairs = zip(labels, values[split][row].tolist(), strict=True)
    return RowTask(
        record=record,
        subject=record,
        split=split,
        path=files[split].ecg,
        labels={label.name: value for label, value in pairs if not math.isnan(value)},
        row=row,
    )
