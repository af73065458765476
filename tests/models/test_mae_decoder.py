import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import relative_error

from mmcl_jax.models import mae_decoder, vit

PATCH = (1, 100)


@pytest.fixture(scope="module")
def published(golden):
    """Seeded masked autoencoder, recordings, masks, and what PyTorch makes of them."""
    params = golden_weights.mae(golden_weights.state_dict(golden, "masked_autoencoder"))
    expected = dict(np.load(golden / "masked_autoencoder.npz"))
    draw = np.random.default_rng(int(expected["input_seed"]))
    ecg = draw.standard_normal((2, 12, 2500)).astype(np.float32)
    noise = np.random.default_rng(int(expected["noise_seed"])).random((2, 300)).astype(np.float32)
    shuffle = np.argsort(noise, axis=1, kind="stable")
    restore = np.argsort(shuffle, axis=1, kind="stable")
    visible = shuffle[:, :59]
    outputs = jax.jit(_autoencode)(params, ecg, visible, restore)
    return params, ecg, visible, restore, outputs, expected


def test_latent_and_prediction_are_the_published_ones(published):
    _, _, _, restore, (latent, prediction), expected = published
    np.testing.assert_array_equal(restore, expected["ids_restore"])
    np.testing.assert_array_equal(restore >= 59, expected["mask"])
    assert relative_error(latent, expected["latent"]) <= 1e-5
    assert relative_error(prediction, expected["prediction"]) <= 1e-5


def test_losses_are_the_published_ones(published):
    _, ecg, _, _, (_, prediction), expected = published
    prediction = np.asarray(prediction, np.float64)
    target = np.asarray(vit.patchify(ecg, PATCH), np.float64)
    mse = ((prediction - target) ** 2).mean()
    leads = [x.reshape(2, 12, 2500) for x in (prediction, target)]
    normal = [x - x.mean(axis=2, keepdims=True) for x in leads]
    normal = [x / x.std(axis=2, keepdims=True) for x in normal]
    ncc = (normal[0] * normal[1]).mean()
    spread = target.var(axis=2, ddof=1, keepdims=True)
    per_patch = (target - target.mean(axis=2, keepdims=True)) / np.sqrt(spread + 1e-6)
    for ours, name in (
        (mse, "loss_mse_all_patches"),
        (0.9 * mse + 0.1 * (1 - ncc), "loss_mse_ncc_0p1"),
        (((prediction - per_patch) ** 2).mean(), "loss_norm_pix"),
    ):
        assert relative_error(ours, expected[name]) <= 1e-6


def test_gradients_are_the_published_ones(published, golden):
    params, ecg, visible, restore, *_ = published
    expected = np.load(golden / "masked_autoencoder_grad.npz")

    def loss(params):
        _, prediction = _autoencode(params, ecg, visible, restore)
        return jnp.square(prediction - vit.patchify(ecg, PATCH)).mean()

    gradient = jax.jit(jax.grad(loss))(params)
    encoder, decoder = gradient["ecg_encoder"], gradient["decoder"]
    kernel = encoder["patch_embed"]["kernel"].T.reshape(384, 1, 1, 100)
    for ours, name in (
        (encoder["cls_token"], "cls_token"),
        (decoder["mask_token"], "mask_token"),
        (kernel, "patch_embed.proj.weight"),
        (encoder["block_0"]["attention"]["qkv"]["bias"], "blocks.0.attn.qkv.bias"),
        (decoder["predict"]["bias"], "decoder_pred.bias"),
    ):
        assert relative_error(ours, expected[name]) <= 1e-4, name


def test_parameter_count():
    latent = jax.ShapeDtypeStruct((1, 61, 384), jnp.float32)
    restore = jax.ShapeDtypeStruct((1, 300), jnp.int32)
    init = mae_decoder.Model().init
    params = jax.eval_shape(init, jax.random.key(0), latent, restore)["params"]
    assert params.pop("pos_embed").shape == (1, 301, 256)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_704_548
    assert set(params) == {"embed", "mask_token", "block_0", "block_1", "norm", "predict"}


def test_hidden_patches_differ_by_position_only_and_visible_ones_are_restored():
    model = mae_decoder.Model(width=8, depth=0, heads=2, patch=(1, 5), leads=2, samples=20)
    draw = np.random.default_rng(0)
    latent = draw.normal(size=(1, 4, 6)).astype(np.float32)  # CLS and patches 6, 1, 3
    shuffle = np.array([[6, 1, 3, 0, 2, 4, 5, 7]])
    restore = np.argsort(shuffle, axis=1)
    variables = jax.jit(model.init)(jax.random.key(1), latent, restore)
    apply = jax.jit(model.apply)
    before = apply(variables, latent, restore)
    moved = latent.copy()
    moved[0, 2] += 1.0
    # Without blocks a patch depends on its own token alone.
    after = apply(variables, moved, restore)
    changed = np.abs(np.asarray(after) - np.asarray(before)).max(axis=(0, 2)) > 1e-6
    np.testing.assert_array_equal(np.flatnonzero(changed), [1])


def test_bfloat16_predicts_in_float32_and_close():
    fields = {"width": 8, "depth": 1, "heads": 2, "patch": (1, 5), "leads": 2, "samples": 20}
    latent = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
    restore = np.tile(np.arange(8), (3, 1))
    model = mae_decoder.Model(**fields)
    variables = jax.jit(model.init)(jax.random.key(1), latent, restore)
    half = jax.jit(mae_decoder.Model(**fields, dtype="bfloat16").apply)(variables, latent, restore)
    assert half.dtype == jnp.float32
    assert relative_error(half, jax.jit(model.apply)(variables, latent, restore)) < 0.03


def test_restore_must_cover_the_grid():
    model = mae_decoder.Model()
    with pytest.raises(ValueError, match=r"7 patches, expected 300"):
        model.init(jax.random.key(0), jnp.zeros((1, 3, 384)), jnp.zeros((1, 7), jnp.int32))


def _autoencode(params, ecg, visible, restore):
    encoder = vit.Model(pool="none")
    latent = encoder.apply({"params": params["ecg_encoder"]}, ecg, visible=visible)["latent"]
    decoder = mae_decoder.Model()
    return latent, decoder.apply({"params": params["decoder"]}, latent, restore)
