"""Anatomy of the synthetic subjects, and the 61 CMR phenotypes computed from it.

The left ventricle is half a prolate ellipsoid: cavity volume `2/3 pi a^2 L`, radius `a` at the
base, length `L`. Three discs of equal height (basal, mid, apical) share that volume exactly; each
is cut into the AHA segments, and every segment has its own wall thickness and its own
contraction. Myocardium does not change its volume, so a segment that moves inwards thickens:
strain, stroke volume and mass all follow from the same few numbers. Populations are set after the
UK Biobank imaging study (volumes and mass of short-axis cine CMR in about 5,000 to 40,000
adults).

All functions work on n subjects at once, so that the risk models can be calibrated on a large
sample.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

MYOCARDIAL_DENSITY = 1.05  # g/mL

# Index of the disc (0 basal, 1 mid, 2 apical) and the share of the circle of each AHA segment.
LEVEL = np.repeat([0, 1, 2], [6, 6, 4])
SECTOR = 2 * np.pi / np.array([6, 6, 4])[LEVEL]  # rad

# Mean of 1 - z^2 over each third of the long axis: squared radius of a disc in units of a^2.
DISC = np.array([26, 20, 8]) / 27

# Segments (0-based) supplied by the left anterior descending, right and circumflex artery.
TERRITORIES = ((0, 1, 6, 7, 12, 13), (2, 3, 8, 9, 14), (4, 5, 10, 11, 15))

# Thickness of a healthy segment relative to the mean: the septum is thicker, the apex thinner.
_THICKNESS_PATTERN = np.array(
    [1.02, 1.12, 1.12, 1.03, 0.98, 0.98, 0.95, 1.05, 1.08, 1.0, 0.95, 0.95, 0.95, 1.0, 0.95, 0.93]
)
_CONTRACTION_PATTERN = np.array([0.96, 1.0, 1.08])[LEVEL]


@dataclasses.dataclass(frozen=True)
class Population:
    """Who is in the cohort.

    Attributes:
        prevalence: share of subjects with each disease, by label name.
        infarct: share with a myocardial infarction, before age and sex.
        cardiomyopathy: share with a dilated, weak left ventricle.
    """

    prevalence: dict[str, float]
    infarct: float
    cardiomyopathy: float


# 'paper' has the prevalences of section IV-B; 'demo' is a sicker cohort, so that a few hundred
# subjects hold enough positives to learn from.
POPULATIONS = {
    "paper": Population({"CAD": 0.0722, "AF": 0.0298, "DM": 0.0446}, 0.025, 0.02),
    "demo": Population({"CAD": 0.30, "AF": 0.20, "DM": 0.25}, 0.12, 0.08),
}


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """n subjects. Fields without a unit are standard scores in the population.

    Lengths are in mm, volumes in mL. `scar` is 0 for a healthy segment, 1 for a transmural
    infarct. `contraction` multiplies `shortening`, the radial shortening of the cavity.
    """

    male: Bool[np.ndarray, " n"]
    age: Float[np.ndarray, " n"]  # years
    height: Float[np.ndarray, " n"]  # cm
    weight: Float[np.ndarray, " n"]  # kg
    metabolic: Float[np.ndarray, " n"]
    pressure: Float[np.ndarray, " n"]  # arterial hypertension
    ischaemia: Float[np.ndarray, " n"]
    atrial: Float[np.ndarray, " n"]  # size and fibrosis of the left atrium
    sinus_rate: Float[np.ndarray, " n"]  # beats/min at rest
    rr_deviation: Float[np.ndarray, " n"]  # s, of the RR interval in sinus rhythm
    infarct: Int[np.ndarray, " n"]  # territory, -1 without infarct
    scar: Float[np.ndarray, "n 16"]
    cardiomyopathy: Float[np.ndarray, " n"]  # severity, 0 without
    volume: Float[np.ndarray, " n"]  # mL, LV cavity at end-diastole
    sphericity: Float[np.ndarray, " n"]  # length / basal radius
    thickness: Float[np.ndarray, "n 16"]  # mm, at end-diastole
    shortening: Float[np.ndarray, " n"]
    long_axis_shortening: Float[np.ndarray, " n"]
    contraction: Float[np.ndarray, "n 16"]
    rv_volume: Float[np.ndarray, " n"]  # mL, at end-diastole
    rv_stroke_ratio: Float[np.ndarray, " n"]  # right over left stroke volume, before limits


def draw(rng: np.random.Generator, n: int, population: Population) -> Anatomy:
    """Draws the anatomy of n subjects."""

    def normal(*shape):
        return rng.standard_normal((n, *shape))

    male = rng.random(n) < 0.48
    age = np.clip(64 + 7.7 * normal(), 45, 82)
    height = np.where(male, 176.5, 163.0) + 6.4 * normal() - 0.1 * (age - 64)
    bmi = np.clip(np.exp(np.log(26.2) + 0.15 * normal()), 17, 48)
    weight = bmi * (height / 100) ** 2
    surface = np.sqrt(height * weight / 3600)  # m^2, Mosteller
    z_age, z_bmi = (age - 64) / 7.7, (bmi - 26.5) / 4

    metabolic = 0.5 * z_bmi + 0.87 * normal()
    pressure = 0.3 * z_bmi + 0.3 * z_age + 0.9 * normal()
    fitness = normal()
    infarct_odds = population.infarct / (1 - population.infarct)
    infarct_odds = infarct_odds * np.exp(0.6 * z_age + 1.0 * (male - 0.48) + 0.3 * metabolic)
    has_infarct = rng.random(n) < infarct_odds / (1 + infarct_odds)
    territory = np.searchsorted([0.45, 0.8], rng.random(n))
    extent = rng.uniform(0.45, 1, n) * has_infarct
    scar = extent[:, None] * _TERRITORY_MASK[territory] * rng.uniform(0.7, 1, (n, 16))
    cardiomyopathy = rng.uniform(0.4, 1, n) * (rng.random(n) < population.cardiomyopathy)

    volume = surface * np.where(male, 79.5, 71.5)
    volume = volume * np.exp(
        0.15 * normal() - 0.03 * z_age + 0.06 * fitness + 0.4 * cardiomyopathy + 0.18 * extent
    )
    wall = np.where(male, 6.2, 5.25) * np.exp(
        0.08 * normal() + 0.11 * pressure + 0.02 * fitness + 0.02 * z_bmi - 0.06 * cardiomyopathy
    )
    thickness = wall[:, None] * _THICKNESS_PATTERN * np.exp(0.05 * normal(16)) * (1 - 0.42 * scar)
    shortening = 0.312 + 0.032 * normal() + 0.006 * pressure - 0.15 * cardiomyopathy
    shortening = np.clip(shortening - 0.04 * extent, 0.07, 0.42)
    z_volume = np.log(volume / 142) / 0.22
    sinus_rate = 62.5 + 8.5 * normal() + 3 * metabolic - 4 * fitness - 2 * male
    sinus_rate = sinus_rate + 8 * cardiomyopathy

    return Anatomy(
        male=male,
        age=age,
        height=height,
        weight=weight,
        metabolic=metabolic,
        pressure=pressure,
        ischaemia=0.3 * z_age + 0.3 * metabolic + 0.9 * normal() + 0.8 * has_infarct,
        atrial=0.3 * z_age + 0.3 * pressure + 0.2 * z_volume + 0.85 * normal(),
        sinus_rate=np.clip(sinus_rate, 42, 105),
        rr_deviation=np.minimum(
            0.034 * np.exp(-0.35 * metabolic - 0.2 * z_age + 0.2 * fitness + 0.25 * normal()), 0.12
        ),
        infarct=np.where(has_infarct, territory, -1),
        scar=scar,
        cardiomyopathy=cardiomyopathy,
        volume=volume,
        sphericity=3.4 * np.exp(0.05 * normal()) - 0.5 * cardiomyopathy,
        thickness=thickness,
        shortening=shortening,
        long_axis_shortening=np.clip(0.49 * shortening + 0.012 * normal(), 0.02, 0.24),
        contraction=_CONTRACTION_PATTERN * np.clip(1 + 0.08 * normal(16) - 0.85 * scar, -0.1, 1.3),
        rv_volume=volume
        * np.where(male, 1.09, 1.03)
        * np.exp(0.09 * normal() + 0.3 * rng.uniform(0.3, 1, n) * (rng.random(n) < 0.05)),
        rv_stroke_ratio=np.exp(0.05 * normal()),
    )


@dataclasses.dataclass(frozen=True)
class Ventricles:
    """Geometry of both ventricles at end-diastole (`ed`) and end-systole (`es`); mm and mL."""

    radius: Float[np.ndarray, "n 3"]  # of the cavity per disc, ed
    length: Float[np.ndarray, " n"]  # of the cavity, ed
    es_radius: Float[np.ndarray, "n 16"]  # of the cavity per segment
    es_length: Float[np.ndarray, " n"]
    es_thickness: Float[np.ndarray, "n 16"]
    es_volume: Float[np.ndarray, " n"]
    rv_es_volume: Float[np.ndarray, " n"]
    wall_volume: Float[np.ndarray, " n"]  # mL


def ventricles(anatomy: Anatomy) -> Ventricles:
    """Shape of the ventricles, from the volume, the wall and how each segment contracts."""
    base = np.cbrt(1.5e3 * anatomy.volume / (np.pi * anatomy.sphericity))
    length = anatomy.sphericity * base
    radius = base[:, None] * np.sqrt(DISC)
    inner = radius[:, LEVEL]
    es_radius = inner * (1 - anatomy.shortening[:, None] * anatomy.contraction)
    es_length = length * (1 - anatomy.long_axis_shortening)

    # Twice the cross-section per radian; kept times the length, because muscle keeps its volume.
    section = (inner + anatomy.thickness) ** 2 - inner**2
    stretch = (length / es_length)[:, None]
    es_thickness = np.sqrt(es_radius**2 + section * stretch) - es_radius
    wall_volume = (section * SECTOR).sum(1) / 2 * length / 3e3
    es_volume = (es_radius**2 * SECTOR).sum(1) / 2 * es_length / 3e3

    rv_stroke = (anatomy.volume - es_volume) * anatomy.rv_stroke_ratio
    rv_es_volume = anatomy.rv_volume - np.clip(
        rv_stroke, 0.15 * anatomy.rv_volume, 0.78 * anatomy.rv_volume
    )
    return Ventricles(
        radius, length, es_radius, es_length, es_thickness, es_volume, rv_es_volume, wall_volume
    )


def phenotypes(
    anatomy: Anatomy, heart_rate: Float[np.ndarray, " n"]
) -> dict[str, Float[np.ndarray, " n"]]:
    """The 61 phenotypes by name, in the units of `labels.PHENOTYPES`.

    Args:
        anatomy: n subjects.
        heart_rate: beats/min during the scan.
    """
    shape = ventricles(anatomy)
    stroke = anatomy.volume - shape.es_volume
    rv_stroke = anatomy.rv_volume - shape.rv_es_volume
    values = {
        "LVEDV": anatomy.volume,
        "LVESV": shape.es_volume,
        "LVSV": stroke,
        "LVEF": 100 * stroke / anatomy.volume,
        "LVCO": stroke * heart_rate / 1000,
        "LVM": MYOCARDIAL_DENSITY * shape.wall_volume,
        "RVEDV": anatomy.rv_volume,
        "RVESV": shape.rv_es_volume,
        "RVSV": rv_stroke,
        "RVEF": 100 * rv_stroke / anatomy.rv_volume,
    }
    middle = shape.radius[:, LEVEL] + anatomy.thickness / 2
    circumferential = 100 * ((shape.es_radius + shape.es_thickness / 2) / middle - 1)
    radial = 100 * (shape.es_thickness / anatomy.thickness - 1)
    for prefix, segments in (
        ("WT", anatomy.thickness),
        # Over a beat the strain starts at 0: the smallest Ecc is never above it, nor Err below.
        ("Ecc", np.minimum(circumferential, 0)),
        ("Err", np.maximum(radial, 0)),
    ):
        values |= {f"{prefix}_{number + 1}": segments[:, number] for number in range(16)}
        values[f"{prefix}_global"] = segments.mean(1)
    return values


def _territory_mask() -> Float[np.ndarray, "3 16"]:
    mask = np.zeros((3, 16))
    for row, segments in enumerate(TERRITORIES):
        mask[row, list(segments)] = 1
    return mask


_TERRITORY_MASK = _territory_mask()
