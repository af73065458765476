import functools

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import relative_error

from mmcl_jax.models import head, vit

TINY = {"width": 16, "depth": 2, "heads": 2, "leads": 2, "samples": 20, "patch": (1, 5)}


@pytest.fixture(scope="module")
def published(golden):
    """Seeded weights of the published architecture, recordings, and what PyTorch makes of them."""
    state = golden_weights.state_dict(golden, "signal_encoder_attention_pool")
    expected = dict(np.load(golden / "signal_encoder.npz"))
    draw = np.random.default_rng(int(expected["input_seed"]))
    ecg = draw.standard_normal((2, 12, 2500)).astype(np.float32)
    return golden_weights.vit(state), ecg, expected


@pytest.mark.parametrize("pool", ["global", "attention"])
def test_features_and_logits_are_the_published_ones(published, pool):
    weights, ecg, expected = published
    params = dict(weights["ecg_encoder"])
    if pool == "global":
        del params["attention_pool"]
    outputs = jax.jit(vit.Model(pool=pool).apply)({"params": params}, ecg)
    logits = head.Model(2).apply({"params": weights["head"]}, outputs["features"])
    assert relative_error(outputs["features"], expected[f"{pool}_pool_features"]) <= 1e-5
    assert relative_error(logits, expected[f"{pool}_pool_logits"]) <= 1e-5
    assert relative_error(outputs["tokens"][:, 1:], expected["mmcl_patch_tokens"]) <= 1e-5
    if pool == "global":
        assert relative_error(outputs["features"], expected["mmcl_global_pool_features"]) <= 1e-5


# 12 D^2 + 13 D for each block, 104 D for the rest, position embedding left out; the published
# count of "tiny" is 5 363 328.
@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("tiny", 5_363_328),
        ("tiny_deep", 5_358_336),
        ("small", 12_662_784),
        ("small_deep", 21_333_504),
    ],
)
def test_sizes_have_their_parameter_counts(size, count):
    params = _shapes(vit.Model(pool="none", **vit.SIZES[size]._asdict()))
    del params["pos_embed"]
    assert _count(params) == count
    assert len(vit.SIZES) == 4


def test_attention_pool_has_its_parameter_count():
    params = _shapes(vit.Model(pool="attention"))
    assert _count(params["attention_pool"]) == 591_360
    # What a third party's log reports for fine-tuning, less the head (770).
    del params["fc_norm"]
    assert _count(params) == 5_363_328 - 768 + 591_360 + 301 * 384


@pytest.mark.parametrize(
    ("pool", "modules"),
    [
        ("none", {"norm"}),
        ("cls", {"norm"}),
        ("global", {"fc_norm"}),
        ("attention", {"fc_norm", "attention_pool"}),
    ],
)
def test_parameter_names(pool, modules):
    shapes = _shapes(vit.Model(**TINY, pool=pool))
    common = {"cls_token", "pos_embed", "patch_embed", "block_0", "block_1"}
    assert set(shapes) == common | modules
    assert set(shapes["block_0"]) == {"norm1", "attention", "norm2", "mlp"}
    assert shapes["block_0"]["attention"]["qkv"]["kernel"].shape == (16, 48)
    assert shapes["patch_embed"]["kernel"].shape == (5, 16)


def test_patches_are_lead_major():
    ecg = jnp.arange(2 * 4 * 6, dtype=jnp.float32).reshape(2, 4, 6)
    single = vit.patchify(ecg, (1, 3))
    np.testing.assert_array_equal(single[0, 3], ecg[0, 1, 3:])  # lead 1, second column
    double = vit.patchify(ecg, (2, 3))
    np.testing.assert_array_equal(double[1, 2], ecg[1, 2:, :3].ravel())


def test_patches_must_fill_the_recording():
    with pytest.raises(ValueError, match="whole number of patches"):
        vit.patchify(jnp.zeros((1, 2, 10)), (1, 4))


def test_visible_patches_keep_their_places():
    model, variables, ecg = _tiny(pool="none")
    order = np.stack([np.random.default_rng(i).permutation(8) for i in range(3)])
    everything = _apply(model, variables, ecg)["latent"]
    shuffled = _apply(model, variables, ecg, visible=order)["latent"]
    expected = np.take_along_axis(np.asarray(everything[:, 1:]), order[:, :, None], axis=1)
    np.testing.assert_allclose(shuffled[:, 1:], expected, atol=1e-5)
    np.testing.assert_allclose(shuffled[:, 0], everything[:, 0], atol=1e-5)


def test_hidden_patches_are_not_read():
    model, variables, ecg = _tiny(pool="none")
    visible = np.tile([0, 5], (3, 1))
    outputs = _apply(model, variables, ecg, visible=visible)
    assert outputs["latent"].shape == (3, 3, 16)
    # Patch 5 is the second of lead 1: samples 5 to 10. Everything else may change.
    changed = np.full((3, 2, 20), 7.0, np.float32)
    changed[:, 0, :5] = ecg[:, 0, :5]
    changed[:, 1, 5:10] = ecg[:, 1, 5:10]
    again = _apply(model, variables, changed, visible=visible)
    np.testing.assert_array_equal(again["latent"], outputs["latent"])


def test_fc_norm_twice_normalises_the_normalised():
    once, variables, ecg = _tiny(pool="global")
    scale = variables["params"]["fc_norm"]["scale"]
    variables["params"]["fc_norm"] = {"scale": 2 * scale, "bias": 3 * scale}
    twice = _apply(vit.Model(**TINY, fc_norm_twice=True), variables, ecg)["features"]
    features = np.asarray(_apply(once, variables, ecg)["features"])
    centred = features - features.mean(axis=1, keepdims=True)
    normal = centred / np.sqrt(features.var(axis=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(twice, 2 * normal + 3, atol=1e-4)


def test_cls_pool_is_the_norm_of_the_first_token():
    model, variables, ecg = _tiny(pool="cls")
    latent = _apply(vit.Model(**TINY, pool="none"), variables, ecg)["latent"]
    np.testing.assert_allclose(_apply(model, variables, ecg)["features"], latent[:, 0], atol=1e-6)


def test_drop_path_drops_whole_examples_in_training_only():
    block = vit.Block(heads=2, drop_path=0.5)
    tokens = np.random.default_rng(0).normal(size=(64, 3, 8)).astype(np.float32)
    variables = jax.jit(block.init)(jax.random.key(1), tokens)
    rngs = {"drop_path": jax.random.key(2)}
    kept = _apply(block, variables, tokens)
    np.testing.assert_array_equal(kept, _apply(block, variables, tokens, rngs=rngs))
    dropped = _apply(block, variables, tokens, train=True, rngs=rngs)
    untouched = (np.asarray(dropped) == np.asarray(tokens)).all(axis=(1, 2)).mean()
    assert 0.1 < untouched < 0.4  # both branches dropped: 1/4
    changed = np.abs(np.asarray(dropped) - np.asarray(kept)).max(axis=(1, 2))
    assert (changed > 1e-3).all()  # a kept branch counts double


def test_drop_path_rises_with_depth_and_the_mean_stays():
    model, variables, ecg = _tiny(pool="global", drop_path=0.9)
    ecg = np.tile(ecg[:1], (512, 1, 1))
    rngs = {"drop_path": jax.random.key(3)}
    first = _tokens_after_first_block(model, variables, ecg, train=True, rngs=rngs)
    np.testing.assert_array_equal(first, _tokens_after_first_block(model, variables, ecg))
    last = _apply(model, variables, ecg, train=True, rngs=rngs)["tokens"]
    unchanged = (np.asarray(last) == np.asarray(first)).all(axis=(1, 2)).mean()
    assert abs(unchanged - 0.81) < 0.06


def test_bfloat16_computes_close_and_keeps_float32_parameters():
    model, variables, ecg = _tiny(pool="attention")
    half = vit.Model(**TINY, pool="attention", dtype="bfloat16")
    params = jax.eval_shape(half.init, jax.random.key(0), ecg)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    outputs = _apply(half, variables, ecg)
    assert outputs["tokens"].dtype == jnp.bfloat16
    assert outputs["features"].dtype == jnp.float32
    assert relative_error(outputs["features"], _apply(model, variables, ecg)["features"]) < 0.03


def test_initial_values_with_sincos_positions():
    params = _initial_full(vit.Model(depth=1, pool="attention"))
    _assert_uniform(params["block_0"]["attention"]["qkv"]["kernel"], (6 / (384 + 1152)) ** 0.5)
    _assert_uniform(params["patch_embed"]["kernel"], (6 / 484) ** 0.5)
    _assert_uniform(params["patch_embed"]["bias"], 0.1, tolerance=0.1)
    _assert_uniform(params["attention_pool"]["in_proj"]["kernel"], (6 / (384 + 1152)) ** 0.5)
    _assert_uniform(params["attention_pool"]["out_proj"]["kernel"], 384**-0.5)
    assert abs(params["cls_token"].std() - 0.02) < 0.003
    assert not params["block_0"]["mlp"]["fc1"]["bias"].any()
    assert not params["pos_embed"][0, 0].any()


def test_initial_values_with_learned_positions():
    params = _initial_full(vit.Model(depth=1, positions="learned"))
    for leaf in (params["pos_embed"], params["block_0"]["mlp"]["fc2"]["kernel"]):
        assert abs(leaf.std() - 0.02) < 1e-3
    _assert_uniform(params["patch_embed"]["kernel"], 0.1)
    assert abs(params["cls_token"]).max() < 1e-5


def test_another_parameter_does_not_change_the_initial_values_of_the_rest():
    _, with_pool, _ = _tiny(pool="attention")
    _, without, _ = _tiny(pool="global")
    np.testing.assert_array_equal(
        with_pool["params"]["block_1"]["mlp"]["fc1"]["kernel"],
        without["params"]["block_1"]["mlp"]["fc1"]["kernel"],
    )


def test_wrong_inputs_are_named():
    ecg = jnp.zeros((1, 2, 20))
    with pytest.raises(ValueError, match=r"\(3, 20\).*\(2, 20\)"):
        vit.Model(**TINY).init(jax.random.key(0), jnp.zeros((1, 3, 20)))
    with pytest.raises(ValueError, match=r"pool is 'max'.*attention"):
        vit.Model(**TINY, pool="max").init(jax.random.key(0), ecg)
    with pytest.raises(ValueError, match=r"positions is 'rotary'"):
        vit.Model(**TINY, positions="rotary").init(jax.random.key(0), ecg)


def _initial_full(model):
    ecg = jnp.zeros((1, 12, 2500))
    variables = jax.jit(model.init)(jax.random.key(0), ecg)
    return jax.tree.map(np.asarray, variables["params"])


@functools.cache
def _initial(pool):
    ecg = jnp.zeros((1, 2, 20))
    return jax.jit(vit.Model(**TINY, pool=pool).init)(jax.random.key(0), ecg)


def _tiny(pool, **fields):
    ecg = np.random.default_rng(5).normal(size=(3, 2, 20)).astype(np.float32)
    variables = jax.tree.map(np.array, _initial(pool))  # a test may change its copy
    return vit.Model(**TINY, pool=pool, **fields), variables, ecg


def _apply(model, variables, ecg, **kwargs):
    return jax.jit(functools.partial(model.apply, **kwargs))(variables, ecg)


def _tokens_after_first_block(model, variables, ecg, **kwargs):
    blocks = lambda module, _: module.name == "block_0"  # noqa: E731
    capture = {"capture_intermediates": blocks, "mutable": ["intermediates"]}
    _, state = _apply(model, variables, ecg, **kwargs, **capture)
    return state["intermediates"]["block_0"]["__call__"][0]


def _shapes(model):
    ecg = jax.ShapeDtypeStruct((1, model.leads, model.samples), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), ecg)["params"]


def _count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _assert_uniform(array, bound, tolerance=0.02):
    assert abs(array).max() <= bound
    assert abs(array.std() / (bound / 3**0.5) - 1) < tolerance
