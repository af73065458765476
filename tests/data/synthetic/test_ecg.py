"""The simulated ECG: lead identities, intervals, rhythm, and its dependence on the anatomy."""

import dataclasses

import numpy as np
import pytest

from mmcl_jax.data.synthetic import anatomy as anatomies
from mmcl_jax.data.synthetic import ecg as recording
from mmcl_jax.data.synthetic import electrophysiology as electrophysiologies

LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]


def draw_anatomy(seed=0, n=1, **fields):
    population = anatomies.Population({}, infarct=1e-9, cardiomyopathy=0.0)
    anatomy = anatomies.draw(np.random.default_rng(seed), n, population)
    return dataclasses.replace(
        anatomy, **{name: np.full_like(getattr(anatomy, name), v) for name, v in fields.items()}
    )


def draw_beat(seed=0, fibrillation=False, **fields):
    anatomy = draw_anatomy(seed, **fields)
    heart = anatomies.phenotypes(anatomy, anatomy.sinus_rate)
    heart = {name: float(value[0]) for name, value in heart.items()}
    rng = np.random.default_rng((seed, 1))
    return electrophysiologies.draw(rng, anatomy, heart, fibrillation)


def mean_beat(**fields):
    """QRS and ST-T of 60 subjects who share the given anatomy, averaged: 2 x [12, samples]."""
    waves = [draw_beat(seed, **fields) for seed in range(60)]
    view = recording._DOWER
    traces = []
    for name in ("depolarisation", "repolarisation"):
        dipole = np.mean([recording._trace(getattr(w, name), -0.3, 0.3) for w in waves], axis=0)
        leads = view @ dipole
        traces.append(np.concatenate([recording._LIMB @ leads[:2], leads[2:]]))
    return traces


@pytest.fixture(scope="module")
def ecg():
    return recording.simulate(np.random.default_rng(5), draw_beat(5))


def test_shape_and_range(ecg):
    assert ecg.shape == (12, 5000)
    assert ecg.dtype == np.float32
    assert np.isfinite(ecg).all()
    assert 0.4 < np.abs(ecg).max() < 5  # mV


def test_limb_leads_follow_einthoven_and_goldberger(ecg):
    lead = dict(zip(LEADS, ecg, strict=True))
    for derived, expected in (
        ("II", lead["I"] + lead["III"]),
        ("aVR", -(lead["I"] + lead["II"]) / 2),
        ("aVL", (lead["I"] - lead["III"]) / 2),
        ("aVF", (lead["II"] + lead["III"]) / 2),
    ):
        np.testing.assert_allclose(lead[derived], expected, atol=1e-5)


def test_same_seed_same_recording_and_another_seed_another_one(ecg):
    again = recording.simulate(np.random.default_rng(5), draw_beat(5))
    other = recording.simulate(np.random.default_rng(6), draw_beat(5))
    np.testing.assert_array_equal(ecg, again)
    assert np.abs(ecg - other).max() > 0.1


@pytest.mark.parametrize("rate", [45.0, 62.0, 100.0])
def test_beats_come_at_the_heart_rate_over_the_whole_recording(rate):
    beat = dataclasses.replace(draw_beat(), heart_rate=rate, rr_deviation=0.02)
    times = recording.beat_times(np.random.default_rng(0), beat)
    assert np.diff(times).mean() == pytest.approx(60 / rate, rel=0.03)
    assert times[0] < 0
    assert times[-1] + 60 / rate > 10


def test_fibrillation_is_irregular_and_has_no_p_wave():
    sinus, fibrillation = draw_beat(3), draw_beat(3, fibrillation=True)
    rng = np.random.default_rng(0)
    regular = np.diff(recording.beat_times(rng, sinus))
    irregular = np.diff(recording.beat_times(rng, fibrillation))
    assert irregular.std() / irregular.mean() > 0.12 > regular.std() / regular.mean()

    # Averaged over beats, the P wave stands out of II before the QRS; f waves cancel out.
    def before_qrs(beat):
        # Long enough to average, and without the noise that would mask a small wave.
        rng = np.random.default_rng(1)
        times = recording.beat_times(rng, beat)
        dipole = recording._dipole(np.random.default_rng(1), beat)
        lead = recording._DOWER[1] @ dipole
        starts = [round(time * 500) - 120 for time in times if 0.3 < time < 9.9]
        mean = np.mean([lead[start : start + 90] for start in starts], axis=0)
        return np.ptp(mean)

    assert before_qrs(sinus) > 0.06
    silent = dataclasses.replace(fibrillation, fibrillation_wave=0.0)
    assert before_qrs(silent) < before_qrs(sinus) / 2


def test_intervals_are_physiological():
    beats = [draw_beat(seed) for seed in range(100)]
    assert 0.13 < np.mean([beat.pr for beat in beats]) < 0.19
    assert 0.08 < np.median([beat.qrs for beat in beats]) < 0.1
    assert 0.38 < np.mean([beat.qtc for beat in beats]) < 0.43
    assert {beat.conduction for beat in beats} <= set(electrophysiologies.CONDUCTIONS)


def test_normal_beat_has_the_usual_signs():
    depolarisation, repolarisation = mean_beat()
    lead = dict(zip(LEADS, depolarisation, strict=True))
    for name in ("I", "II", "V5", "V6"):
        assert lead[name].max() > 2 * -lead[name].min(), name
    for name in ("aVR", "V1"):
        assert -lead[name].min() > 1.5 * lead[name].max(), name
    # R grows from V1 to V4.
    assert lead["V1"].max() < lead["V2"].max() < lead["V4"].max()
    assert repolarisation[1].max() > 0.1  # T in II
    assert repolarisation[3].min() < -0.1  # T in aVR


def test_thick_wall_raises_voltage_and_strains_lateral_t():
    (thin, thin_t), (thick, thick_t) = mean_beat(thickness=5.0), mean_beat(thickness=9.0)
    # S in V1 plus R in V5 (Sokolow and Lyon).
    assert thick[10].max() - thick[6].min() > 1.2 * (thin[10].max() - thin[6].min())
    # T over R in V6, which survives any scaling of the amplitude.
    assert thick_t[11].max() / thick[11].max() < 0.7 * thin_t[11].max() / thin[11].max()


def test_wide_ventricle_widens_qrs_and_delays_r_progression():
    narrow = np.median([draw_beat(seed, volume=100.0).qrs for seed in range(60)])
    wide = np.median([draw_beat(seed, volume=240.0).qrs for seed in range(60)])
    assert wide > narrow + 0.008
    (small, _), (large, _) = mean_beat(volume=100.0), mean_beat(volume=240.0)
    assert large[8].max() / -large[8].min() < 0.7 * small[8].max() / -small[8].min()  # V3


def test_weak_ventricle_flattens_t():
    (strong, strong_t), (weak, weak_t) = mean_beat(shortening=0.35), mean_beat(shortening=0.15)
    assert weak_t[10].max() / weak[10].max() < 0.75 * strong_t[10].max() / strong[10].max()


def test_large_right_ventricle_turns_the_axis_to_the_right():
    (small, _), (large, _) = mean_beat(rv_volume=110.0), mean_beat(rv_volume=260.0)

    def net(trace):
        return trace.max() + trace.min()

    assert net(large[0]) < net(small[0]) - 0.1  # I
    assert net(large[5]) > net(small[5])  # aVF


def test_anterior_infarct_takes_r_from_v2_and_inverts_t():
    scar = np.zeros(16)
    scar[list(anatomies.TERRITORIES[0])] = 0.9
    healthy, healthy_t = mean_beat()
    infarcted, infarcted_t = mean_beat(infarct=0, scar=scar)
    assert infarcted[7].max() < 0.6 * healthy[7].max()
    assert infarcted_t[7].min() < -0.1
    assert healthy_t[7].max() > 0.1


def test_left_bundle_branch_block_is_wide_and_has_no_r_in_v1():
    blocked = None
    for seed in range(400):
        beat = draw_beat(seed, shortening=0.08, volume=260.0)
        if beat.conduction == "LBBB":
            blocked = beat
            break
    assert blocked is not None
    assert blocked.qrs > 0.115
    v1 = recording._DOWER[2] @ recording._trace(blocked.depolarisation, -0.3, 0.3)
    assert -v1.min() > 3 * v1.max()
