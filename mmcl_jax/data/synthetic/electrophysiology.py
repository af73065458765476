"""The beat of a synthetic heart: rhythm, conduction and the waves of the cardiac dipole.

A wave is a Gaussian in time along one direction in space; P, QRS, ST and T are sums of them. Axes
are those of Frank: x to the left, y to the feet, z to the back; amplitudes are in mV. The
dependence on the anatomy follows the textbook signs (voltage and strain of a thick wall, late and
posterior forces of a wide ventricle, Q waves and fragments of a scar, rightward forces of a large
right ventricle), blurred by the subject's own variation, so that an ECG tells a part of the
anatomy and never all of it.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from mmcl_jax.data.synthetic.anatomy import Anatomy

CONDUCTIONS = ("normal", "LBBB", "RBBB")

# From the centre of the heart to the infarcted wall: anterior, inferior, lateral.
_TERRITORY_DIRECTIONS = np.array([[0.25, 0.1, -1.0], [0.05, 1.0, 0.2], [0.95, -0.1, 0.35]])
_NO_SHIFT = np.zeros(3)


@dataclasses.dataclass(frozen=True)
class Waves:
    """A sum of Gaussians. Times are in s.

    Attributes:
        vector: amplitude and direction in mV.
        centre: time of the maximum, relative to the anchor named in `Electrophysiology`.
        rise, fall: standard deviation before and after the maximum.
    """

    vector: Float[np.ndarray, "waves 3"]
    centre: Float[np.ndarray, " waves"]
    rise: Float[np.ndarray, " waves"]
    fall: Float[np.ndarray, " waves"]


@dataclasses.dataclass(frozen=True)
class Electrophysiology:
    """The beat of one subject.

    Attributes:
        heart_rate: mean ventricular rate in beats/min.
        rr_deviation: standard deviation of the RR interval in s.
        fibrillation: atrial fibrillation during the recording: no P wave, irregular RR.
        conduction: 'normal', 'LBBB' or 'RBBB' (bundle branch blocks).
        pr, qrs, qtc: intervals in s; qtc at a rate of 60 beats/min (Fridericia).
        p: atrial waves, relative to their onset.
        depolarisation: QRS waves, relative to the middle of the QRS complex.
        repolarisation: ST and T waves, relative to the peak of T.
        fibrillation_wave: amplitude of the f waves in mV.
    """

    heart_rate: float
    rr_deviation: float
    fibrillation: bool
    conduction: str
    pr: float
    qrs: float
    qtc: float
    p: Waves
    depolarisation: Waves
    repolarisation: Waves
    fibrillation_wave: float


def draw(
    rng: np.random.Generator, anatomy: Anatomy, heart: dict[str, float], fibrillation: bool
) -> Electrophysiology:
    """Draws the electrophysiology of one subject.

    Args:
        rng: source of everything that the anatomy does not decide.
        anatomy: one subject (n = 1).
        heart: the subject's phenotypes by name.
        fibrillation: whether the recording is made in atrial fibrillation.
    """
    traits = _Traits.of(anatomy, heart)
    own = rng.standard_normal(20)
    conduction = _conduction(rng, traits)
    rate = float(anatomy.sinus_rate[0])
    deviation = float(anatomy.rr_deviation[0])
    if fibrillation:
        rate = float(np.clip(rate + 14 + 10 * own[0], 50, 140))
        deviation = 60 / rate * rng.uniform(0.17, 0.27)

    qrs = 0.088 + 0.0035 * traits.volume + 0.003 * traits.mass - 0.002 * traits.ejection
    qrs = np.clip(qrs + 0.007 * own[1], 0.07, 0.125)
    block = {"normal": 0, "LBBB": 0.05, "RBBB": 0.035}[conduction]
    qrs = float(qrs + block * np.exp(0.15 * own[2]))
    qtc = 0.405 - 0.008 * traits.male + 0.003 * traits.mass - 0.006 * traits.ejection
    qtc = float(np.clip(qtc + 0.014 * own[3], 0.36, 0.49) + 0.6 * max(qrs - 0.1, 0))
    pr = 0.158 + 0.008 * traits.age + 0.008 * traits.atrial + 0.015 * own[4]
    depolarisation, main = _depolarisation(rng, traits, conduction, qrs, own[5:10])
    return Electrophysiology(
        heart_rate=rate,
        rr_deviation=deviation,
        fibrillation=fibrillation,
        conduction=conduction,
        pr=float(np.clip(pr, 0.11, 0.26)),
        qrs=qrs,
        qtc=qtc,
        p=_atrial(traits, own[10:12]),
        depolarisation=depolarisation,
        repolarisation=_repolarisation(traits, conduction, main, own[12:17]),
        fibrillation_wave=float(0.06 * np.exp(0.25 * own[17])),
    )


@dataclasses.dataclass(frozen=True)
class _Traits:
    """Standard scores of what the ECG depends on, limited to a plausible range."""

    male: float
    age: float
    weight: float
    volume: float
    mass: float
    ejection: float
    right: float  # size of the right ventricle, relative to the left
    atrial: float
    metabolic: float
    ischaemia: float
    scar: float  # share of the territory that is scar
    territory: np.ndarray  # direction to the scar

    @classmethod
    def of(cls, anatomy: Anatomy, heart: dict[str, float]) -> "_Traits":
        def limited(value, mean, deviation):
            return float(np.clip((value - mean) / deviation, -2.8, 4))

        territory = int(anatomy.infarct[0])
        right = np.log(heart["RVEDV"] / heart["LVEDV"] / 1.06)
        return cls(
            male=float(anatomy.male[0]),
            age=limited(anatomy.age[0], 64, 7.7),
            weight=limited(anatomy.weight[0], 76, 14),
            volume=limited(heart["LVEDV"], 146, 34),
            mass=limited(heart["LVM"], 88, 24),
            # Hearts stronger than the mean look alike in the ECG.
            ejection=limited(min(heart["LVEF"], 74), 58.5, 6),
            right=limited(right, 0, 0.11) + 0.3 * limited(heart["RVEDV"], 157, 42),
            atrial=limited(anatomy.atrial[0], 0, 1),
            metabolic=limited(anatomy.metabolic[0], 0, 1),
            ischaemia=limited(anatomy.ischaemia[0], 0, 1),
            scar=float(anatomy.scar[0].max()),
            territory=_TERRITORY_DIRECTIONS[territory] if territory >= 0 else _NO_SHIFT,
        )


def _conduction(rng: np.random.Generator, traits: _Traits) -> str:
    """A wide, weak ventricle blocks the left bundle more often; a large right one the right."""
    odds_left = np.exp(-5.2 + 0.6 * traits.volume - 0.6 * traits.ejection + 0.3 * traits.age)
    odds_right = np.exp(-4.0 + 0.3 * traits.age + 0.4 * traits.right)
    chance = rng.random() * (1 + odds_left + odds_right)
    if chance < odds_left:
        return "LBBB"
    return "RBBB" if chance < odds_left + odds_right else "normal"


def _atrial(traits: _Traits, own: Float[np.ndarray, "2"]) -> Waves:
    """Right, then left atrium. A large left atrium makes P long and its end point backwards."""
    left = 1 + 0.22 * traits.atrial
    delay = 0.032 + 0.006 * traits.atrial + 0.003 * own[0]
    vectors = np.array([[0.05, 0.08, -0.055], [0.055 * left, 0.06, 0.06 * left]])
    width = np.array([0.017, 0.019 + 0.002 * traits.atrial])
    return Waves(
        vectors * np.exp(0.15 * own[1]),
        np.array([0.04, 0.04 + delay]),
        width,
        width,
    )


def _depolarisation(
    rng: np.random.Generator,
    traits: _Traits,
    conduction: str,
    qrs: float,
    own: Float[np.ndarray, "5"],
) -> tuple[Waves, Float[np.ndarray, "3"]]:
    """The QRS waves, and the direction and strength of the main one."""
    voltage = np.exp(0.15 * traits.mass + 0.18 * own[0])
    septal = np.array([-0.14, -0.06, -0.30]) * np.exp(0.2 * own[1])
    apical = np.array([0.50, 0.42, -0.25])
    main = np.array([0.95, 0.68, 0.42 + 0.07 * traits.mass]) * voltage
    basal = np.array([-0.18, -0.26, 0.42]) + traits.right * np.array([-0.10, 0.03, -0.07])
    centre, width = [-0.26, -0.09, 0.05, 0.28], [0.10, 0.10, 0.12, 0.12]
    if conduction == "LBBB":
        septal = np.array([0.25, 0.15, 0.12])
        apical = np.array([0.75, 0.42, 0.55])
        main = 0.75 * main + np.array([0.0, -0.1, 0.35])
        basal = np.array([0.20, -0.10, 0.45])
        centre, width = [-0.30, -0.12, 0.12, 0.32], [0.09, 0.12, 0.14, 0.10]
    vectors = [septal, apical, main, basal]
    if conduction == "RBBB":
        vectors.append(np.array([-0.50, -0.05, -0.60]))
        centre, width = [-0.30, -0.18, -0.08, 0.12, 0.30], [0.07, 0.08, 0.09, 0.09, 0.13]

    # A scar does not depolarise: forces turn away from it, first and for good.
    scar = traits.scar * traits.territory
    lost = np.clip(np.stack(vectors) @ traits.territory, 0, None)[:, None]
    vectors = np.stack(vectors) - 0.45 * traits.scar * lost * traits.territory[None, :]
    vectors = np.concatenate([vectors, -0.45 * scar[None, :]])
    centre, width = np.array([*centre, -0.22]), np.array([*width, 0.10])

    frontal = -7 * traits.mass + 9 * traits.right - 6 * traits.weight + 14 * own[2]
    posterior = 8 * traits.volume + 12 * own[3]
    vectors = vectors @ _rotation(frontal + 5, posterior - 4).T

    # Fragments: notches of random direction, larger in scarred and in weak ventricles.
    size = 0.07 * np.exp(-0.35 * traits.ejection + 0.7 * traits.scar + 0.35 * own[4])
    notches = rng.standard_normal((4, 3)) * min(size, 0.3) * np.array([[1], [-1], [1], [-1]])
    vectors = np.concatenate([vectors, notches])
    centre = np.concatenate([centre, rng.uniform(-0.3, 0.4, 4)]) * qrs
    width = np.concatenate([width * qrs, np.full(4, 0.0055)])
    return Waves(vectors, centre, width, width), vectors[2]


def _repolarisation(
    traits: _Traits,
    conduction: str,
    main: Float[np.ndarray, "3"],
    own: Float[np.ndarray, "5"],
) -> Waves:
    """ST segment and T wave."""
    amplitude = 1 + 0.13 * traits.ejection - 0.09 * traits.metabolic - 0.06 * traits.ischaemia
    amplitude = np.clip(amplitude + 0.17 * own[0], 0.12, None)
    peak = np.array([0.28, 0.20, -0.20 + 0.08 * (1 - traits.male)]) * amplitude
    peak = peak @ _rotation(12 * own[1], 12 * own[2]).T
    strain = 0.045 * np.clip(traits.mass + 0.6 + 0.7 * own[3], 0, None)
    strain = strain + {"normal": 0, "LBBB": 0.30, "RBBB": 0.0}[conduction]
    peak = peak - strain * main - 0.38 * traits.scar * traits.territory
    if conduction == "RBBB":
        peak = peak + np.array([0.12, 0.02, 0.16])

    depression = 0.028 * np.clip(traits.ischaemia + 0.5 + 0.4 * own[4], 0, None)
    segment = -depression * np.array([0.8, 0.7, -0.1]) - 0.3 * strain * main
    segment = segment + 0.07 * traits.scar * traits.territory
    return Waves(
        np.stack([segment, peak]),
        np.array([-0.115, 0.0]),
        np.array([0.035, 0.050]),
        np.array([0.055, 0.032]),
    )


def _rotation(frontal: float, posterior: float) -> Float[np.ndarray, "3 3"]:
    """Turns by `frontal` degrees towards the feet, then by `posterior` from left to back."""
    a, b = np.deg2rad(frontal), np.deg2rad(posterior)
    in_front = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    across = np.array([[np.cos(b), 0, -np.sin(b)], [0, 1, 0], [np.sin(b), 0, np.cos(b)]])
    return across @ in_front
