"""Where arrays are: the rules of splitting, and losses whose logits are split over devices."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from mmcl_jax.checkpoints import Checkpoints, load
from mmcl_jax.objectives.clip import clip_loss
from mmcl_jax.objectives.simclr import nt_xent
from mmcl_jax.recipe import Recipe
from mmcl_jax.sharding import make_mesh, place, replicate, shardings, to_host, whole
from mmcl_jax.state import State, initialise, make_train_step

SHAPES = {
    "kernel": (16, 24), "tall": (32, 8), "convolution": (3, 3, 8, 16), "odd": (7, 5),
    "bias": (16,), "step": (),
}  # fmt: skip


def make_state(step: int) -> State:
    params = {
        name: jnp.arange(np.prod(shape, dtype=int), dtype=jnp.float32).reshape(shape) + step
        for name, shape in SHAPES.items()
    }
    optimizer_state = optax.adamw(1e-3).init(params)
    return State(jnp.asarray(step), params, {"batch_stats": {"mean": jnp.ones(8)}}, optimizer_state)


def test_fsdp_splits_the_largest_axis_that_divides():
    mesh = make_mesh(jax.devices()[:8])
    split = shardings(make_state(0), mesh, "fsdp")
    specs = {name: at.spec for name, at in split.params.items()}
    assert specs == {
        "kernel": PartitionSpec(None, "data"), "tall": PartitionSpec("data"),
        "convolution": PartitionSpec(None, None, None, "data"),
        "odd": PartitionSpec(), "bias": PartitionSpec(), "step": PartitionSpec(),
    }  # fmt: skip
    # The moments of Adam lie where their parameters do.
    assert {name: at.spec for name, at in split.optimizer_state[0].mu.items()} == specs
    assert split.step.spec == split.extra["batch_stats"]["mean"].spec == PartitionSpec()
    placed = place(make_state(0), split)
    assert placed.params["tall"].addressable_shards[0].data.shape == (4, 8)


def test_an_unknown_word_is_an_error():
    with pytest.raises(ValueError, match="sharding.parameters is 'zero', expected one of replica"):
        shardings({}, make_mesh(), "zero")


def test_split_arrays_become_whole_and_whole_ones_stay():
    mesh = make_mesh(jax.devices()[:4])
    state = make_state(3)
    split = place(state, shardings(state, mesh, "fsdp"))
    gathered = whole(split)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(gathered))
    assert whole(gathered) is gathered
    jax.tree.map(np.testing.assert_array_equal, to_host(split), to_host(state))


def test_keys_can_be_placed():
    key = replicate(jax.random.key(3), make_mesh())
    assert key.is_fully_replicated
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(jax.random.key(3)))


@pytest.mark.parametrize(
    ("written", "read"),
    [(("fsdp", 8), ("replicate", 1)), (("replicate", 2), ("fsdp", 8)), (("fsdp", 4), ("fsdp", 8))],
)
def test_checkpoints_fit_other_devices_and_shardings(tmp_path, written, read):
    def placed(step: int, parameters: str, devices: int) -> State:
        state, mesh = make_state(step), make_mesh(jax.devices()[:devices])
        return place(state, shardings(state, mesh, parameters))

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_latest(placed(5, *written), {"best": 1.0})
    with Checkpoints(tmp_path) as checkpoints:
        found, _ = checkpoints.restore_latest(placed(0, *read))
    jax.tree.map(np.testing.assert_array_equal, to_host(found), to_host(make_state(5)))
    wanted = jax.tree.map(lambda leaf: leaf.sharding, placed(0, *read).params)
    assert jax.tree.map(lambda leaf: leaf.sharding, found.params) == wanted
    np.testing.assert_array_equal(load(tmp_path, "latest")[0]["odd"], make_state(5).params["odd"])


def clip(first, second):
    return clip_loss(first, second, temperature=0.1, cmr_weight=0.75)[0]


def simclr(first, second):
    return nt_xent(first, second, temperature=0.1)


@pytest.mark.parametrize("loss", [clip, simclr])
def test_logits_of_a_large_batch_are_split_over_the_devices(loss):
    batch, width, devices = 32_768, 128, 8
    mesh = make_mesh(jax.devices()[:devices])
    rows = NamedSharding(mesh, PartitionSpec("data"))
    projection = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=rows)
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    compiled = step.lower(projection, projection).compile()
    # Of the 4.3 GB of a whole matrix: an eighth, a few times over.
    part = 4 * batch * batch // devices
    assert part <= compiled.memory_analysis().temp_size_in_bytes < 7 * part
    text = compiled.as_text()
    assert f"f32[{batch},{batch}]" not in text
    assert f"f32[{batch // devices},{batch}]" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", pytest.param("simclr", marks=pytest.mark.nightly)])
def test_a_step_of_a_large_batch_compiles_in_bounded_memory(name):
    batch, devices = 32_768, 8
    mesh = make_mesh(jax.devices()[:devices])
    objective, views = tiny.objective(name)
    views = dataclasses.replace(views, mesh=mesh)
    example = tiny.batch(2)
    params, extra = initialise(objective, views, example, jax.random.key(0))
    recipe = Recipe(objective, views, lambda _, hyper: optax.sgd(hyper["rate"]), {"rate": 0.1})
    state = State(jnp.zeros((), jnp.int32), params, extra, optax.sgd(0.1).init(params))
    placed = shardings(state, mesh, "replicate")
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("data"))

    def shape(leaf, sharding, *leading):
        return jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype, sharding=sharding)

    arguments = (
        jax.tree.map(shape, state, placed),
        {field: shape(values[0], split, batch) for field, values in example.items()},
        shape(jax.random.key(0), everywhere),
        {"rate": shape(np.float32(0), everywhere)},
        {},
    )
    compiled = make_train_step(recipe, placed).lower(*arguments).compile()
    arrays = re.findall(r"\b[fsuc](8|16|32|64)\[([\d,]+)\]", compiled.as_text())
    shapes = [(tuple(map(int, numbers.split(","))), int(bits) // 8) for bits, numbers in arrays]
    sizes = [(shape[0], math.prod(shape) * each) for shape, each in shapes]
    # Nothing is larger than the frames of one device as float32, and of the whole batch there is
    # nothing but what the losses compare.
    frames = 4 * math.prod((batch // devices, *example["cmr"].shape[1:]))
    assert max(size for _, size in sizes) == frames
    assert max(size for rows, size in sizes if rows == batch) < frames / 50
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * frames


@pytest.mark.parametrize("loss", [clip, simclr])
def test_split_loss_and_gradient_are_those_of_one_device(loss):
    generator = np.random.default_rng(0)
    projections = [generator.standard_normal((64, 16), np.float32) for _ in range(2)]
    rows = NamedSharding(make_mesh(jax.devices()[:8]), PartitionSpec("data"))
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, gradients = step(*projections)
    split_value, split_gradients = step(*jax.device_put(projections, rows))
    assert float(split_value) == pytest.approx(float(value), rel=1e-6)
    for one, split in zip(gradients, split_gradients, strict=True):
        np.testing.assert_allclose(split, one, rtol=1e-4, atol=1e-7)


def test_rows_of_padding_alone_have_no_gradient_of_nan():
    first, second = np.random.default_rng(0).standard_normal((2, 4, 8), np.float32)
    valid = jnp.asarray([1.0, 0, 0, 0])
    gradient = jax.grad(lambda view: nt_xent(view, second, temperature=0.1, valid=valid))(first)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1:], 0)
