"""The synthetic cohort: a small physiological simulator of paired ECG and CMR.

Every subject has one latent anatomy and electrophysiology. The frames are drawn from it, the 61
phenotypes are computed from it, the ECG is a moving dipole that depends on it, and the risk of
disease and the demographics go with it. What an ECG can tell about the heart is therefore known,
and whether a model learns it from CMR can be tested without patients. Nothing here is a result
about people.

A subject depends on (seed, index) alone: not on the size of the cohort, the order of loading or
the number of workers.
"""

import argparse
import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float32

from mmcl_jax.data.images import cmr
from mmcl_jax.data.signals import ecg
from mmcl_jax.data.signals.lead_statistics import lead_statistics
from mmcl_jax.data.subject import SPLITS, Subject
from mmcl_jax.data.synthetic import anatomy as anatomies
from mmcl_jax.data.synthetic import cmr as imaging
from mmcl_jax.data.synthetic import ecg as recording
from mmcl_jax.data.synthetic import electrophysiology as electrophysiologies
from mmcl_jax.data.synthetic import risk
from mmcl_jax.data.targets.labels import DEMOGRAPHICS, DISEASES, PHENOTYPES, Label

EXAMPLE = "--subjects 2000 --output cohorts/synthetic"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source on the command line."""
    parser.add_argument("--subjects", type=int, default=2000, help="default: %(default)s")
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed, another cohort; default: %(default)s"
    )
    parser.add_argument(
        "--prevalence",
        choices=tuple(anatomies.POPULATIONS),
        default="paper",
        help="how common the diseases are: as in the paper, or common enough for a few hundred "
        "subjects; default: %(default)s",
    )
    parser.add_argument(
        "--splits",
        type=int,
        nargs=3,
        default=(70, 15, 15),
        metavar="PERCENT",
        help="training, validation and test subjects, in steps of 5 %%; default: 70 15 15",
    )
    parser.add_argument(
        "--imaged",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of the subjects who have CMR frames; default: %(default)s",
    )
    parser.add_argument(
        "--phenotyped",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of those with frames whose phenotypes are known; default: %(default)s",
    )


def make(**options: Any) -> "Synthetic":
    """The source that the command line describes."""
    return Synthetic(**options)


# Every so many consecutive subjects are split as the whole cohort is.
_BLOCK = 20

# One random stream per part of a subject, so that a change to one leaves the others as they were.
_PERSON, _RECORDING, _SCAN, _SPLIT = range(4)


@dataclasses.dataclass(frozen=True)
class Simulation:
    """One subject before any preprocessing, with the truth behind it.

    Attributes:
        anatomy: one subject (n = 1).
        electrophysiology: the subject's beat.
        phenotypes: the 61 phenotypes by name.
        diseases: by name.
        ecg: leads I II III aVR aVL aVF V1-V6 in mV at 500 Hz.
        slice: frames and masks.
    """

    anatomy: anatomies.Anatomy
    electrophysiology: electrophysiologies.Electrophysiology
    phenotypes: dict[str, float]
    diseases: dict[str, bool]
    ecg: Float32[np.ndarray, "12 5000"]
    slice: imaging.Slice


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """Source of synthetic subjects.

    Attributes:
        subjects: size of the cohort.
        seed: another seed, another cohort.
        prevalence: 'paper' for the UK Biobank's (CAD 7.22 %, AF 2.98 %, DM 4.46 %), 'demo' for a
            sicker cohort (30, 20 and 25 %) of which a few hundred subjects suffice.
        phenotyped: share of the subjects whose phenotypes are known; half of them in the paper.
        imaged: share of the subjects who have CMR frames. Phenotypes need frames.
        splits: training, validation and test subjects in per cent, in steps of 5. A large test
            split costs little and narrows the intervals of a comparison.

    Raises:
        ValueError: a field is out of its range.
    """

    subjects: int = 2000
    seed: int = 0
    prevalence: str = "paper"
    phenotyped: float = 0.5
    imaged: float = 1.0
    splits: tuple[int, int, int] = (70, 15, 15)

    def __post_init__(self):
        if self.prevalence not in anatomies.POPULATIONS:
            raise ValueError(
                f"synthetic: prevalence is {self.prevalence!r}, "
                f"expected one of {', '.join(anatomies.POPULATIONS)}"
            )
        for name, lowest in (("subjects", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < lowest:
                raise ValueError(
                    f"synthetic: {name} is {value!r}, expected an integer of at least {lowest}"
                )
        for name in ("phenotyped", "imaged"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"synthetic: {name} is {value!r}, expected a share from 0 to 1")
        # A list where it comes from JSON.
        object.__setattr__(self, "splits", splits := tuple(self.splits))
        step = 100 // _BLOCK
        if len(splits) != 3 or sum(splits) != 100 or any(s < 0 or s % step for s in splits):
            raise ValueError(
                f"synthetic: splits is {splits!r}, expected three percentages for train, val and "
                f"test, each a multiple of {step}, 100 together"
            )

    @property
    def name(self) -> str:
        return "synthetic"

    @property
    def labels(self) -> tuple[Label, ...]:
        return DISEASES + PHENOTYPES + DEMOGRAPHICS

    @property
    def settings(self) -> dict[str, Any]:
        """The preprocessing, which is that of every other source."""
        return {"ecg": ecg.DEFAULT.as_dict(), "cmr": cmr.DEFAULT.as_dict()}

    @property
    def parameters(self) -> dict[str, Any]:
        """The fields of this simulation."""
        return dataclasses.asdict(self) | {"splits": list(self.splits)}

    @property
    def tasks(self) -> range:
        """A task is the subject's index."""
        return range(self.subjects)

    def load(self, task: int) -> Subject:
        """Simulates and preprocesses one subject; none is ever refused."""
        simulation = self.simulate(task)
        anatomy, pictures = simulation.anatomy, simulation.slice
        chance = np.random.default_rng((self.seed, task, _SPLIT)).random(2)
        imaged = chance[0] < self.imaged
        labels = {name: float(value) for name, value in simulation.diseases.items()}
        if imaged and chance[1] < self.phenotyped:
            labels |= simulation.phenotypes
        labels |= {
            "age": float(anatomy.age[0]),
            "sex": float(anatomy.male[0]),
            "weight": float(anatomy.weight[0]),
            "height": float(anatomy.height[0]),
        }
        record = f"synthetic-{task:06d}"
        return Subject(
            record=record,
            subject=record,
            split=self.split(task),
            ecg=ecg.preprocess(simulation.ecg),
            cmr=cmr.stack_frames(*pictures.frames) if imaged else None,
            cmr_box=cmr.box_around_mask(pictures.heart[-1]) if imaged else None,
            labels=labels,
            lead_statistics=lead_statistics(simulation.ecg),
        )

    def split(self, index: int) -> str:
        """Split of a subject: shares of every 20 consecutive ones, shuffled by the seed."""
        block, position = divmod(index, _BLOCK)
        order = np.random.default_rng((self.seed, block, _SPLIT, 0)).permutation(_BLOCK)
        counts = [share * _BLOCK // 100 for share in self.splits]
        return str(np.repeat(SPLITS, counts)[order[position]])

    def simulate(self, index: int) -> Simulation:
        """One subject with raw signals and ground truth, for plots and tests.

        Raises:
            IndexError: the cohort has no subject of this index.
        """
        if not 0 <= index < self.subjects:
            raise IndexError(f"synthetic: subject {index} of a cohort of {self.subjects}")
        rng = np.random.default_rng((self.seed, index, _PERSON))
        anatomy = anatomies.draw(rng, 1, anatomies.POPULATIONS[self.prevalence])
        diseases = risk.draw_diseases(rng, anatomy, self.prevalence)
        fibrillation = bool(diseases["AF"][0] and rng.random() < risk.PRESENT_FIBRILLATION)

        rng = np.random.default_rng((self.seed, index, _RECORDING))
        at_rest = _only(anatomies.phenotypes(anatomy, anatomy.sinus_rate))
        beat = electrophysiologies.draw(rng, anatomy, at_rest, fibrillation)
        signal = recording.simulate(rng, beat)
        # The scan follows within hours of the ECG: rhythm and rate are taken to be the same.
        phenotypes = anatomies.phenotypes(anatomy, np.array([beat.heart_rate]))

        rng = np.random.default_rng((self.seed, index, _SCAN))
        return Simulation(
            anatomy=anatomy,
            electrophysiology=beat,
            phenotypes=_only(phenotypes),
            diseases={name: bool(value[0]) for name, value in diseases.items()},
            ecg=signal,
            slice=imaging.draw(rng, anatomy),
        )


def _only(values: dict[str, np.ndarray]) -> dict[str, float]:
    """The values of the only subject."""
    return {name: float(value[0]) for name, value in values.items()}
