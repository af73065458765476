"""Arrays of one's own: ECGs in one array or in a file each, with a CSV of labels.

Row i of the array belongs to row i of the CSV. Instead of an array the CSV may name a file per
record in a column `ecg`: `.npy`, or a WFDB record, which says its rate, units and leads itself.
"""

import argparse
import functools
import math
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmcl_jax.data.formats import arrays, wfdb
from mmcl_jax.data.formats.arrays import CmrArray
from mmcl_jax.data.images.cmr import DEFAULT as CMR_DEFAULT
from mmcl_jax.data.images.cmr import CmrSettings
from mmcl_jax.data.signals.ecg import DEFAULT, EcgSettings, Recording
from mmcl_jax.data.subject import Subject
from mmcl_jax.data.targets import label_table
from mmcl_jax.data.targets.label_table import LabelTable
from mmcl_jax.data.tasks.ecg_task import add_length_argument
from mmcl_jax.data.tasks.row_task import RowTask, RowTasks, add_signal_arguments, signals

EXAMPLE = (
    "--input ecg.npy --rate 400 --unit mV --labels labels.csv --binary CAD --multiclass rhythm "
    "--output cohorts/mine"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source on the command line."""
    parser.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help="array [N, leads, samples] or [N, samples, leads] in a .npy, .npz, .h5 or .pt file; "
        "or a folder, and the table names a file of it for each record in a column ecg",
    )
    parser.add_argument(
        "--array", default="", metavar="NAME", help="of the array where a file holds several"
    )
    add_signal_arguments(parser)
    add_length_argument(parser)
    parser.add_argument(
        "--labels",
        metavar="CSV",
        help="columns record, subject (optional), split (train, val, test or empty; optional), "
        "labels; one row per recording, in the order of the array. Without it there are no labels",
    )
    label_table.add_arguments(parser)
    parser.add_argument(
        "--cmr",
        metavar="PATH",
        help="array [N, 3, H, W] or [N, H, W, 3] of the frames ES, mid and ED, row by row with the "
        "ECGs; a row of NaN has none",
    )
    parser.add_argument(
        "--cmr-array", default="", metavar="NAME", help="of the array where a file holds several"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the splits, where the table names none; default: 0"
    )


def make(**options: Any) -> "Table":
    """The source that the command line describes. Says on stderr what deserves a look."""
    declared = {kind: options.pop(kind) for kind in label_table.KINDS}
    source = Table(**options, declared=declared)
    for remark in source.remarks:
        print(f"note: {remark}", file=sys.stderr)
    return source


class Table:
    """Source of recordings in arrays.

    Args:
        input: an array file, or the folder of the files that the table names.
        array: name of the array in the file.
        rate, unit, leads, preprocessed: see `row_task.signals`.
        labels: the table; None for recordings without labels.
        declared: columns of the table by kind, see `label_table.columns`.
        cmr, cmr_array: array of frames, and its name in the file.
        seed: of the splits.
        shortest: least length in seconds.

    Attributes:
        remarks: what deserves a look before the cohort is used.

    Raises:
        FileNotFoundError: a file is absent.
        ValueError: arrays and table do not fit each other, or a declaration does not fit them.
    """

    name = "table"

    def __init__(
        self,
        input: str | os.PathLike,
        array: str = "",
        *,
        rate: float = 0.0,
        unit: str = "",
        leads: str = "",
        preprocessed: bool = False,
        labels: str | os.PathLike | None = None,
        declared: Mapping[str, str] | None = None,
        cmr: str | os.PathLike | None = None,
        cmr_array: str = "",
        seed: int = 0,
        shortest: float = 10.0,
        settings: EcgSettings = DEFAULT,
        cmr_settings: CmrSettings = CMR_DEFAULT,
    ):
        path = pathlib.Path(input)
        columns = label_table.columns(declared or {})
        if path.is_dir():
            if labels is None or cmr is not None or array:
                raise ValueError(
                    f"{path} is a folder: it needs --labels with a column ecg, and has no array"
                )
            table = label_table.read(labels, columns, file_column="ecg", seed=seed)
        elif labels is not None:
            table = label_table.read(labels, columns, seed=seed)
        elif columns:
            raise ValueError("columns are declared, but there is no table; give it with --labels")
        else:
            table = label_table.unlabelled(len(arrays.open_rows(path, array)), seed)
        needed = not path.is_dir() or any(_is_array(file) for file in table.files)
        self._signals = signals(leads, rate, unit, preprocessed, shortest, settings, needed=needed)
        self._ecgs = self._images = None
        if not path.is_dir():
            self._ecgs = self._signals.array(path, array)
            _check_length(path, len(self._ecgs), labels, table)
            first = range(min(_LOOKED_AT, len(self._ecgs)))
            self._signals.check_first(
                path, [functools.partial(self._ecgs.recording, row) for row in first]
            )
        self._cmr_settings = cmr_settings
        self.settings = {"ecg": self._signals.as_settings()}
        if cmr is not None:
            self._images = CmrArray(os.fspath(cmr), cmr_array)
            _check_length(cmr, len(self._images), labels, table)
            self.settings["cmr"] = self._signals.as_image_settings(cmr_settings)
        self._path = path
        self.labels, self.remarks = table.labels, table.remarks
        if not leads and needed:
            self.remarks += (f"leads in the standard order: {', '.join(self._signals.leads)}",)
        self.parameters = {"seed": seed, **self._signals.as_parameters()}
        self.tasks = RowTasks(len(table.records), functools.partial(_task, table, path))

    def load(self, task: RowTask) -> Subject:
        """Reads and preprocesses one record. Raises RefusedRecord when it cannot be used."""
        read = functools.partial(self._recording, task)
        return self._signals.subject(task, read, self._images, self._cmr_settings)

    def _recording(self, task: RowTask) -> Recording:
        if self._ecgs is not None:
            return self._ecgs.recording(task.row)
        if _is_array(task.path):
            return self._signals.recording(np.asarray(arrays.open_rows(task.path)))
        settings = self._signals.settings
        return wfdb.read(task.path, seconds=settings.samples / settings.rate)


# A cohort whose first recordings all contradict what was declared is not begun.
_LOOKED_AT = 3


def _is_array(file: str | os.PathLike) -> bool:
    return os.fspath(file).endswith(".npy")


def _check_length(
    path: str | os.PathLike, found: int, labels: str | os.PathLike | None, table: LabelTable
) -> None:
    if found != len(table.records):
        raise ValueError(
            f"{path} holds {found:,} records, {labels or 'the ECG array'} has "
            f"{len(table.records):,}; row i of the one must belong to row i of the other"
        )


def _task(table: LabelTable, path: pathlib.Path, row: int) -> RowTask:
    values = zip(table.labels, table.values[row].tolist(), strict=True)
    file = table.files[row]
    return RowTask(
        record=table.records[row],
        subject=table.subjects[row],
        split=table.splits[row],
        path=path / file,
        labels={label.name: value for label, value in values if not math.isnan(value)},
        split_assigned=table.assigned[row],
        refusal=table.refusals.get(row, ""),
        row=-1 if file else row,
    )
