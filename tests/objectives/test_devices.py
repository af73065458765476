"""Loss and gradients do not depend on the number of devices: every loss is of the global batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mmcl_jax.recipe import Recipe
from mmcl_jax.sharding import make_mesh, replicate, shard_batch
from mmcl_jax.state import State, initialise, make_train_step

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# Plain gradient descent: the step is the gradient. (Adam would divide by it.)
RATE = 0.1


def few_steps(name: str, devices: int):
    """Loss, parameters and extra before and after each of three steps."""
    objective, views = tiny.objective(name)
    rows = tiny.batch(8)
    mesh = make_mesh(jax.devices()[:devices])
    views = dataclasses.replace(views, mesh=mesh)
    params, extra = initialise(objective, views, rows, jax.random.key(0))
    extra = objective.update_extra(params, extra)
    optimizer = optax.sgd(RATE)
    state = State(jnp.zeros((), jnp.int32), params, extra, optimizer.init(params))
    step = make_train_step(Recipe(objective, views, lambda params, hyper: optimizer))
    state, batch = replicate(state, mesh), shard_batch(rows, mesh)
    key = replicate(jax.random.key(1), mesh)
    found = [(0.0, jax.device_get(state.params), None)]
    for _ in range(3):
        state, metrics = step(state, batch, key, {}, {})
        found.append((float(metrics["loss"]), *jax.device_get((state.params, state.extra))))
    return found


def assert_close(one, other, *, rtol, atol):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_one_and_eight_devices_agree(name):
    assert jax.device_count() >= 8
    one, eight = few_steps(name, 1), few_steps(name, 8)
    assert eight[1][0] == pytest.approx(one[1][0], rel=1e-5)
    gradient1, gradient8 = (
        jax.tree.map(np.subtract, found[0][1], found[1][1]) for found in (one, eight)
    )
    scale = float(optax.tree.norm(gradient1))
    assert scale > 0
    difference = jax.tree.map(np.subtract, gradient1, gradient8)
    assert float(optax.tree.norm(difference)) < 1e-4 * scale
    assert_close(one[1][2], eight[1][2], rtol=1e-4, atol=1e-5)
    # Rounding grows from step to step; what is computed per device would be far off.
    assert eight[3][0] == pytest.approx(one[3][0], rel=1e-3)
    assert_close(one[3][2], eight[3][2], rtol=1e-2, atol=1e-3)
