import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmcl_jax import optim

# PyTorch name of a module -> ours, for the paths of the golden table.
NAMES = {
    "blocks.": "block_",
    "patch_embed.proj": "patch_embed",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.proj",
    "in_proj_": "in_proj.",
}


def parameters(seed=0):
    generator = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(generator.standard_normal(shape), jnp.float32)

    def block():
        return {
            "norm1": {"scale": draw(4), "bias": draw(4)},
            "attention": {"qkv": {"kernel": draw(4, 12), "bias": draw(12)}},
        }

    return {
        "ecg_encoder": {
            "cls_token": draw(1, 1, 4),
            "pos_embed": draw(1, 3, 4),
            "patch_embed": {"kernel": draw(5, 4), "bias": draw(4)},
            "block_0": block(),
            "block_1": block(),
            "fc_norm": {"scale": draw(4), "bias": draw(4)},
        },
        "head": {"kernel": draw(4, 2), "bias": draw(2)},
    }


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def run(transformation, params, steps):
    """Parameters after some steps with fixed gradients, and those gradients."""
    gradients = [parameters(seed=10 + step) for step in range(steps)]
    state = transformation.init(params)
    update = jax.jit(transformation.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return flat(params), [flat(gradient) for gradient in gradients], state


def slow_adam(value, gradients, rates, *, b1, b2, eps, decoupled=0.0, coupled=0.0):
    """Adam of PyTorch on one parameter, in float64."""
    value = np.asarray(value, np.float64)
    first = second = np.zeros_like(value)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        gradient = np.asarray(gradient, np.float64) + coupled * value
        value = value * (1 - rate * decoupled)
        first = b1 * first + (1 - b1) * gradient
        second = b2 * second + (1 - b2) * gradient**2
        root = np.sqrt(second) / np.sqrt(1 - b2**step) + eps
        value = value - rate / (1 - b1**step) * first / root
    return value


def test_cosine_reproduces_the_golden_numbers(golden):
    with np.load(golden / "learning_rate.npz") as numbers:
        per_epoch = int(numbers["steps_per_epoch"])
        rate = optim.schedule(
            base=float(numbers["peak"]),
            steps=per_epoch * int(numbers["epochs"]),
            warmup=per_epoch * int(numbers["warmup_epochs"]),
        )
        ours = jax.jit(jax.vmap(rate))(jnp.asarray(numbers["steps"]))
        np.testing.assert_allclose(ours, numbers["learning_rate"], rtol=2e-6)


def test_cosine_without_warm_up_begins_at_the_top_and_stays_at_zero_after_the_end():
    rate = optim.schedule(base=2.0, steps=10, warmup=0)
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(15)], [2, 1, 0, 0], atol=1e-7)


def test_cosine_per_epoch_follows_the_published_contrastive_stage():
    rate = optim.schedule(
        "cosine_per_epoch", base=1.0, steps=300 * 110, warmup=30 * 110, steps_per_epoch=110
    )
    epochs = np.array([0, 1, 28, 29, 30, 165, 299])
    expected = [0, 1 / 29, 28 / 29, 1, 1, 0.5, 0.5 * (1 + np.cos(np.pi * 269 / 270))]
    for within in (0, 109):
        ours = jax.jit(jax.vmap(rate))(jnp.asarray(epochs * 110 + within))
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_cosine_per_epoch_with_an_unfinished_epoch_stays_positive_to_the_last_step():
    rate = optim.schedule("cosine_per_epoch", base=1.0, steps=25, warmup=4, steps_per_epoch=10)
    np.testing.assert_allclose(
        [rate(0), rate(9), rate(10), rate(24)], [1, 1, 0.75, 0.25], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "step"}, "unknown name 'step'"),
        ({"warmup": 10}, "less than steps=10, got 10"),
        ({"name": "cosine_per_epoch"}, "needs steps_per_epoch"),
    ],
)
def test_schedules_that_cannot_be_made_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.schedule(**{"base": 1.0, "steps": 10, "warmup": 1, **settings})


def test_rate_scales_with_the_batch():
    assert optim.scaled_rate(1e-5, 128) == pytest.approx(3.2e-4)
    assert optim.scaled_rate(3e-6, 8) == pytest.approx(6e-6)


def test_layer_factors_and_decay_reproduce_the_golden_table(golden):
    table = json.loads((golden / "layer_decay.json").read_text())
    expected, params = {}, {}
    for key, values in table["parameters"].items():
        for theirs, ours in NAMES.items():
            key = key.replace(theirs, ours)
        *modules, last = key.split(".")
        matrix = last == "weight" and not modules[-1].startswith(("norm", "fc_norm"))
        leaf = {"weight": "kernel" if matrix else "scale"}.get(last, last)
        node = params
        for module in modules:
            node = node.setdefault(module, {})
        # Zero gradients leave the decay alone: the update is -factor * decay * 1.
        node[leaf] = jnp.ones((1, 2, 2) if not modules else (2, 2) if matrix else (2,))
        expected["/".join([*modules, leaf])] = values
    transformation = optim.optimizer(
        params,
        schedule=lambda step: 1.0,
        weight_decay=table["weight_decay"],
        decay_exclude=("pos_embed$", "cls_token$"),
        layer_decay=table["layer_decay"],
        depth=3,
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(transformation.update)(zeros, transformation.init(params), params)
    factors = optim.layer_factors(params, table["layer_decay"], 3)
    assert len(flat(updates)) == len(table["parameters"]) == 48
    for path, update in flat(updates).items():
        assert factors[path] == pytest.approx(expected[path]["lr_scale"], rel=1e-6)
        product = expected[path]["lr_scale"] * expected[path]["weight_decay"]
        np.testing.assert_allclose(update, -product, rtol=1e-6)


def test_adamw_agrees_with_the_formula_where_parameters_are_treated_differently():
    params = parameters()
    schedule = optim.schedule(base=0.1, steps=8, warmup=3)
    transformation = optim.optimizer(
        params,
        schedule=schedule,
        weight_decay=0.3,
        b1=0.9,
        b2=0.95,
        decay_exclude=("pos_embed",),
        layer_decay=0.5,
        depth=2,
    )
    ours, gradients, _ = run(transformation, params, 6)
    rates = np.array([float(schedule(step)) for step in range(6)])
    for path, factor, decay in [
        ("ecg_encoder/cls_token", 0.125, 0.3),
        ("ecg_encoder/pos_embed", 0.125, 0),
        ("ecg_encoder/patch_embed/kernel", 0.125, 0.3),
        ("ecg_encoder/block_0/attention/qkv/kernel", 0.25, 0.3),
        ("ecg_encoder/block_1/attention/qkv/bias", 0.5, 0),
        ("ecg_encoder/block_1/norm1/scale", 0.5, 0),
        ("ecg_encoder/fc_norm/scale", 1, 0),
        ("head/kernel", 1, 0.3),
    ]:
        expected = slow_adam(
            flat(params)[path],
            [gradient[path] for gradient in gradients],
            rates * factor,
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            decoupled=decay,
        )
        np.testing.assert_allclose(ours[path], expected, rtol=1e-4, atol=1e-6, err_msg=path)


def test_adam_with_l2_decays_every_parameter_through_the_moments():
    params = parameters()
    transformation = optim.optimizer(
        params, name="adam_l2", schedule=lambda step: 0.05, weight_decay=0.5, eps=1e-4
    )
    ours, gradients, _ = run(transformation, params, 5)
    for path, value in flat(params).items():
        expected = slow_adam(
            value,
            [gradient[path] for gradient in gradients],
            [0.05] * 5,
            b1=0.9,
            b2=0.999,
            eps=1e-4,
            coupled=0.5,
        )
        np.testing.assert_allclose(ours[path], expected, rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", ["adamw", "adam_l2"])
def test_frozen_parameters_do_not_move_and_have_no_state(name):
    params = parameters()
    frozen = ("^ecg_encoder/(cls_token|pos_embed)", "fc_norm")
    settings = {"schedule": lambda step: 0.1, "weight_decay": 0.1, "name": name}
    after, _, state = run(optim.optimizer(params, frozen=frozen, **settings), params, 2)
    free, _, everything = run(optim.optimizer(params, **settings), params, 2)
    still = {path for path, value in flat(params).items() if (after[path] == value).all()}
    assert still == {
        "ecg_encoder/cls_token",
        "ecg_encoder/pos_embed",
        "ecg_encoder/fc_norm/scale",
        "ecg_encoder/fc_norm/bias",
    }
    for path in set(after) - still:
        np.testing.assert_array_equal(after[path], free[path])
    # Two moments for each of the frozen leaves.
    assert len(jax.tree.leaves(everything)) - len(jax.tree.leaves(state)) == 2 * len(still)


def test_clipping_bounds_the_norm_of_what_is_trained():
    params = parameters()
    settings = {"schedule": lambda step: 1.0, "weight_decay": 0.0, "frozen": ("head",), "eps": 1e3}
    gradient = parameters(1)
    norm = optax.tree.norm(gradient["ecg_encoder"])
    # With a large eps the first update of Adam is the gradient itself, divided by eps.
    for clip, expected in [(None, norm), (0.5, 0.5)]:
        transformation = optim.optimizer(params, clip=clip, **settings)
        update = jax.jit(transformation.update)
        updates, _ = update(gradient, transformation.init(params), params)
        np.testing.assert_allclose(optax.tree.norm(updates) * 1e3, expected, rtol=0.01)


def test_shapes_are_enough_to_build_the_optimiser():
    params = parameters()
    settings = {"schedule": lambda step: 0.1, "weight_decay": 0.1, "layer_decay": 0.5, "depth": 2}
    from_shapes = optim.optimizer(jax.eval_shape(parameters), **settings)
    first, _, _ = run(from_shapes, params, 2)
    second, _, _ = run(optim.optimizer(params, **settings), params, 2)
    for path, value in first.items():
        np.testing.assert_array_equal(value, second[path])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "sgd"}, "unknown name 'sgd'"),
        ({"frozen": ("cmr_encoder",)}, "frozen pattern 'cmr_encoder' matches none.*ecg_encoder/"),
        ({"decay_exclude": ("postion",)}, "decay_exclude pattern 'postion' matches none"),
        ({"frozen": "head"}, "frozen must be a list"),
        ({"layer_decay": 0.5}, "depth is None"),
        ({"layer_decay": 0.5, "depth": 3}, r"depth is 3.*blocks \[0, 1\]"),
    ],
)
def test_settings_that_do_not_fit_the_parameters_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.optimizer(
            parameters(), **{"schedule": lambda step: 0.1, "weight_decay": 0.1, **settings}
        )
