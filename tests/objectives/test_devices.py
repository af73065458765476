"""Loss and gradients do not depend on the number of devices: every loss is of the global batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mmcl_jax.recipe import Recipe
from mmcl_jax.sharding import make_mesh, replicate, shard_batch
from mmcl_jax.state import State, initialise, make_train_step

# Plain gradient descent of rate 1: the step is the gradient. (Adam would divide by it.)
RATE = 1.0


def one_step(name: str, devices: int):
    objective, views = tiny.objective(name)
    rows = tiny.batch(8)
    mesh = make_mesh(jax.devices()[:devices])
    views = views.__class__(views.ecg, views.cmr, views.count, mesh=mesh)
    params, extra = initialise(objective, views, rows, jax.random.key(0))
    optimizer = optax.sgd(RATE)
    state = State(jnp.zeros((), jnp.int32), params, extra, optimizer.init(params))
    before = jax.device_get(params)
    step = make_train_step(Recipe(objective, views, lambda params, hyper: optimizer))
    key = replicate(jax.random.key(1), mesh)
    state, metrics = step(replicate(state, mesh), shard_batch(rows, mesh), key, {}, {})
    gradient = jax.tree.map(lambda old, new: old - np.asarray(new), before, state.params)
    return float(metrics["loss"]), gradient, jax.device_get(state.extra)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_one_and_eight_devices_agree(name):
    assert jax.device_count() >= 8
    loss1, gradient1, extra1 = one_step(name, 1)
    loss8, gradient8, extra8 = one_step(name, 8)
    assert loss8 == pytest.approx(loss1, rel=1e-5)
    scale = float(optax.tree.norm(gradient1))
    assert scale > 0
    difference = jax.tree.map(np.subtract, gradient1, gradient8)
    assert float(optax.tree.norm(difference)) < 1e-4 * scale
    for one, eight in zip(jax.tree.leaves(extra1), jax.tree.leaves(extra8), strict=True):
        np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-5)
