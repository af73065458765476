"""Anatomy and phenotypes: identities that hold exactly, ranges of the population, diseases."""

import numpy as np
import pytest

from mmcl_jax.data.synthetic import anatomy as anatomies
from mmcl_jax.data.synthetic import risk
from mmcl_jax.data.targets.labels import PHENOTYPES

N = 4000


@pytest.fixture(scope="module")
def anatomy():
    return anatomies.draw(np.random.default_rng(1), N, anatomies.POPULATIONS["paper"])


@pytest.fixture(scope="module")
def heart(anatomy):
    return anatomies.phenotypes(anatomy, anatomy.sinus_rate)


def test_phenotypes_are_those_that_are_declared(heart):
    assert list(heart) == [label.name for label in PHENOTYPES]
    assert all(values.shape == (N,) and np.isfinite(values).all() for values in heart.values())


@pytest.mark.parametrize("side", ["LV", "RV"])
def test_volumes_stroke_and_ejection_fraction_agree(heart, side):
    end_diastolic, end_systolic = heart[f"{side}EDV"], heart[f"{side}ESV"]
    np.testing.assert_allclose(heart[f"{side}SV"], end_diastolic - end_systolic, rtol=1e-12)
    np.testing.assert_allclose(
        heart[f"{side}EF"], 100 * (1 - end_systolic / end_diastolic), rtol=1e-10
    )
    assert (end_systolic > 0).all()
    assert (heart[f"{side}SV"] > 0).all()


def test_cardiac_output_is_stroke_volume_times_rate(anatomy, heart):
    np.testing.assert_allclose(heart["LVCO"], heart["LVSV"] * anatomy.sinus_rate / 1000, rtol=1e-12)


@pytest.mark.parametrize("prefix", ["WT", "Ecc", "Err"])
def test_global_value_is_the_mean_of_the_segments(heart, prefix):
    segments = np.stack([heart[f"{prefix}_{number}"] for number in range(1, 17)])
    np.testing.assert_allclose(heart[f"{prefix}_global"], segments.mean(0), rtol=1e-12)


def test_strain_has_its_sign(heart):
    numbers = [*range(1, 17), "global"]
    assert max(heart[f"Ecc_{number}"].max() for number in numbers) <= 0
    assert min(heart[f"Err_{number}"].min() for number in numbers) >= 0


def test_discs_hold_the_cavity_volume(anatomy):
    shape = anatomies.ventricles(anatomy)
    discs = np.pi * (shape.radius**2).sum(1) * shape.length / 3 / 1000
    np.testing.assert_allclose(discs, anatomy.volume, rtol=1e-12)


def test_mass_is_the_density_times_the_wall(anatomy, heart):
    # Slow reference: the wall of every segment as a sector of a ring.
    shape = anatomies.ventricles(anatomy)
    volume = np.zeros(N)
    for segment in range(16):
        level = 0 if segment < 6 else 1 if segment < 12 else 2
        share = 1 / (4 if level == 2 else 6)
        inner = shape.radius[:, level]
        outer = inner + anatomy.thickness[:, segment]
        volume += share * np.pi * (outer**2 - inner**2) * shape.length / 3 / 1000
    np.testing.assert_allclose(heart["LVM"], 1.05 * volume, rtol=1e-10)


def test_muscle_keeps_its_volume(anatomy):
    shape = anatomies.ventricles(anatomy)
    inner = shape.radius[:, anatomies.LEVEL]
    ed = ((inner + anatomy.thickness) ** 2 - inner**2) * shape.length[:, None]
    es = (shape.es_radius + shape.es_thickness) ** 2 - shape.es_radius**2
    np.testing.assert_allclose(es * shape.es_length[:, None], ed, rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [
        ("LVEDV", 145, 33),
        ("LVESV", 60, 19),
        ("LVEF", 59, 6),
        ("LVM", 86, 24),
        ("LVCO", 5.3, 1.3),
        ("RVEDV", 155, 38),
        ("RVEF", 56, 7),
        ("WT_global", 5.8, 0.9),
        ("Ecc_global", -21.5, 3),
        ("Err_global", 48, 8),
    ],
)
def test_population_is_like_the_uk_biobank(heart, name, mean, deviation):
    assert abs(heart[name].mean() - mean) < deviation / 3
    assert heart[name].std() == pytest.approx(deviation, rel=0.3)


def test_heart_goes_with_the_body(anatomy, heart):
    assert heart["LVM"][anatomy.male].mean() > heart["LVM"][~anatomy.male].mean() + 20
    assert np.corrcoef(anatomy.height, heart["LVEDV"])[0, 1] > 0.3
    assert np.corrcoef(anatomy.age, anatomy.atrial)[0, 1] > 0.2


def test_infarct_thins_and_stills_its_territory():
    population = anatomies.Population({}, infarct=0.9, cardiomyopathy=0.0)
    anatomy = anatomies.draw(np.random.default_rng(2), N, population)
    heart = anatomies.phenotypes(anatomy, anatomy.sinus_rate)
    anterior, healthy = anatomy.infarct == 0, anatomy.infarct < 0
    assert anterior.sum() > 500
    # Segment 7 is anterior, segment 10 inferior.
    assert heart["WT_7"][anterior].mean() < 0.85 * heart["WT_7"][healthy].mean()
    assert heart["Ecc_7"][anterior].mean() > heart["Ecc_7"][healthy].mean() + 8
    assert abs(heart["Ecc_10"][anterior].mean() - heart["Ecc_10"][healthy].mean()) < 3
    assert heart["LVEF"][anterior].mean() < heart["LVEF"][healthy].mean() - 8


@pytest.mark.parametrize("prevalence", ["paper", "demo"])
def test_diseases_have_their_prevalence(prevalence):
    population = anatomies.POPULATIONS[prevalence]
    rng = np.random.default_rng(3)
    anatomy = anatomies.draw(rng, 30_000, population)
    for name, cases in risk.draw_diseases(rng, anatomy, prevalence).items():
        expected = population.prevalence[name]
        assert cases.mean() == pytest.approx(expected, abs=5 * np.sqrt(expected / 30_000)), name


def test_paper_prevalences():
    assert anatomies.POPULATIONS["paper"].prevalence == {"CAD": 0.0722, "AF": 0.0298, "DM": 0.0446}


def test_risk_rises_with_its_causes(anatomy):
    odds = risk.log_odds(anatomy)
    assert np.corrcoef(odds["CAD"], anatomy.ischaemia)[0, 1] > 0.4
    assert odds["CAD"][anatomy.infarct >= 0].mean() > odds["CAD"][anatomy.infarct < 0].mean() + 2
    assert np.corrcoef(odds["AF"], anatomy.atrial)[0, 1] > 0.5
    assert np.corrcoef(odds["DM"], anatomy.weight)[0, 1] > 0.3
