"""One ECG-only record of a source: where it is and what the source's tables say about it."""

import dataclasses
import pathlib
from collections.abc import Mapping

from mmcl_jax.data.ecg import EcgSettings, Recording, prepare
from mmcl_jax.data.subject import Subject


@dataclasses.dataclass(frozen=True)
class EcgTask:
    """What is needed to make the subject of one recording.

    Attributes:
        record, subject, split: see `Subject`.
        path: file of the recording, named in the report.
        labels: value by label name; a missing label is absent.
        flags: remarks that the tables give rise to.
    """

    record: str
    subject: str
    split: str
    path: pathlib.Path
    labels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    flags: tuple[str, ...] = ()

    def subject_with(self, recording: Recording, settings: EcgSettings) -> Subject:
        """The subject with its recording preprocessed. Raises RefusedRecord (see `ecg.prepare`)."""
        ecg, flags = prepare(self.path, recording, settings)
        return Subject(
            record=self.record,
            subject=self.subject,
            split=self.split,
            ecg=ecg,
            cmr=None,
            cmr_box=None,
            labels=dict(self.labels),
            flags=self.flags + flags,
        )
