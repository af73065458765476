import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mmcl_jax.objectives.byol import byol_loss, online_share
from mmcl_jax.recipe import Recipe
from mmcl_jax.state import State, initialise, make_eval_step, train_step

pytestmark = pytest.mark.usefixtures("compiled_quickly")

STEPS = 3


@pytest.fixture(scope="module")
def numbers(golden):
    return np.load(golden / "unimodal_losses.npz")


def test_golden_loss_of_one_direction(numbers):
    loss = byol_loss(numbers["view1"], numbers["view2"])
    assert float(loss) == pytest.approx(numbers["byol_one_direction"].item(), rel=1e-6)


def test_loss_is_of_directions_and_of_valid_rows(numbers):
    view1, view2 = numbers["view1"], numbers["view2"]
    assert float(byol_loss(view1, 5 * view1)) == pytest.approx(-2, rel=1e-6)
    assert float(byol_loss(view1, -view1)) == pytest.approx(2, rel=1e-6)
    valid = (np.arange(16) < 9).astype(np.float32)
    whole = float(byol_loss(view1[:9], view2[:9]))
    assert float(byol_loss(view1, view2, valid)) == pytest.approx(whole, rel=1e-6)


def test_no_gradient_flows_into_the_target(numbers):
    view1, view2 = numbers["view1"], numbers["view2"]
    to_prediction, to_target = jax.grad(byol_loss, argnums=(0, 1))(view1, view2)
    assert np.abs(to_prediction).max() > 0
    np.testing.assert_array_equal(to_target, 0)


def test_tau_rises_to_one_by_a_cosine():
    updates = np.arange(0, 101)
    tau = 1 - np.array([float(online_share(k, tau=0.9996, updates=100)) for k in updates])
    expected = 1 - (1 - 0.9996) * (np.cos(np.pi * updates / 100) + 1) / 2
    np.testing.assert_allclose(tau, expected, atol=1e-7)
    assert tau[0] == pytest.approx(0.9996, abs=1e-8)
    assert tau[100] == 1


@pytest.fixture(scope="module")
def recipe():
    objective, views = tiny.objective("byol", tau=0.9, total_steps=STEPS)
    return Recipe(objective, views, lambda params, hyper: optax.sgd(0.1))


@pytest.fixture(scope="module")
def states(recipe):
    """The state before each of a few steps and after the last."""
    rows = tiny.batch(8)
    params, extra = initialise(recipe.objective, recipe.views, rows, jax.random.key(0))
    # Of another initialisation, as after a tower was taken over.
    params["ecg_encoder"]["cls_token"] += 1.0
    extra = recipe.objective.update_extra(params, extra)
    state = State(jnp.zeros((), jnp.int32), params, extra, optax.sgd(0.1).init(params))
    step, found = jax.jit(train_step(recipe)), [state]
    for _ in range(STEPS):
        found.append(step(found[-1], rows, jax.random.key(1), {}, {})[0])
    return found


def test_target_starts_as_a_copy_of_what_the_stage_starts_from(states):
    network = states[0].extra["target"]["network"]
    for tower in ("ecg_encoder", "ecg_projector"):
        jax.tree.map(
            np.testing.assert_array_equal, network["params"][tower], states[0].params[tower]
        )
    assert set(network["params"]) == {"ecg_encoder", "ecg_projector"}
    assert set(network["batch_stats"]) == {"ecg_projector"}


def test_parameters_of_the_target_follow_the_online_network(states):
    for k, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        tau = 1 - (1 - 0.9) * (np.cos(np.pi * k / STEPS) + 1) / 2
        old, new = (state.extra["target"]["network"]["params"] for state in (before, after))
        for tower in old:
            expected = jax.tree.map(
                lambda slow, fast, tau=tau: tau * np.asarray(slow) + (1 - tau) * np.asarray(fast),
                old[tower],
                after.params[tower],
            )
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                new[tower],
                expected,
            )
        assert not np.array_equal(old["ecg_encoder"]["pos_embed"], new["ecg_encoder"]["pos_embed"])


def test_batch_statistics_of_the_target_are_its_own(states):
    online = states[-1].extra["batch_stats"]["ecg_projector"]["norm"]
    target = states[-1].extra["target"]["network"]["batch_stats"]["ecg_projector"]["norm"]
    assert np.abs(target["mean"]).max() > 0
    assert not np.array_equal(online["mean"], target["mean"])


def test_evaluation_leaves_the_target_and_needs_no_draws(recipe, states):
    evaluate = make_eval_step(recipe.objective, recipe.views)
    metrics, outputs = evaluate(states[-1].params, states[-1].extra, tiny.batch(8), {})
    assert -4 <= float(metrics["loss"]) <= 4
    assert outputs["projection"].shape == (8, 8)
    assert recipe.objective.summarise(outputs, {})["spread"] > 0


def test_parts_of_a_batch_move_target_statistics_in_turn(recipe, states):
    halves = jax.jit(train_step(dataclasses.replace(recipe, accumulate=2)))
    after, metrics = halves(states[0], tiny.batch(8), jax.random.key(1), {}, {})
    assert int(after.extra["target"]["updates"]) == 2
    assert np.isfinite(metrics["loss"])


def test_it_takes_one_modality():
    objective, _ = tiny.objective("byol")
    both = objective.clone(cmr_encoder=objective.ecg_encoder)
    with pytest.raises(ValueError, match="byol takes exactly one of ecg_encoder and cmr_encoder"):
        both.init(jax.random.key(0), tiny.batch(2), train=True)
