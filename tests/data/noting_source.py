"""A source that notes what it loads, and fails or waits where it is told to.

In a file of its own because worker processes must be able to import it.
"""

import dataclasses
import errno
import pathlib
import time

from tiny_source import TinySource

from mmcl_jax.data.signals.lead_statistics import lead_statistics

# Refused, flagged, without one half, a record that comes twice, and one ECG that does.
MIXED = {
    "refused": (5, 17),
    "flagged": (2, 22),
    "without_ecg": (11, 28),
    "without_cmr": (4,),
    "paired": 10,
    "changes": ((16, "record", "r006"),),
}


@dataclasses.dataclass(frozen=True)
class NotingSource(TinySource):
    """Notes in the file `log` what is loaded; the machine fails at a task, or waits there."""

    log: str = ""
    fails: int = -1
    waits: int = -1
    seed: int = 3

    @property
    def parameters(self):
        return {"seed": self.seed}

    def load(self, task):
        if task == self.fails:
            raise OSError(errno.ENETDOWN, "the network is gone")
        if task == self.waits:
            pathlib.Path(f"{self.log}.waits").touch()
            time.sleep(60)
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{task}\n")
        subject = super().load(task)
        if subject.ecg is not None:
            subject.lead_statistics = lead_statistics(subject.ecg)
        return subject
