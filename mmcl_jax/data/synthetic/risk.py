"""Diseases of the synthetic subjects: logistic models on the anatomy, calibrated to a prevalence.

The log odds are linear in causes that the ECG, the CMR frames or the demographics show in part.
The intercept is found once per population on a fixed random sample, so it depends neither on the
cohort's seed nor on its size.
"""

import functools

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import brentq
from scipy.special import expit

from mmcl_jax.data.synthetic.anatomy import POPULATIONS, Anatomy, draw, phenotypes

# Share of the subjects with atrial fibrillation who are in it during the recording.
PRESENT_FIBRILLATION = 0.45

_CALIBRATION_SUBJECTS = 20_000
_CALIBRATION_SEED = 20_230_811


def draw_diseases(
    rng: np.random.Generator, anatomy: Anatomy, prevalence: str
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Who has which disease, by label name.

    Args:
        rng: drawn from once per disease.
        anatomy: n subjects.
        prevalence: name of a population in `anatomy.POPULATIONS`.
    """
    shift = intercepts(prevalence)
    return {
        name: rng.random(len(odds)) < expit(odds + shift[name])
        for name, odds in log_odds(anatomy).items()
    }


def log_odds(anatomy: Anatomy) -> dict[str, Float[np.ndarray, " n"]]:
    """Log odds of each disease, up to the intercept."""
    heart = phenotypes(anatomy, anatomy.sinus_rate)
    age = (anatomy.age - 64) / 7.7
    volume = (heart["LVEDV"] - 145) / 33
    ejection = np.clip((heart["LVEF"] - 59) / 6, -4, 4)
    mass = (heart["LVM"] - 88) / 24
    weight = (anatomy.weight - 76) / 14
    rate = (anatomy.sinus_rate - 62) / 10
    return {
        "CAD": 0.6 * age
        + 0.5 * anatomy.male
        + 0.2 * weight
        + 1.1 * anatomy.ischaemia
        - 0.3 * ejection
        + 2.5 * (anatomy.infarct >= 0),
        "AF": 0.5 * age + 1.3 * anatomy.atrial + 0.3 * volume - 0.2 * ejection,
        "DM": 0.4 * age + 1.4 * anatomy.metabolic + 0.2 * weight + 0.2 * mass + 0.3 * rate,
    }


@functools.lru_cache
def intercepts(prevalence: str) -> dict[str, float]:
    """The constant of each logistic model that gives the prevalence of the population."""
    population = POPULATIONS[prevalence]
    rng = np.random.default_rng(_CALIBRATION_SEED)
    odds = log_odds(draw(rng, _CALIBRATION_SUBJECTS, population))

    def excess(intercept, name):
        return expit(odds[name] + intercept).mean() - population.prevalence[name]

    return {name: brentq(excess, -30, 30, args=(name,)) for name in odds}
