"""A source of a few random records, for the tests of everything that reads or writes cohorts."""

import dataclasses

import numpy as np

from mmcl_jax.data.subject import RefusedRecord, Subject
from mmcl_jax.data.targets.labels import Label

LABELS = (
    Label("CAD", "binary", "disease"),
    Label("LVEDV", "regression", "LV", "mL"),
    Label("LVEF", "regression", "LV", "%"),
    Label("WT_1", "regression", "WT", "mm"),
)


SPLIT_OF_TEN = ("train",) * 7 + ("val",) + ("test",) * 2


@dataclasses.dataclass(frozen=True)
class TinySource:
    """Record i of `count`: subject `s<i>`, or `s<i - 1>` for odd i below `paired`.

    Of ten subjects seven train, one validates, two test. Every fifth record is positive for CAD.
    """

    count: int = 40
    paired: int = 0
    refused: tuple[int, ...] = ()
    flagged: tuple[int, ...] = ()
    without_ecg: tuple[int, ...] = ()
    without_cmr: tuple[int, ...] = ()
    changes: tuple[tuple[int, str, object], ...] = ()  # record, field of Subject, value
    errors: tuple[tuple[int, Exception], ...] = ()  # record, what its reading raises
    settings_: tuple[tuple[str, object], ...] = (("clip", 4.0), ("groups", ((0, 3), (3, 6))))

    name = "tiny"
    labels = LABELS

    @property
    def settings(self):
        return {"ecg": dict(self.settings_), "cmr": {"size": 210}}

    @property
    def parameters(self):
        return {"seed": 3}

    @property
    def tasks(self):
        return range(self.count)

    def load(self, task):
        if task in self.refused:
            raise RefusedRecord(f"/recordings/r{task:03d}.hea", "lead V6 is absent")
        for record, error in self.errors:
            if record == task:
                raise error
        rng = np.random.default_rng(task)
        person = task - 1 if task < self.paired and task % 2 else task
        labels = {
            "CAD": float(task % 5 == 0),
            "LVEDV": 100.0 + task,
            "LVEF": 50.0 + task % 7,
            "WT_1": 9.0,
        }
        if task % 4 == 3:
            del labels["LVEDV"]
        cmr = None
        if task not in self.without_cmr:
            cmr = np.zeros((210, 210, 3), np.uint8)
            cmr[:50, :50] = rng.integers(0, 256, (50, 50, 3))
        subject = Subject(
            record=f"r{task:03d}",
            subject=f"s{person:03d}",
            split=SPLIT_OF_TEN[person % 10],
            ecg=None,
            cmr=cmr,
            cmr_box=None if cmr is None else (task % 50, 20, 90, 100),
            labels=labels,
            flags=("a flat lead",) if task in self.flagged else (),
        )
        if task not in self.without_ecg:
            subject.ecg = rng.standard_normal((12, 5000)).astype(np.float32)
        for record, field, value in self.changes:
            if record == task:
                setattr(subject, field, value)
        return subject
