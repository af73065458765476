import dataclasses
import json

import numpy as np
import pytest

from mmcl_jax.data.formats import wfdb
from mmcl_jax.data.signals import ecg
from mmcl_jax.data.signals.leads import LEADS, arrange
from mmcl_jax.data.subject import RefusedRecord


def artificial(seed):
    """Beats, a fast and a slow wave and noise, [12, 5000] mV."""
    time = np.arange(5000) / 500
    lead = np.arange(12)[:, None]
    beat = np.exp(-0.5 * ((time % 0.9 - 0.45) / 0.012) ** 2)
    wave = np.sin(2 * np.pi * 1.1 * time + 0.3 * lead)
    drift = 0.8 * np.sin(2 * np.pi * 0.15 * time + 0.5 * lead)
    noise = 0.05 * np.random.default_rng(seed).standard_normal((12, 5000))
    return wave + drift + 4 * beat * (1 + 0.1 * lead) + noise


def person(seed):
    """As `artificial`, with limb leads that agree, [12, 5000] mV."""
    signal = artificial(seed)
    signal[2:6] = arrange(signal[[0, 1, *range(6, 12)]], ("I", "II", *LEADS[6:]))[0][2:6]
    return signal


def recording(signal=None, *, rate=500.0, unit="mV", names=LEADS):
    signal = person(0) if signal is None else signal
    return ecg.Recording(signal, tuple(names), (unit,) * len(signal), rate)


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_golden_artificial(golden):
    expected = np.load(golden / "ecg_preprocessing_artificial.npz")
    found = ecg.preprocess(artificial(int(expected["seed"])))
    assert found.dtype == np.float32
    assert relative_error(found[:, ::5], expected["processed"]) <= 1e-6
    assert relative_error(found[:, :100], expected["first_100"]) <= 1e-6


def test_golden_real(recordings):
    expected = np.load(recordings / "golden_real" / "ecg_preprocessing.npz")
    for record, processed in zip(expected["records"], expected["processed"], strict=True):
        found, flags = ecg.prepare(record, wfdb.read(recordings / str(record)))
        assert flags == ()
        assert relative_error(found, processed) <= 1e-6


def test_groups_are_normalised():
    found = ecg.preprocess(artificial(1)).astype(np.float64)
    for start, stop in ((0, 3), (3, 6), (6, 12)):
        assert abs(found[start:stop].mean()) < 1e-6
        assert abs(found[start:stop].var() - 1) < 1e-5
    # Leads within a group keep their relation, so they are not normalised one by one.
    assert np.ptp(found.std(axis=1)[6:]) > 0.01


def test_unit_and_gain_of_the_recorder_do_not_matter():
    np.testing.assert_allclose(
        ecg.preprocess(7.0 * artificial(0)), ecg.preprocess(artificial(0)), atol=1e-4
    )


def test_nan_counts_as_zero():
    signal = artificial(0)
    signal[3, 100:200] = 0.0
    holes = signal.copy()
    holes[3, 100:200] = np.nan
    np.testing.assert_array_equal(ecg.preprocess(holes), ecg.preprocess(signal))


def test_clip_precedes_the_baseline():
    signal = artificial(0)
    spike, limit = signal.copy(), signal.copy()
    spike[0, 2500] = 1e3
    limit[0, 2500] = 4 * spike.std()
    limit = np.clip(limit, -4 * spike.std(), 4 * spike.std())
    np.testing.assert_allclose(
        ecg.preprocess(spike),
        ecg.preprocess(limit, dataclasses.replace(ecg.DEFAULT, clip=1e9)),
        atol=1e-6,
    )


def test_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"shape is \(12, 4999\), expected \(12, 5000\)"):
        ecg.preprocess(np.zeros((12, 4999)))


def test_settings_are_json_and_tell_differences():
    settings = ecg.DEFAULT.as_dict()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["leads"] == list(LEADS)
    assert settings["smoothness"] == 1e7
    assert dataclasses.replace(ecg.DEFAULT, asymmetry=0.1).as_dict() != settings


@pytest.mark.parametrize(
    ("unit", "factor"), [("mV", 1), ("mv", 1), ("uV", 1e3), ("µV", 1e3), ("V", 1e-3)]
)
def test_units(unit, factor):
    found = ecg.to_millivolt(np.full((1, 3), 2.0 * factor), [unit], ["II"])
    np.testing.assert_allclose(found, 2.0)


def test_an_unknown_unit_is_refused_unless_it_is_no_ecg():
    with pytest.raises(RefusedRecord, match=r"some/path: lead I: unit is 'mmHg', expected mV"):
        ecg.prepare("some/path", recording(unit="mmHg"))
    both = recording(np.vstack([person(0), np.ones((1, 5000))]), names=[*LEADS, "ABP"])
    both.units = ("mV",) * 12 + ("mmHg",)
    _, flags = ecg.prepare("x", both)
    assert flags == ()


@pytest.mark.parametrize("rate", [100, 257, 360, 1000])
def test_resampling_keeps_a_wave(rate):
    def wave(samples_per_second):
        time = np.arange(10 * samples_per_second) / samples_per_second
        return np.sin(2 * np.pi * 3 * time + np.arange(12)[:, None]) + 0.4

    found = ecg.resample(wave(rate), rate, 500)
    assert found.shape == (12, 5000)
    # The first and last quarter second see the end of the recording.
    assert np.abs(found - wave(500))[:, 125:-125].max() < 0.01
    assert np.abs(found - wave(500)).max() < 0.3


def test_prepare_takes_the_first_ten_seconds_and_says_that_it_resampled():
    first = person(0)
    longer = np.hstack([first, person(1)])
    found, flags = ecg.prepare("x", recording(longer))
    assert flags == ()
    np.testing.assert_array_equal(found, ecg.preprocess(first))
    found, flags = ecg.prepare("x", recording(longer, rate=1000.0))
    assert found.shape == (12, 5000)
    assert flags == ("resampled from 1000 Hz",)


def test_a_short_recording_is_refused():
    with pytest.raises(RefusedRecord, match=r"9\.98 s long, expected at least 10 s"):
        ecg.prepare("x", recording(person(0)[:, :4990]))


@pytest.mark.parametrize("rate", [0.0, -500.0, float("nan"), float("inf"), 1e-300, 30.0])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(RefusedRecord, match="sampling rate"):
        ecg.prepare("x", recording(rate=rate))


@pytest.mark.parametrize("rate", [500.0, 400.0])
def test_a_short_recording_is_padded_after_the_preprocessing_on_request(rate):
    length = int(7 * rate)
    found, flags = ecg.prepare("x", recording(person(0)[:, :length], rate=rate), shortest=7)
    assert flags[-1] == "padded: 7.0 s of 10 s"
    assert (found.shape, found.dtype) == ((12, 5000), np.float32)
    assert not found[:, 3500:].any()
    # What was recorded looks as it would in a world of 7 s: no step, no share of the zeros.
    for start, stop in ((0, 3), (3, 6), (6, 12)):
        assert abs(found[start:stop, :3500].astype(np.float64).var() - 1) < 1e-5
    with pytest.raises(RefusedRecord, match="6 s long, expected at least 7 s"):
        ecg.prepare("x", recording(person(0)[:, : int(6 * rate)], rate=rate), shortest=7)
    whole, flags = ecg.prepare("x", recording(), shortest=7)
    np.testing.assert_array_equal(whole, ecg.prepare("x", recording())[0])
    assert flags == ()


def test_a_rate_just_below_the_nominal_one_needs_no_further_sample():
    _, flags = ecg.prepare("x", recording(rate=499.9999999))
    assert flags == ("resampled from 499.9999999 Hz",)


def test_missing_samples_are_flagged_or_refused():
    signal = person(0)
    signal[2, :600] = np.nan  # 1 % of the record
    found, flags = ecg.prepare("x", recording(signal))
    assert flags == ("missing samples set to 0: 1.00%",)
    assert np.isfinite(found).all()
    signal[:2] = np.inf  # 17.7 %
    with pytest.raises(RefusedRecord, match=r"17\.7% of the samples are missing"):
        ecg.prepare("x", recording(signal))


def test_flat_leads_are_flagged_and_a_flat_record_is_refused():
    signal = person(0)
    signal[7] = 0.3
    found, flags = ecg.prepare("x", recording(signal))
    assert flags == ("flat: V2",)
    assert np.isfinite(found).all()
    with pytest.raises(RefusedRecord, match="every lead is flat"):
        ecg.prepare("x", recording(np.zeros((12, 5000))))


def test_a_saturated_lead_is_flagged():
    signal = person(0)
    signal[4] = np.clip(signal[4], -1.0, 0.5)
    _, flags = ecg.prepare("x", recording(signal))
    assert flags == ("saturated: aVL",)


def test_spikes_of_implausible_amplitude_are_flagged_wherever_the_lead_rests():
    signal = person(0)
    signal[8] += 20.0  # an offset is no spike
    assert ecg.prepare("x", recording(signal))[1] == ()
    signal[8, 700:703] = 20.0 - 11.2
    signal[10, 900] = 10.6
    (flag,) = ecg.prepare("x", recording(signal))[1]
    assert flag.startswith("amplitude: 11.")
    assert flag.endswith("mV in V3, V5")


def test_leads_that_are_copies_are_flagged_once():
    signal = person(0)
    signal[7] = signal[6]
    signal[[10, 11]] = 0.0  # flat leads are flat, not copies
    _, flags = ecg.prepare("x", recording(signal))
    assert flags == ("flat: V5, V6", "copies of each other: V1 = V2")


def test_limb_leads_that_contradict_each_other_are_flagged():
    swapped = person(0)[[0, 1, 2, 5, 4, 3, *range(6, 12)]]  # aVR and aVF under each other's name
    _, flags = ecg.prepare("x", recording(swapped))
    assert flags == ("limb leads disagree: I and II do not give aVR, aVF",)
    # Cables that were swapped on the body give leads that agree, and noise of a lead is no swap.
    noisy = person(0)
    noisy[3] += 0.02 * np.random.default_rng(5).standard_normal(5000)
    assert ecg.prepare("x", recording(noisy))[1] == ()


def test_a_flat_lead_ii_says_nothing_about_the_others():
    signal = person(0)
    signal[1] = 0.0
    assert ecg.prepare("x", recording(signal))[1] == ("flat: II",)


def test_an_offset_that_the_clipping_turns_into_the_signal_is_flagged():
    _, flags = ecg.prepare("x", recording(person(0) + 20.0))
    assert flags == ("clipped: 100% of the samples, some lead may have an offset",)


def test_values_that_no_electrode_has_are_refused():
    signal = person(0)
    with pytest.raises(RefusedRecord, match=r"values of 1e\+30 mV, which no electrode has"):
        ecg.prepare("x", recording(signal=np.where(signal == signal.max(), 1e30, signal)))
