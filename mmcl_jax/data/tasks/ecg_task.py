"""One ECG-only record of a source: where it is and what the source's tables say about it."""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping

from mmcl_jax.data.formats import wfdb
from mmcl_jax.data.signals.ecg import EcgSettings, Recording, preprocess_and_pad, standardise
from mmcl_jax.data.signals.lead_statistics import lead_statistics
from mmcl_jax.data.subject import RefusedRecord, Subject


@dataclasses.dataclass(frozen=True)
class EcgTask:
    """What is needed to make the subject of one recording.

    Attributes:
        record, subject, split, split_assigned: see `Subject`.
        path: file of the recording, named in the report.
        labels: value by label name; a missing label is absent.
        flags: remarks that the tables give rise to.
        refusal: why the record cannot be used, whatever its file holds; '' when it can.
    """

    record: str
    subject: str
    split: str
    path: pathlib.Path
    labels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    flags: tuple[str, ...] = ()
    split_assigned: bool = False
    refusal: str = ""

    def check(self) -> None:
        """Raises RefusedRecord when the record is refused before its file is read."""
        if self.refusal:
            raise RefusedRecord(self.path, self.refusal)

    def subject_with(
        self, recording: Recording, settings: EcgSettings, shortest: float | None = None
    ) -> Subject:
        """The subject with its recording preprocessed. Raises RefusedRecord (see `standardise`)."""
        self.check()
        signal, flags = standardise(self.path, recording, settings, shortest)
        return Subject(
            record=self.record,
            subject=self.subject,
            split=self.split,
            ecg=preprocess_and_pad(signal, settings),
            cmr=None,
            cmr_box=None,
            labels=dict(self.labels),
            flags=self.flags + flags,
            lead_statistics=lead_statistics(signal),
            split_assigned=self.split_assigned,
        )


def read_wfdb(task: EcgTask, settings: EcgSettings) -> Recording:
    """What the preprocessing needs of the task's WFDB record. Raises RefusedRecord."""
    task.check()
    return wfdb.read(task.path, seconds=settings.samples / settings.rate)


def torn_subjects(tasks: Iterable[EcgTask]) -> list[str]:
    """The subjects whose usable records are in more than one split, sorted."""
    splits: dict[str, set[str]] = {}
    for task in tasks:
        if not task.refusal:
            splits.setdefault(task.subject, set()).add(task.split)
    return sorted(subject for subject, found in splits.items() if len(found) > 1)


def check_splits(place: object, tasks: Iterable[EcgTask]) -> None:
    """Raises ValueError naming `place` where a subject is in more than one split."""
    if torn := torn_subjects(tasks):
        raise ValueError(
            f"{place}: {len(torn)} subjects are in more than one split "
            f"({', '.join(torn[:10])}); give all records of a person the same split"
        )


def add_length_argument(parser: argparse.ArgumentParser) -> None:
    """The option for recordings of less than 10 s, the same for every source of ECGs."""
    parser.add_argument(
        "--shortest",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="use recordings of at least so many seconds (1 to 10): what is missing of 10 s "
        "becomes zeros after the signal, and the record is flagged as padded; default: 10, which "
        "refuses them",
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 10:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 10 seconds")
    return value
