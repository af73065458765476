import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.augment import ecg as augment
from mmcl_jax.augment.ecg import EcgAugmentation

PLAIN = {"surrogate_probability": 0.0, "noise_sigma": 0.0, "rescale_sigma": 0.0}


def recording(samples=400, leads=12, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((leads, samples)), jnp.float32)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_surrogate_reproduces_the_golden_numbers(golden):
    with np.load(golden / "ft_surrogate.npz") as numbers:
        uniform = numbers["uniform_phases"][0]
        magnitude = numbers["phase_noise_magnitude"]
        expected = numbers["output"]
        seed = int(numbers["input_seed"])
    ecg = np.random.default_rng(seed).standard_normal((3, 2500)).astype(np.float32)
    phases = (2 * np.pi * magnitude * uniform).astype(np.float32)
    ours = augment.ft_surrogate(jnp.asarray(ecg), jnp.asarray(phases))
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("samples", [400, 401])
def test_surrogate_keeps_amplitudes_mean_and_phase_differences_between_leads(samples):
    ecg = recording(samples)
    phases = augment.random_phases(jax.random.key(1), samples, 0.3)
    assert phases.shape == ((samples - 1) // 2,)
    before = np.fft.rfft(np.asarray(ecg, np.float64))
    after = np.fft.rfft(np.asarray(augment.ft_surrogate(ecg, phases), np.float64))
    np.testing.assert_allclose(np.abs(after), np.abs(before), atol=1e-3)
    np.testing.assert_allclose(after[:, 0], before[:, 0], atol=1e-3)
    np.testing.assert_allclose(
        after[0] * np.conj(after[1]), before[0] * np.conj(before[1]), atol=0.05
    )
    turned = np.angle(after[:, 1:-1] / before[:, 1:-1]) % (2 * np.pi)
    expected = np.broadcast_to(phases, (12, phases.shape[0]))[:, : turned.shape[1]]
    np.testing.assert_allclose(turned, expected, atol=0.01)


def test_phases_are_uniform_from_zero_to_the_magnitude():
    phases = np.asarray(augment.random_phases(jax.random.key(0), 20001, 0.1))
    assert phases.min() >= 0
    assert phases.max() < 0.2 * np.pi
    assert phases.mean() == pytest.approx(0.1 * np.pi, rel=0.02)


def test_crop_starts_everywhere_but_at_the_last_possible_sample():
    ecg = jnp.tile(jnp.arange(10.0)[None, :], (2, 1))
    crops = jax.vmap(lambda key: augment.random_crop(key, ecg, 6))(keys(200))
    starts = np.asarray(crops[:, 0, 0])
    assert set(starts.tolist()) == {0.0, 1.0, 2.0, 3.0}
    np.testing.assert_array_equal(
        crops, starts[:, None, None] + np.tile(np.arange(6.0), (200, 2, 1))
    )


def test_crop_of_the_whole_recording_is_the_recording():
    ecg = recording(20)
    np.testing.assert_array_equal(augment.random_crop(jax.random.key(0), ecg, 20), ecg)


def test_relative_noise_is_proportional_to_the_sample_and_additive_noise_is_not():
    ecg = jnp.tile(jnp.array([0.0, 1.0, -10.0])[:, None], (1, 20000))
    relative = np.asarray(augment.noise(jax.random.key(0), ecg, 0.25) - ecg)
    np.testing.assert_allclose(relative.std(axis=1), [0, 0.15, 1.5], rtol=0.03)
    additive = np.asarray(augment.noise(jax.random.key(0), ecg, 0.25, relative=False) - ecg)
    np.testing.assert_allclose(additive.std(axis=1), 0.25, rtol=0.03)
    np.testing.assert_allclose(additive.mean(axis=1), 0, atol=0.01)


def test_one_rescaling_factor_for_a_whole_recording_with_the_given_spread():
    ecg = recording(50)
    scaled = jax.vmap(lambda key: augment.rescale(key, ecg, 0.5))(keys(4000))
    factors = np.asarray(scaled / ecg[None])
    np.testing.assert_allclose(
        factors, np.broadcast_to(factors[:, :1, :1], factors.shape), rtol=1e-4
    )
    assert factors[:, 0, 0].mean() == pytest.approx(1, abs=0.03)
    assert factors[:, 0, 0].std() == pytest.approx(0.5, rel=0.05)
    # A normal distribution with mean 1 and deviation 0.5 is negative in 2.3 % of the draws.
    assert (factors[:, 0, 0] < 0).mean() == pytest.approx(0.023, abs=0.01)


def test_operations_follow_each_other_in_the_order_of_the_paper():
    augmentation = EcgAugmentation(length=400, surrogate_probability=1.0)
    ecg, key = recording(), jax.random.key(3)
    _, _, _, phase_key, noise_key, rescale_key = jax.random.split(key, 6)
    expected = augment.ft_surrogate(ecg, augment.random_phases(phase_key, 400, 0.1))
    expected = augment.rescale(rescale_key, augment.noise(noise_key, expected, 0.25), 0.5)
    np.testing.assert_allclose(augmentation(key, ecg), expected, rtol=1e-5, atol=1e-5)


def test_gate_leaves_a_random_crop_at_the_complementary_rate():
    ramp = jnp.tile(jnp.arange(60.0)[None, :], (2, 1))
    augmentation = EcgAugmentation(length=30, probability=0.8)
    views = np.asarray(jax.jit(jax.vmap(lambda key: augmentation(key, ramp)))(keys(1000)))
    clean = (np.diff(views, axis=-1) == 1).all(axis=(1, 2))
    assert clean.mean() == pytest.approx(0.2, abs=0.04)
    assert len(set(views[clean][:, 0, 0].tolist())) > 20


def test_surrogate_is_applied_at_its_rate():
    ecg = recording(100, leads=2)
    augmentation = EcgAugmentation(length=100, **{**PLAIN, "surrogate_probability": 0.5})
    views = jax.jit(jax.vmap(lambda key: augmentation(key, ecg)))(keys(1000))
    unchanged = np.asarray((views == ecg[None]).all(axis=(1, 2)))
    assert unchanged.mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("field", "flipped"),
    [("time_flip_probability", lambda x: x[:, ::-1]), ("sign_flip_probability", lambda x: -x)],
)
def test_flips_happen_at_their_rate(field, flipped):
    ecg = recording(100, leads=2)
    augmentation = EcgAugmentation(length=100, **PLAIN, **{field: 0.3})
    views = jax.jit(jax.vmap(lambda key: augmentation(key, ecg)))(keys(1000))
    unchanged = np.asarray((views == ecg[None]).all(axis=(1, 2)))
    assert unchanged.mean() == pytest.approx(0.7, abs=0.05)
    np.testing.assert_array_equal(views[~unchanged], np.stack([flipped(ecg)] * sum(~unchanged)))


def test_spectral_mask_hides_a_band_or_a_stretch_in_all_leads():
    # One frequency per lead, each in the middle of a bin of 500 / 120 Hz.
    frequency = np.array([5, 20, 40])[:, None] / 120
    ecg = jnp.asarray(np.cos(2 * np.pi * frequency * np.arange(2500)), jnp.float32)
    mask = jax.jit(jax.vmap(lambda key: augment.mask_spectrum(key, ecg, 0.25)))
    masked = np.asarray(mask(keys(200)))
    assert masked.shape == (200, 3, 2500)
    power = np.square(masked[:, :, 300:-300]).mean(axis=2) / 0.5
    # A band of 15 of 61 bins takes a lead whole or leaves it; a stretch takes from all.
    bands = (np.minimum(power, np.abs(1 - power)) < 0.02).all(axis=1)
    assert 0.35 < bands.mean() < 0.65
    assert (power[bands].min(axis=1) < 0.02).any()
    stretches = power[~bands]
    np.testing.assert_allclose(stretches, stretches[:, :1].repeat(3, axis=1), atol=0.05)
    # 21 of 84 frames.
    silent = (np.abs(masked[~bands]).max(axis=1) < 1e-3).mean(axis=1)
    assert silent.max() < 0.26
    assert silent.mean() > 0.15


def test_spectral_mask_of_nothing_is_the_recording():
    ecg = recording(2500)
    same = augment.mask_spectrum(jax.random.key(0), ecg, 0.001)
    np.testing.assert_allclose(same, ecg, atol=1e-5)


def test_same_key_same_view_and_other_key_other_view():
    augmentation, ecg = EcgAugmentation(length=100), recording(200)
    first, again, other = (augmentation(jax.random.key(seed), ecg) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_clean_window_begins_where_asked():
    augmentation, ecg = EcgAugmentation(length=100), recording(250)
    np.testing.assert_array_equal(augmentation.clean(ecg), ecg[:, :100])
    np.testing.assert_array_equal(augmentation.clean(ecg, 150), ecg[:, 150:])
    traced = jax.jit(augmentation.clean)(ecg, jnp.array(70))
    np.testing.assert_array_equal(traced, ecg[:, 70:170])


def test_windows_that_do_not_fit_are_refused():
    augmentation = EcgAugmentation(length=100)
    with pytest.raises(ValueError, match="80 samples is shorter than the window of 100"):
        augmentation(jax.random.key(0), recording(80))
    with pytest.raises(ValueError, match="cannot start at sample 51 of a recording of 150"):
        augmentation.clean(recording(150), 51)


@pytest.mark.parametrize(
    ("field", "value"),
    [("noise", "pink"), ("probability", 1.5), ("noise_sigma", -1.0), ("length", 0)],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        EcgAugmentation(**{field: value})
