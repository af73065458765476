import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mmcl_jax.recipe import Recipe
from mmcl_jax.state import State, initialise, train_step

ROWS = 8


def sgd(params, hyper):
    """The step of rate 1 is the gradient."""
    return optax.sgd(1.0)


def gradient(recipe, rows, resident=None):
    params, extra = initialise(recipe.objective, recipe.views, rows, jax.random.key(0))
    state = State(jnp.zeros((), jnp.int32), params, extra, optax.sgd(1.0).init(params))
    hyper = {name: np.float32(value) for name, value in recipe.hyper.items()}
    step = jax.jit(train_step(recipe))
    after, metrics = step(state, rows, jax.random.key(1), hyper, resident or {})
    return jax.tree.map(np.subtract, params, after.params), metrics


def assert_close(one, other, tolerance=1e-5):
    difference = optax.tree.norm(jax.tree.map(np.subtract, one, other))
    assert float(optax.tree.norm(one)) > 0
    assert float(difference) < tolerance * float(optax.tree.norm(one))


@pytest.fixture(scope="module")
def rows():
    rows = tiny.batch(ROWS)
    rows["valid"][-3:] = 0
    rows["label_valid"][1] = 0
    return rows


@pytest.fixture(scope="module")
def supervised(rows):
    objective, views = tiny.objective("supervised", label_smoothing=0.1)
    recipe = Recipe(objective, views, sgd)
    return recipe, *gradient(recipe, rows)


def test_parts_of_a_batch_add_up_to_the_batch(supervised, rows):
    # Missing labels and padding are not spread evenly over the parts.
    recipe, whole, metrics = supervised
    parts, in_parts = gradient(dataclasses.replace(recipe, accumulate=4), rows)
    assert_close(whole, parts)
    assert float(in_parts["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)


def test_contrastive_losses_cannot_be_computed_in_parts(rows):
    recipe = Recipe(*tiny.objective("clip"), sgd, accumulate=2)
    with pytest.raises(ValueError, match="accumulate is 2, but the loss compares the records"):
        gradient(recipe, rows)


def test_label_smoothing_as_an_argument(supervised, rows):
    recipe, fixed, _ = supervised
    objective = recipe.objective.clone(label_smoothing=0.0)
    other = dataclasses.replace(recipe, objective=objective)
    argument = dataclasses.replace(other, hyper={"label_smoothing": 0.1})
    assert_close(fixed, gradient(argument, rows)[0])
    with pytest.raises(AssertionError):
        assert_close(fixed, gradient(other, rows)[0])


def test_drop_path_as_an_argument(rows):
    objective, views = tiny.objective("supervised")
    deeper = objective.ecg_encoder.clone(depth=3, drop_path=0.5)
    fixed = Recipe(objective.clone(ecg_encoder=deeper), views, sgd)
    start = objective.clone(ecg_encoder=deeper.clone(drop_path=0.1))
    argument = Recipe(start, views, sgd, hyper={"drop_path": 0.5})
    assert_close(gradient(fixed, rows)[0], gradient(argument, rows)[0])


def test_frozen_parameters_get_no_gradient(supervised, rows):
    recipe, whole, metrics = supervised
    held, held_metrics = gradient(dataclasses.replace(recipe, frozen=("/pos_embed$",)), rows)
    assert np.any(whole["ecg_encoder"]["pos_embed"])
    assert not np.any(held["ecg_encoder"]["pos_embed"])
    assert float(held_metrics["gradient_norm"]) < float(metrics["gradient_norm"])


def test_recordings_on_the_device_are_found_by_their_row(supervised, rows):
    recipe, whole, _ = supervised
    order = np.random.default_rng(1).permutation(ROWS)
    kept = {"ecg": rows["ecg"][order], "place": np.argsort(order).astype(np.int32)}
    batch = {name: values for name, values in rows.items() if name != "ecg"}
    params, extra = initialise(recipe.objective, recipe.views, rows, jax.random.key(0))
    state = State(jnp.zeros((), jnp.int32), params, extra, optax.sgd(1.0).init(params))
    after, _ = jax.jit(train_step(recipe))(state, batch, jax.random.key(1), {}, kept)
    assert_close(whole, jax.tree.map(np.subtract, params, after.params), 1e-7)
