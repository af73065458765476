"""bfloat16 trains as float32 does: only the computation between parameters and loss is rounded."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mmcl_jax import models
from mmcl_jax.recipe import Recipe
from mmcl_jax.state import State, initialise, make_train_step

STEPS = 30


def test_loss_curves_agree():
    single, half = (losses("masked_modelling", dtype) for dtype in ("float32", "bfloat16"))
    assert single[-5:].mean() < 0.98 * single[:5].mean()
    # From one step to the next, the float32 curve itself moves by more than this.
    noise = np.abs(np.diff(single)).mean()
    assert np.abs(single - half).mean() < noise
    assert half[-5:].mean() == pytest.approx(single[-5:].mean(), rel=0.02)


def losses(name, dtype):
    objective, views = tiny.objective(name)
    towers = {
        tower: getattr(objective, tower).clone(dtype=dtype) for tower in ("ecg_encoder", "decoder")
    }
    recipe = Recipe(objective.clone(**towers), views, lambda params, hyper: optax.adam(1e-3))
    params, extra = initialise(recipe.objective, views, tiny.batch(2), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    optimizer_state = recipe.optimizer(params, {}).init(params)
    state = State(jnp.zeros((), jnp.int32), params, extra, optimizer_state)
    step, found = make_train_step(recipe), []
    for seed in range(STEPS):
        batch = tiny.batch(8, seed % 3)
        state, metrics = step(state, batch, jax.random.key(1), {}, {})
        found.append(metrics["loss"])
    return np.asarray(jax.device_get(found), np.float64)


@pytest.mark.parametrize(
    ("backend", "version", "capability", "expected"),
    [
        ("cpu", "", "", "float32"),
        ("tpu", "", "", "bfloat16"),
        ("gpu", "PJRT CUDA 12.9", "8.6", "bfloat16"),
        ("gpu", "PJRT CUDA 12.9", "7.5", "float32"),
        ("gpu", "ROCm 6", "gfx90a", "float32"),
    ],
)
def test_automatic_dtype(monkeypatch, backend, version, capability, expected):
    client = types.SimpleNamespace(platform_version=version)
    device = types.SimpleNamespace(client=client, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert models.build({"name": "vit", "dtype": "auto"}).dtype == expected
    assert models.build({"name": "vit", "dtype": "float32"}).dtype == "float32"
