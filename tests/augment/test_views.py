import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmcl_jax.augment.cmr import CmrAugmentation
from mmcl_jax.augment.ecg import EcgAugmentation
from mmcl_jax.augment.views import Views

ECG = EcgAugmentation(length=100)
CMR = CmrAugmentation(size=16)


def batch_of(size=8, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "ecg": jnp.asarray(generator.standard_normal((size, 12, 240)), jnp.float32),
        "cmr": jnp.asarray(generator.integers(0, 256, (size, 24, 24, 3)), jnp.uint8),
        "cmr_box": jnp.tile(jnp.array([4, 5, 14, 12], jnp.int32)[None], (size, 1)),
        "labels": jnp.ones((size, 2)),
    }


@functools.cache
def make(views, **settings):
    """Compiled views; the same ones are compiled once for all tests."""
    return jax.jit(functools.partial(views, **{"train": True, **settings}))


def test_training_views_keep_the_other_fields_and_have_the_shapes_of_the_encoders():
    batch = batch_of()
    views = make(Views(ECG, CMR))(jax.random.key(0), batch)
    assert {name: value.shape for name, value in views.items()} == {
        "ecg": (8, 12, 100),
        "cmr": (8, 16, 16, 3),
        "cmr_box": (8, 4),
        "labels": (8, 2),
    }
    assert views["cmr"].dtype == jnp.float32
    assert 0.1 < views["cmr"].max() <= 1
    np.testing.assert_array_equal(views["labels"], batch["labels"])
    assert batch["ecg"].shape == (8, 12, 240)


def test_clean_views_are_those_of_each_example_whatever_the_key():
    batch = batch_of()
    views = make(Views(ECG, CMR), train=False, start=30)(jax.random.key(0), batch)
    np.testing.assert_array_equal(views["ecg"], batch["ecg"][:, :, 30:130])
    for row in (0, 5):
        expected = CMR.clean(batch["cmr"][row] / np.float32(255), batch["cmr_box"][row])
        np.testing.assert_allclose(views["cmr"][row], expected, atol=1e-6)
    other = make(Views(ECG, CMR), train=False)(jax.random.key(1), batch, start=jnp.array(30))
    np.testing.assert_array_equal(other["ecg"], views["ecg"])
    np.testing.assert_array_equal(other["cmr"], views["cmr"])


def test_examples_are_augmented_independently():
    batch = batch_of()
    same = {name: jnp.repeat(value[:1], 8, axis=0) for name, value in batch.items()}
    views = make(Views(ECG, CMR))(jax.random.key(0), same)
    for name in ("ecg", "cmr"):
        flat = np.asarray(views[name]).reshape(8, -1)
        assert len(np.unique(flat, axis=0)) == 8


def test_views_do_not_depend_on_the_number_of_devices():
    batch, key = batch_of(16), jax.random.key(3)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    sharded = jax.device_put(batch, split)
    assert len(sharded["ecg"].addressable_shards) == 8

    single = make(Views(ECG, CMR))(key, batch)
    several = make(Views(ECG, CMR))(key, sharded)
    local = make(Views(ECG, CMR, mesh=mesh)).lower(key, sharded).compile()
    on_mesh = local(key, sharded)
    for name in ("ecg", "cmr"):
        np.testing.assert_allclose(several[name], single[name], rtol=1e-6, atol=5e-6)
        np.testing.assert_allclose(on_mesh[name], single[name], rtol=1e-6, atol=5e-6)
        assert on_mesh[name].sharding.is_equivalent_to(split, single[name].ndim)
    collectives = r"all-gather|all-reduce|all-to-all|collective-permute"
    assert not re.search(collectives, local.as_text())


def test_first_of_two_views_is_always_augmented_and_the_second_at_its_rate():
    batch = batch_of(400)
    ecg = dataclasses.replace(ECG, length=240, surrogate_probability=0.0, probability=0.7)
    cmr = dataclasses.replace(CMR, size=6, probability=0.7)
    views = make(Views(ecg, cmr, count=2))(jax.random.key(0), batch)
    clean = make(Views(ecg, cmr), train=False)(jax.random.key(0), batch)
    for name in ("ecg", "cmr"):
        untouched = [
            np.isclose(views[view], clean[name], atol=1e-6).reshape(400, -1).all(axis=1).mean()
            for view in (name, f"{name}_view2")
        ]
        assert untouched[0] == 0
        assert untouched[1] == pytest.approx(0.3, abs=0.08)


def test_second_view_of_an_evaluation_batch_is_augmented():
    batch = batch_of()
    never = dataclasses.replace(ECG, probability=0.0, noise_sigma=0.5)
    views = make(Views(never, None, count=2), train=False)(jax.random.key(0), batch)
    np.testing.assert_array_equal(views["ecg"], batch["ecg"][:, :, :100])
    assert np.abs(views["ecg_view2"] - views["ecg"]).mean(axis=(1, 2)).min() > 0.1


def test_halves_come_from_the_two_halves_of_the_recording():
    time = jnp.tile(jnp.arange(240.0)[None, None, :], (4, 12, 1))
    ecg = EcgAugmentation(length=120, probability=0.0)
    views = Views(ecg, None, count=2, halves=True)
    clean = views(jax.random.key(0), {"ecg": time}, train=False)
    np.testing.assert_array_equal(clean["ecg"], time[:, :, :120])
    np.testing.assert_array_equal(clean["ecg_view2"], time[:, :, 120:])
    train = make(views)(jax.random.key(0), {"ecg": time})
    np.testing.assert_array_equal(train["ecg_view2"], time[:, :, 120:])


def test_modality_without_augmentation_is_left_alone_and_missing_fields_are_named():
    batch = batch_of()
    views = Views(ECG, None)(jax.random.key(0), batch, train=True)
    assert views["cmr"] is batch["cmr"]
    assert Views(None, None)(jax.random.key(0), batch, train=True) == batch
    fields = {"ecg": batch["ecg"], "cmr": batch["cmr"]}
    with pytest.raises(ValueError, match="'cmr_box'.*'cmr', 'ecg'"):
        Views(ECG, CMR)(jax.random.key(0), fields, train=True)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="count must be 1 or 2, got 3"):
        Views(ECG, CMR, count=3)
    with pytest.raises(ValueError, match="halves need count=2"):
        Views(ECG, CMR, halves=True)
