"""People whose labels follow from age, sex, weight and height, and whose ECGs are flat."""

import dataclasses

import numpy as np

from mmcl_jax.data.signals.ecg import EcgSettings
from mmcl_jax.data.subject import Subject
from mmcl_jax.data.targets.labels import DEMOGRAPHICS, DISEASES, PHENOTYPES, Label

RHYTHM = Label("rhythm", "multiclass", "rhythm", classes=("slow", "usual", "fast"))
SPLITS = ("train",) * 4 + ("val",) * 2 + ("test",) * 3


@dataclasses.dataclass(frozen=True)
class TinyPeople:
    """Lead i of an ECG is constant: the i-th of four standard scores of the demographics.

    CAD and the rhythm go with age, LVEDV with height and sex. Every fifth person lacks the weight,
    every seventh LVEDV.
    """

    count: int = 270

    name = "people"
    labels = (DISEASES[0], RHYTHM, PHENOTYPES[0], *DEMOGRAPHICS)
    settings = {"ecg": EcgSettings().as_dict()}
    parameters = {}

    @property
    def tasks(self):
        return range(self.count)

    def load(self, task):
        rng = np.random.default_rng(task)
        z = rng.normal(size=4)
        noise = rng.normal(size=3)
        sex = float(z[1] > 0)
        labels = {
            "CAD": float(z[0] + 0.3 * noise[0] > 0.5),
            "rhythm": float(np.digitize(z[0] + 0.3 * noise[1], (-0.5, 0.5))),
            "age": 60 + 8 * z[0],
            "sex": sex,
            "height": 170 + 8 * z[3],
        }
        if task % 5:
            labels["weight"] = 75 + 12 * z[2]
        if task % 7:
            labels["LVEDV"] = 140 + 20 * z[3] + 20 * sex + 5 * noise[2]
        return Subject(
            record=f"p{task:03d}",
            subject=f"p{task:03d}",
            split=SPLITS[task % 9],
            ecg=np.repeat(np.resize(z, 12)[:, None], 5000, axis=1).astype(np.float32),
            cmr=None,
            cmr_box=None,
            labels=labels,
        )
