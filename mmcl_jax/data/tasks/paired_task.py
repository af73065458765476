"""One record of a source with an ECG, a CMR or both: where they are, what its tables say of it."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

from mmcl_jax.data.images import cmr, short_axis
from mmcl_jax.data.images.short_axis import Cine
from mmcl_jax.data.signals import ecg
from mmcl_jax.data.signals.ecg import Recording
from mmcl_jax.data.signals.lead_statistics import lead_statistics
from mmcl_jax.data.subject import RefusedRecord, Subject


@dataclasses.dataclass(frozen=True)
class PairedTask:
    """What is needed to make the subject of one record.

    Attributes:
        record, subject, split, split_assigned: see `Subject`.
        ecg, cmr: the two files, None where there is none.
        labels: value by label name; a missing label is absent.
        flags: remarks that the tables give rise to.
        refusal: why the record cannot be used, whatever its files hold; '' when it can.
    """

    record: str
    subject: str
    split: str
    ecg: pathlib.Path | None
    cmr: pathlib.Path | None
    labels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    flags: tuple[str, ...] = ()
    split_assigned: bool = False
    refusal: str = ""

    @property
    def path(self) -> pathlib.Path | None:
        """The file that the report names: the ECG where there is one."""
        return self.ecg or self.cmr

    def load(
        self,
        read_ecg: Callable[[pathlib.Path], Recording],
        read_cmr: Callable[[pathlib.Path], Cine],
        ecg_settings: ecg.EcgSettings = ecg.DEFAULT,
        cmr_settings: cmr.CmrSettings = cmr.DEFAULT,
        shortest: float | None = None,
    ) -> Subject:
        """Reads and prepares what the record has.

        Raises:
            RefusedRecord: the record is refused, or one of its files cannot be used.
        """
        if self.refusal:
            raise RefusedRecord(self.path or "", self.refusal)
        subject = Subject(
            record=self.record,
            subject=self.subject,
            split=self.split,
            ecg=None,
            cmr=None,
            cmr_box=None,
            labels=dict(self.labels),
            flags=self.flags,
            split_assigned=self.split_assigned,
        )
        if self.ecg is not None:
            recording = read_ecg(self.ecg)
            signal, flags = ecg.standardise(self.ecg, recording, ecg_settings, shortest)
            subject.ecg = ecg.preprocess_and_pad(signal, ecg_settings)
            subject.lead_statistics = lead_statistics(signal)
            subject.flags += flags
        if self.cmr is not None:
            image, box, flags = short_axis.prepare(self.cmr, read_cmr(self.cmr), cmr_settings)
            subject.cmr, subject.cmr_box = image, box
            subject.flags += flags
        return subject
