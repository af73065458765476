"""Records that are rows of arrays: how the signals are declared, and from a row to a subject."""

import argparse
import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from mmcl_jax.data.formats.arrays import CmrArray, EcgArray, leads_first
from mmcl_jax.data.images import cmr
from mmcl_jax.data.signals import preprocessed
from mmcl_jax.data.signals.ecg import (
    EcgSettings,
    Recording,
    preprocess_and_pad,
    standardise,
    to_millivolt,
)
from mmcl_jax.data.signals.lead_statistics import lead_statistics
from mmcl_jax.data.signals.leads import LEADS, arrange
from mmcl_jax.data.subject import RefusedRecord, Subject
from mmcl_jax.data.tasks.ecg_task import EcgTask


@dataclasses.dataclass(frozen=True)
class RowTask(EcgTask):
    """`path` is the array and `row` its row; -1 where the file holds this record alone."""

    row: int = -1


@dataclasses.dataclass(frozen=True)
class Signals:
    """What the files do not say about their ECGs.

    Attributes:
        leads: name of each signal, in the order of the file.
        rate, unit: samples per second, and unit of all signals; 0 and '' where they are not given.
        preprocessed: the ECGs come as `ecg.preprocess` leaves them, frames in [0, 1].
        shortest: least length in seconds.
        settings: of the preprocessing.
    """

    leads: tuple[str, ...]
    rate: float
    unit: str
    preprocessed: bool
    shortest: float
    settings: EcgSettings

    def as_settings(self) -> dict[str, Any]:
        """Settings of a cohort of such ECGs."""
        if self.preprocessed:
            return preprocessed.settings_with(self.settings)
        return self.settings.as_dict()

    def as_image_settings(self, settings: cmr.CmrSettings) -> dict[str, Any]:
        """Settings of a cohort of frames that come with such ECGs."""
        return preprocessed.settings_with(settings) if self.preprocessed else settings.as_dict()

    def as_parameters(self) -> dict[str, Any]:
        return {
            "leads": list(self.leads),
            "rate": self.rate,
            "unit": self.unit,
            "preprocessed": self.preprocessed,
            "shortest": self.shortest,
        }

    def array(self, path: str | os.PathLike, name: str = "") -> EcgArray:
        """An array of such ECGs."""
        return EcgArray(os.fspath(path), name, self.leads, self.rate, self.unit)

    def recording(self, signal: Shaped[np.ndarray, "..."]) -> Recording:
        """One such ECG. Raises ValueError where its shape does not fit the leads."""
        signal = leads_first(signal, len(self.leads))
        return Recording(signal, self.leads, (self.unit,) * len(self.leads), self.rate)

    def subject(
        self,
        task: RowTask,
        read: Callable[[], Recording],
        images: CmrArray | None = None,
        settings: cmr.CmrSettings = cmr.DEFAULT,
    ) -> Subject:
        """The subject of a record, with the frames of the same row of `images`.

        A row of nothing but NaN is a missing modality. Raises RefusedRecord.
        """
        task.check()
        subject = Subject(
            record=task.record,
            subject=task.subject,
            split=task.split,
            ecg=None,
            cmr=None,
            cmr_box=None,
            labels=dict(task.labels),
            flags=task.flags,
            split_assigned=task.split_assigned,
        )
        try:
            if images is not None:
                frames = images.frames(task.row)
                if not np.isnan(frames).all():
                    if self.preprocessed:
                        subject.cmr = preprocessed.accept_frames(frames, settings)
                    else:
                        subject.cmr = cmr.stack_frames(*frames, settings)
                    subject.cmr_box = cmr.CONSTANT_BOX
            recording = read()
            if subject.cmr is None or not np.isnan(recording.signal).all():
                self._add_ecg(subject, task, recording)
        except FileNotFoundError as error:
            raise RefusedRecord(task.path, "the file is absent") from error
        except (ValueError, OSError) as error:
            raise RefusedRecord(task.path, str(error).removeprefix(f"{task.path}: ")) from error
        return subject

    def check_first(self, path: Any, recordings: Iterable[Callable[[], Recording]]) -> None:
        """Raises ValueError where the first recordings all are as nobody declared them."""
        problems = []
        for read in recordings:
            try:
                recording = read()
                signal, _ = arrange(recording.signal, recording.names)
                if self.preprocessed:
                    preprocessed.accept(signal, self.settings)
                elif preprocessed.is_normalised(signal):
                    raise ValueError(_NORMALISED)
                return
            except ValueError as error:
                problems.append(error)
        if problems:
            raise ValueError(f"{path}: {problems[0]}")

    def _add_ecg(self, subject: Subject, task: RowTask, recording: Recording) -> None:
        if self.preprocessed:
            signal, _ = arrange(recording.signal, recording.names)
            subject.ecg, flags = preprocessed.accept(signal, self.settings)
        else:
            signal, flags = standardise(task.path, recording, self.settings, self.shortest)
            if preprocessed.is_normalised(signal):
                raise ValueError(_NORMALISED)
            subject.ecg = preprocess_and_pad(signal, self.settings)
            subject.lead_statistics = lead_statistics(signal)
        subject.flags += flags


def add_signal_arguments(parser: argparse.ArgumentParser) -> None:
    """The options behind `signals`."""
    parser.add_argument(
        "--rate", type=float, default=0.0, metavar="HZ", help="samples per second; mandatory"
    )
    parser.add_argument("--unit", default="", help="mV, uV, nV or V; mandatory")
    parser.add_argument(
        "--leads",
        default="",
        metavar="I,II,...",
        help=f"leads in the order of the file; default: {','.join(LEADS)}, and the file must have "
        "12 signals. III, aVR, aVL and aVF are derived where they are not among them",
    )
    parser.add_argument(
        "--preprocessed",
        action="store_true",
        help="the ECGs are clipped, freed of their baseline and normalised already, 10 s at "
        "500 Hz, and frames are scaled to [0, 1]: they are checked and used as they are. In place "
        "of --rate and --unit",
    )


def signals(
    leads: str,
    rate: float,
    unit: str,
    preprocessed: bool,
    shortest: float,
    settings: EcgSettings,
    *,
    needed: bool = True,
) -> Signals:
    """Signals as the command line declares them.

    Args:
        needed: whether rate and unit must be given; files that state both do without.

    Raises:
        ValueError: something is missing, contradictory, or no lead or unit.
    """
    names = tuple(name.strip() for name in leads.split(",")) if leads else LEADS
    try:
        arrange(np.zeros((len(names), 1)), names)
    except ValueError as error:
        raise ValueError(f"--leads: {error}") from error
    if preprocessed:
        if rate or unit:
            raise ValueError("--preprocessed is in place of --rate and --unit, found both")
        return Signals(names, float(settings.rate), "", True, shortest, settings)
    if needed and not (rate and unit):
        missing = [name for name, value in (("--rate", rate), ("--unit", unit)) if not value]
        raise ValueError(
            f"{' and '.join(missing)} missing: an array says neither its rate nor its unit"
        )
    if unit:
        try:
            to_millivolt(np.zeros((1, 1)), (unit,), ("I",))
        except ValueError:
            raise ValueError(f"--unit is {unit!r}, expected mV, uV, nV or V") from None
    return Signals(names, rate, unit, False, shortest, settings)


class RowTasks(Sequence[RowTask]):
    """Tasks that are made when they are asked for: a table of labels takes less room than they."""

    def __init__(self, count: int, make: Callable[[int], RowTask]):
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return tuple(self._make(position) for position in range(*index.indices(self._count)))
        return self._make(range(self._count)[index])


_NORMALISED = (
    "every lead group has mean 0 and variance 1: it is normalised already and must not be a second "
    "time. Declare it with --preprocessed, or give the recordings as they were measured"
)
