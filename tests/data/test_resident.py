"""Where recordings are kept, and that a training does not depend on it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny_source import TinySource

from mmcl_jax import distributed, train
from mmcl_jax.augment.views import Views
from mmcl_jax.checkpoints import Checkpoints, load
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data import pipeline, resident
from mmcl_jax.data.records import record_bytes
from mmcl_jax.data.resident import Recordings
from mmcl_jax.objectives.base import Objective
from mmcl_jax.recipe import Recipe
from mmcl_jax.run_dir import RunDir
from mmcl_jax.sharding import make_mesh
from mmcl_jax.state import State, initialise

BATCH, STEPS = 8, 3


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    path = tmp_path_factory.mktemp("resident") / "cohort"
    cohorts.write(TinySource(count=30, without_cmr=(4,)), path, workers=0, progress=False)
    return cohorts.open_cohort(path)


@pytest.fixture(scope="module")
def rows(cohort):
    return {split: pipeline.select(cohort, split) for split in ("train", "val")}


# 21 training and 3 validation ECGs.
NEED = 24 * record_bytes(("ecg",))
PLENTY = 10 * NEED


def recordings(free_device=PLENTY, free_memory=PLENTY, **policies):
    return Recordings(free_device=lambda: free_device, free_memory=lambda: free_memory, **policies)


@pytest.mark.parametrize(
    ("options", "where", "line"),
    [
        ({}, "device", "recordings stay on the device: 24 records, 0.01 GB"),
        ({"resident": "always", "free_device": NEED}, "device", "stay on the device"),
        (
            {"free_device": 2 * NEED},
            "memory",
            "stay in memory once read: 24 records, 0.01 GB (device: more than 25 % of the 0.01 GB",
        ),
        ({"resident": "never"}, "memory", "in memory once read: 24 records, 0.01 GB (data.resi"),
        ({"resident": "never", "cache": "always", "free_memory": NEED}, "memory", "once read"),
        ({"resident": "never", "cache": "never"}, "files", "is 'never'; data.cache is 'never')"),
        ({"resident": "never", "free_memory": NEED}, "files", "; RAM: more than 40 % of the 0.01"),
        ({"resident": "never", "workers": 2}, "files", "2 worker processes share no memory"),
    ],
)
def test_where_recordings_are(cohort, rows, capsys, options, where, line):
    found = recordings(**options).of(cohort, rows, ("ecg",))
    kept = {
        "device": found.resident.keys() == rows.keys(),
        "memory": found.caches.keys() == rows.keys(),
        "files": not found.resident and not found.caches,
    }
    assert kept == {place: place == where for place in kept}
    assert found.fields == (() if where == "device" else ("ecg",))
    assert found.workers == (options.get("workers", 0) if where == "files" else 0)
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resident": "yes"}, "data.resident is 'yes', expected auto, always, never"),
        ({"cache": "on"}, "data.cache is 'on', expected auto, always, never"),
        ({"cache": "always", "workers": 1}, "data.workers is 1 and data.cache is 'always'"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        recordings(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"resident": "always", "free_device": NEED - 1},
            "data.resident is 'always', but the recordings need 5,760,000 bytes and the device "
            "has 5,759,999 free",
        ),
        (
            {"resident": "never", "cache": "always", "free_memory": 10},
            "data.cache is 'always', but the recordings need 5,760,000 bytes and the RAM has 10",
        ),
    ],
)
def test_always_that_does_not_fit(cohort, rows, options, message):
    with pytest.raises(ValueError, match=message):
        recordings(**options).of(cohort, rows, ("ecg",))


def test_several_processes_stream(cohort, rows, capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "processes_here", lambda: 2)
    for fits, room in ((True, 2.1), (False, 1.9)):
        found = recordings(free_memory=int(room * NEED / resident.SHARES["cache"]))
        assert bool(found.of(cohort, rows, ("ecg",)).caches) is fits
        assert "(2 processes" in capsys.readouterr().out
    with pytest.raises(ValueError, match="not supported with 2 processes"):
        recordings(resident="always").of(cohort, rows, ("ecg",))


def test_free_memory_is_that_of_the_smallest_device(monkeypatch):
    @dataclasses.dataclass
    class Device:
        limit: int

        def memory_stats(self):
            return {"bytes_limit": self.limit, "bytes_in_use": 30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(100), Device(90)])
    assert resident.device_memory(lambda: 1000) == 60
    # Recordings pass through the memory of the host.
    assert resident.device_memory(lambda: 50) == 50


@pytest.mark.parametrize("policy", ["always", "never"])
def test_recordings_are_kept_for_the_next_stage(cohort, rows, monkeypatch, policy):
    keeper = recordings(resident=policy)
    first = keeper.of(cohort, rows, ("ecg",))
    fewer = {"train": rows["train"][::2], "val": rows["val"]}
    assert keeper.of(cohort, fewer, ("ecg",)) is first
    # Those read with skipping have other records in the place of damaged ones.
    skipping = dataclasses.replace(cohort, on_corrupt="skip")
    assert keeper.of(skipping, fewer, ("ecg",)) is not first
    both = {split: pipeline.select(cohort, split, fields=("ecg", "cmr")) for split in rows}
    monkeypatch.setattr(resident, "load", lambda *args: keeper._kept)
    second = keeper.of(cohort, both, ("ecg", "cmr"))
    # The first were released before the second were loaded.
    assert second is not first
    assert not any(second.resident.values())


def test_loaded_recordings(cohort):
    rows = pipeline.select(cohort, "train", fields=("ecg", "cmr"))[::-2]
    source = cohort.source("train", ("ecg", "cmr", "cmr_box"))
    found = resident.load(source, "train", rows)
    assert found.keys() == {"place", "ecg", "cmr", "cmr_box"}
    np.testing.assert_array_equal(found["place"][rows], np.arange(len(rows)))
    assert found["place"].shape == (cohort.splits["train"],)
    source = cohort.source("train")
    for row in rows:
        for name, value in source[row].items():
            np.testing.assert_array_equal(found[name][found["place"][row]], value)


def test_devices_of_a_cpu_share_one_copy(cohort, rows):
    if jax.default_backend() != "cpu":
        pytest.skip("needs a CPU")
    ecg = resident.load(cohort.source("train", ("ecg",)), "train", rows["train"])["ecg"]
    copies = {shard.data.unsafe_buffer_pointer() for shard in ecg.addressable_shards}
    assert len(ecg.addressable_shards) == jax.device_count()
    assert len(copies) == 1


def test_a_long_upload_tells_how_far_it_is(cohort, rows, monkeypatch, capsys):
    source = cohort.source("train", ("ecg",))
    resident.read(source, rows["train"])
    assert not capsys.readouterr().err
    monkeypatch.setattr(resident, "_PATIENCE", -1.0)
    resident.read(source, rows["train"], title="  reading train")
    assert "reading train 21 of 21 records (100 %)" in capsys.readouterr().err


class Linear(Objective):
    """Reads every field of a batch, and compiles in a moment."""

    @nn.compact
    def __call__(self, batch, *, train):
        return jnp.sum(batch["valid"] * self._errors(batch)) / jnp.sum(batch["valid"]), {}

    def predict(self, batch):
        return {"error": self._errors(batch)}

    @nn.compact
    def _errors(self, batch):
        frames = batch["cmr"].astype(jnp.float32).mean((1, 2)) / 255
        inputs = [batch["ecg"].std(-1), frames, batch["cmr_box"] / 210]
        found = nn.Dense(1, name="dense")(jnp.concatenate(inputs, axis=-1))
        return jnp.mean(batch["label_valid"] * (found - batch["labels"]) ** 2, axis=-1)


def trained(cohort, folder, devices, monkeypatch, **policies):
    """Parameters and metrics after a few steps on the cohort."""
    mesh = make_mesh(jax.devices()[:devices])
    monkeypatch.setattr(train, "make_mesh", lambda: mesh)
    monkeypatch.setattr(resident, "make_mesh", lambda: mesh)
    fields = ("ecg", "cmr")
    rows = {split: pipeline.select(cohort, split, fields=fields) for split in ("train", "val")}
    objective, views = Linear(), Views(ecg=None, cmr=None)
    params, extra = initialise(objective, views, tiny.batch(2), jax.random.key(0))
    recipe = Recipe(objective, views, lambda params, hyper: optax.sgd(1e-2))
    state = State(jnp.zeros((), jnp.int32), params, extra, optax.sgd(1e-2).init(params))
    found = recordings(**policies).of(cohort, rows, fields)
    common = {"fields": found.fields, "labels": ("CAD",), "batch_size": BATCH}

    def train_batches(step):
        cache = found.caches.get("train")
        return pipeline.train_batches(
            cohort, "train", rows["train"], seed=1, start_step=step, cache=cache, **common
        )

    def eval_batches():
        cache = found.caches.get("val")
        return pipeline.eval_batches(cohort, "val", rows["val"], cache=cache, **common)

    folder.mkdir()
    with Checkpoints(folder / "stages" / "stage") as checkpoints:
        summary = train.train(
            RunDir(folder), "stage", recipe, state, checkpoints, learning_rate=lambda step: 1e-2,
            schedule=train.Schedule(
                steps=STEPS, steps_per_epoch=2, batch_size=BATCH, evaluate_every=0, log_every=1
            ),
            train_batches=train_batches, eval_batches=eval_batches, seed=3,
            train_resident=found.resident.get("train"), eval_resident=found.resident.get("val"),
        )  # fmt: skip
    return load(folder / "stages" / "stage", "latest")[0], summary["metrics"]


@pytest.mark.parametrize("devices", [1, 8])
def test_training_does_not_depend_on_where_recordings_are(cohort, tmp_path, monkeypatch, devices):
    places = {
        "device": {"resident": "always"},
        "memory": {"resident": "never", "cache": "always"},
        "files": {"resident": "never", "cache": "never"},
    }
    first, *others = (
        trained(cohort, tmp_path / name, devices, monkeypatch, **policies)
        for name, policies in places.items()
    )
    assert np.isfinite(first[1]["val/loss"])
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), first, other)
    jax.tree.map(np.testing.assert_array_equal, *others)
