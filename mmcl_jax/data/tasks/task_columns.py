"""The tasks of a large table, kept as columns: a million task objects fill a gigabyte."""

import array
import math
import os
import pathlib
from collections.abc import Sequence
from typing import overload

from mmcl_jax.data.subject import assign_split
from mmcl_jax.data.tasks.ecg_task import EcgTask


class TaskColumns(Sequence[EcgTask]):
    """ECG tasks whose splits come from a hash of the subject, made when they are asked for.

    Args:
        folder: what the files of the records are relative to.
        labels: names of the values of a record.
        seed: of the splits.
    """

    def __init__(self, folder: str | os.PathLike, labels: Sequence[str], seed: int):
        self._folder = pathlib.Path(folder)
        self._labels, self._seed = tuple(labels), seed
        self._rows: list[tuple[str, str, str]] = []  # record, subject, file
        self._values = array.array("d")
        self._refusals: dict[int, str] = {}

    def append(
        self, record: str, subject: str, file: str, values: Sequence[float], refusal: str = ""
    ) -> None:
        """Adds a record; a missing value is NaN. See `EcgTask` for `refusal`."""
        if len(values) != len(self._labels):
            raise ValueError(f"{record}: {len(values)} values for {len(self._labels)} labels")
        if refusal:
            self._refusals[len(self._rows)] = refusal
        self._rows.append((record, subject, file))
        self._values.extend(values)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> EcgTask: ...

    @overload
    def __getitem__(self, index: slice) -> list[EcgTask]: ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        record, subject, file = self._rows[position]
        width = len(self._labels)
        values = self._values[position * width : (position + 1) * width]
        return EcgTask(
            record=record,
            subject=subject,
            split=assign_split(subject, self._seed),
            path=self._folder / file,
            labels={
                name: value
                for name, value in zip(self._labels, values, strict=True)
                if not math.isnan(value)
            },
            split_assigned=True,
            refusal=self._refusals.get(position, ""),
        )
