import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.models import head, mae_decoder, projector, resnet, torch_weights, vit
from mmcl_jax.models.torch_weights import WeightsError

ECG = jax.ShapeDtypeStruct((1, 12, 2500), jnp.float32)


@pytest.fixture(scope="module")
def encoder_state(golden):
    return golden_weights.state_dict(golden, "signal_encoder_attention_pool")


@pytest.fixture(scope="module")
def mae_state(golden):
    return golden_weights.state_dict(golden, "masked_autoencoder")


def test_every_encoder_key_finds_its_place(encoder_state):
    ours = golden_weights.vit(encoder_state)
    encoder = _params(vit.Model(pool="attention"), ECG)
    classifier = _params(head.Model(2), jax.ShapeDtypeStruct((1, 384), jnp.float32))
    _assert_same_shapes(ours, {"ecg_encoder": encoder, "head": classifier})


def test_every_masked_autoencoder_key_finds_its_place(mae_state):
    ours = golden_weights.mae(mae_state)
    latent = jax.ShapeDtypeStruct((1, 60, 384), jnp.float32)
    decoder = _params(mae_decoder.Model(), latent, jax.ShapeDtypeStruct((1, 300), jnp.int32))
    encoder = _params(vit.Model(pool="none"), ECG)
    _assert_same_shapes(ours, {"ecg_encoder": encoder, "decoder": decoder})


def test_every_image_encoder_key_finds_its_place(golden):
    ours = golden_weights.resnet(golden_weights.state_dict(golden, "image_encoder"))
    frames = jax.ShapeDtypeStruct((1, 210, 210, 3), jnp.float32)
    _assert_same_shapes(ours, jax.eval_shape(resnet.Model().init, jax.random.key(0), frames))


def test_resnet18_and_another_prefix():
    frames = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    model = resnet.Model(depth=18, width=4)
    expected = jax.eval_shape(model.init, jax.random.key(0), frames)
    state = _resnet18_state(width=4, prefix="net.")
    _assert_same_shapes(golden_weights.resnet(state, prefix="net."), expected)
    with pytest.raises(WeightsError, match="is the prefix right"):
        golden_weights.resnet(state)


def test_projector_is_transposed():
    state = golden_weights.projector("p.", 6, 5, 4)
    ours = golden_weights.projector_params(state, prefix="p.")
    x = jax.ShapeDtypeStruct((1, 6), jnp.float32)
    _assert_same_shapes(ours, _params(projector.Model(hidden=5, out=4), x))
    np.testing.assert_array_equal(ours["fc2"]["kernel"], state["p.2.weight"].T)


def test_optional_modules_may_be_absent_but_not_halved(encoder_state):
    bare = {
        key: value
        for key, value in encoder_state.items()
        if not key.startswith(("fc_norm", "head", "attention_pool"))
    }
    ours = golden_weights.vit(bare)
    assert set(ours) == {"ecg_encoder"}
    assert not {"fc_norm", "attention_pool", "norm"} & set(ours["ecg_encoder"])
    # One of two arrays asks for the other.
    assert torch_weights.vit_modules({**bare, "fc_norm.weight": None}) == {"fc_norm"}
    assert "fc_norm.bias" in torch_weights.vit_keys(1, {"fc_norm"})


def test_an_array_with_the_wrong_axes_is_named(encoder_state):
    state = {**encoder_state, "patch_embed.proj.weight": np.zeros((384, 100))}
    with pytest.raises(WeightsError, match=r"patch_embed.proj.weight has shape \(384, 100\)"):
        golden_weights.vit(state)


def _params(model, *inputs):
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def _assert_same_shapes(ours, expected):
    assert jax.tree.map(np.shape, ours) == jax.tree.map(lambda leaf: leaf.shape, expected)


def _resnet18_state(width, prefix):
    shapes = {"0.weight": (width, 3, 7, 7), **_norm_shapes("1", width)}
    inputs = width
    for layer in range(4):
        outputs = width * 2**layer
        for i in range(2):
            block = f"{4 + layer}.{i}"
            shapes[f"{block}.conv1.weight"] = (outputs, inputs, 3, 3)
            shapes[f"{block}.conv2.weight"] = (outputs, outputs, 3, 3)
            shapes |= _norm_shapes(f"{block}.bn1", outputs) | _norm_shapes(f"{block}.bn2", outputs)
            if inputs != outputs:
                shapes[f"{block}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                shapes |= _norm_shapes(f"{block}.downsample.1", outputs)
            inputs = outputs
    return {f"{prefix}{key}": np.zeros(shape, np.float32) for key, shape in shapes.items()}


def _norm_shapes(key, channels):
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{key}.{leaf}": (channels,) for leaf in leaves} | {f"{key}.num_batches_tracked": ()}
