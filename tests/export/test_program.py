"""The exported program gives what the run gives."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from export_files import assert_close, content, load, recordings
from jax.sharding import NamedSharding, PartitionSpec
from made_up_stage import made_up

from mmcl_jax.experiment import Experiment
from mmcl_jax.export import exported
from mmcl_jax.inference.models import Group
from mmcl_jax.sharding import make_mesh
from mmcl_jax.state import make_predict_step


def test_outputs_are_those_of_evaluate(run, whole):
    model, columns = load(whole), content(whole)["output"]["columns"]
    ecg = recordings(run)
    position = {column["name"]: k for k, column in enumerate(columns)}
    found = np.concatenate(
        [model.call(ecg[i : i + 3])["prediction"] for i in range(0, len(ecg), 3)]
    )
    for target, name in (("CAD", "CAD_probability"), ("age", "age_years")):
        file = np.load(run / "evaluate" / "predictions" / f"finetune__{target}__0.npz")
        predicted = file["prediction"][file["split"] == "test"]
        assert_close(found[:, [position[name]]], predicted)


@pytest.mark.parametrize(
    ("kind", "outputs", "dtype", "sizes", "tolerance"),
    [
        ("multiclass", 3, "float32", (3,), 1e-6),
        ("regression", 2, "float32", (1, 3, 8), 1e-6),
        # Two programs of equal steps round to half precision in different places.
        ("multilabel", 2, "bfloat16", (1, 8), 5e-3),
    ],
)
def test_outputs_are_those_of_the_predict_step(kind, outputs, dtype, sizes, tolerance):
    trained, labels = made_up(kind, outputs, dtype)
    group = Group((trained,), labels)
    program = exported.export_groups([group], "predict", crops=1, samples=1000)
    assert program.platforms == ("cpu", "cuda", "tpu")
    step = make_predict_step(trained.objective, trained.views)
    for size in sizes:
        batch = {name: rows for name, rows in tiny.batch(size, size).items() if name != "labels"}
        expected = np.asarray(step(trained.params, trained.extra, batch)["prediction"])
        if kind == "regression":
            expected = expected * [2.0, 3.0] + [100.0, -4.0]
        found = program.call(batch["ecg"])["prediction"]
        assert found.dtype == np.float32
        assert_close(found, expected, tolerance)


def test_seeds_are_combined_as_by_inference():
    first, labels = made_up("regression", 2, "float32")
    second = dataclasses.replace(
        first,
        params=jax.tree.map(lambda leaf: leaf * 0.9, first.params),
        statistics={"x": (101.0, 2.5), "y": (-4.0, 3.0)},
    )
    group = Group((first, second), labels)
    program = exported.export_groups([group, group], "predict", crops=1, samples=1000)
    ecg = tiny.batch(3)["ecg"]
    step = make_predict_step(first.objective, first.views)
    outputs = [step(m.params, m.extra, tiny.batch(3))["prediction"] for m in group.members]
    expected = group.combine(np.stack([np.asarray(output, np.float64) for output in outputs]))
    found = np.asarray(program.call(ecg)["prediction"])
    assert found.shape == (3, 8)
    assert_close(found[:, :4], expected)
    np.testing.assert_array_equal(found[:, :4], found[:, 4:])


def test_several_windows_are_averaged():
    trained, labels = made_up("binary", 2, "float32")
    group = Group((trained,), labels)
    program = exported.export_groups([group], "predict", crops=3, samples=1000)
    batch = tiny.batch(3)
    step = make_predict_step(trained.objective, trained.views)
    found = [step(trained.params, trained.extra, batch, s)["prediction"] for s in (0, 250, 500)]
    assert_close(program.call(batch["ecg"])["prediction"], np.mean(found, axis=0))
    with pytest.raises(ValueError, match="Shape mismatch|shape"):
        program.call(batch["ecg"][:, :, :600])


def test_a_window_alone_gives_what_the_recording_gives(run, whole):
    model, ecg = load(whole), recordings(run)[:2]
    np.testing.assert_allclose(
        model.call(ecg[:, :, :500])["prediction"], model.call(ecg)["prediction"], rtol=1e-6
    )


def test_a_batch_can_be_split_over_devices(run, whole):
    model, ecg = load(whole), np.tile(recordings(run)[:4], (2, 1, 1))
    split = jax.device_put(ecg, NamedSharding(make_mesh(), PartitionSpec("data")))
    assert len(split.sharding.device_set) == jax.device_count() == 8
    found = jax.jit(model.call)(split)["prediction"]
    assert_close(np.asarray(found), np.asarray(model.call(ecg)["prediction"]))


def test_the_weights_are_in_the_file(whole, run):
    size = (whole / "model.jaxexport").stat().st_size
    model = load(whole)
    assert [str(aval.shape) for aval in model.in_avals] == ["(b, 12, t)"]
    assert model.nr_devices == 1
    trained = Experiment.open(run)
    stages = [stage for stage in trained.training_stages() if stage.target]
    leaves = [leaf for stage in stages for leaf in jax.tree.leaves(trained.load(stage).params)]
    weights = sum(leaf.nbytes for leaf in leaves)
    assert weights < size < weights + 200_000
