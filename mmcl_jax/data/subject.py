"""What a source of recordings hands to the cohort: one record, or the reason for refusing it."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, UInt8

from mmcl_jax.data.targets.labels import Label

SPLITS = ("train", "val", "test")


@dataclasses.dataclass
class Subject:
    """One record of a person, with either modality and any of the source's labels.

    Attributes:
        record: name of the record, unique in the cohort.
        subject: the person; several records may share it.
        split: 'train', 'val' or 'test'.
        ecg: 10 s at 500 Hz, leads I II III aVR aVL aVF V1-V6, after `ecg.preprocess` (no unit).
        cmr: the ES, mid and ED frame of a short-axis slice, 0 to 255.
        cmr_box: box around the heart: top, left, height, width in pixels.
        labels: value by label name, in the label's own unit; a missing label is absent.
        flags: remarks on a record that is used all the same, as 'kind: detail'; the report counts
            them by kind. A kind names no person and no file: a cohort with hashed names keeps it.
        lead_statistics: of the ECG in mV, see `signals/lead_statistics.py`; for the report.
        split_assigned: the split comes from `assign_split`, not from the data set. Such a record
            is refused when it holds the same ECG as one of another split; otherwise that is an
            error of the data set.
        stored_as: names of the record and the person in the cohort; None: those above.
    """

    record: str
    subject: str
    split: str
    ecg: Float[np.ndarray, "12 5000"] | None
    cmr: UInt8[np.ndarray, "210 210 3"] | None
    cmr_box: tuple[int, int, int, int] | None
    labels: dict[str, float]
    flags: tuple[str, ...] = ()
    lead_statistics: Float[np.ndarray, "12 4"] | None = None
    split_assigned: bool = False
    stored_as: tuple[str, str] | None = None


class RefusedRecord(Exception):
    """A record that cannot be used; the report lists it with its file and reason."""

    def __init__(self, path: str | os.PathLike, reason: str):
        # Both go to `args`, so that the error survives the way back from a worker process.
        super().__init__(os.fspath(path), reason)
        self.path = os.fspath(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Source(Protocol):
    """A data set in its native layout. Picklable, because worker processes load from it.

    Attributes:
        name: name of the source in the report.
        labels: every label that a subject of this source may carry.
        settings: preprocessing settings as JSON; two cohorts fit together when these are equal.
        parameters: what else decides the records, such as a seed, as JSON.
        tasks: one small picklable item per record; `load` gets all that it needs from its task,
            because worker processes have a source without tasks.
    """

    name: str
    labels: tuple[Label, ...]
    settings: Mapping[str, Any]
    parameters: Mapping[str, Any]
    tasks: Sequence[Any]

    def load(self, task: Any) -> Subject:
        """Reads and preprocesses one record. Raises `RefusedRecord` when it cannot be used."""
        ...


def assign_split(subject: str, seed: int = 0) -> str:
    """Split of a person by a hash: 70 % train, 15 % val, 15 % test, for sources without splits.

    It depends on nothing but the name and the seed, so that it stays when the source grows.
    """
    digest = hashlib.sha256(f"{seed}/{subject}".encode(errors="surrogateescape")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if position < 0.70 else "val" if position < 0.85 else "test"
