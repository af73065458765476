import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import relative_error
from jax.sharding import NamedSharding, PartitionSpec

from mmcl_jax.models import resnet


def test_features_and_map_are_the_published_ones(resnet50):
    outputs, expected = resnet50.outputs, resnet50.expected
    channels_first = np.asarray(outputs["map"]).transpose(0, 3, 1, 2)
    assert outputs["map"].shape == (2, 7, 7, 2048)
    assert relative_error(outputs["features"], expected["features"]) <= 1e-4
    mean = channels_first.mean(axis=(2, 3))
    assert relative_error(mean, expected["feature_map_mean"]) <= 1e-4
    assert relative_error(channels_first[:, :64], expected["feature_map_corner"]) <= 1e-4


def test_training_mode_is_the_published_one(resnet50):
    @jax.jit
    def step(variables, frames):
        model = resnet.Model()
        return model.apply(variables, frames, train=True, mutable=["batch_stats"])

    outputs, state = step(resnet50.variables, resnet50.frames)
    expected = resnet50.expected
    stem = state["batch_stats"]["bn1"]
    assert relative_error(outputs["features"], expected["features_train_mode"]) <= 1e-4
    assert relative_error(stem["mean"], expected["stem_bn_running_mean_after"]) <= 1e-5
    assert relative_error(stem["var"], expected["stem_bn_running_var_after"]) <= 1e-5


# torchvision's counts less the classification layer.
@pytest.mark.parametrize(("depth", "count"), [(18, 11_176_512), (50, 23_508_032)])
def test_parameter_counts(depth, count):
    frames = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(resnet.Model(depth).init, jax.random.key(0), frames)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert ("conv3" in params["layer1_0"]) == (depth == 50)
    assert ("downsample_conv" in params["layer1_0"]) == (depth == 50)
    assert "downsample_conv" in params["layer2_0"]


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_convolutions_are_xla_convolutions_with_symmetric_padding(size, stride, side):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, side, side, 3)).astype(np.float32)
    kernel = draw.normal(size=(size, size, 3, 5)).astype(np.float32)
    ours = resnet.Conv(5, size, stride).apply({"params": {"kernel": kernel}}, x)
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((size // 2, size // 2),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_convolutions_start_kaiming_normal_over_the_outputs():
    variables = resnet.Conv(64, 3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))
    kernel = variables["params"]["kernel"]
    assert abs(kernel.std() / (2 / (9 * 64)) ** 0.5 - 1) < 0.03


def test_eight_devices_give_the_numbers_of_one():
    block, variables, x = _block()
    step = jax.jit(lambda v, x: block.apply(v, x, train=True, mutable=["batch_stats"]))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    output, state = step(variables, x)
    spread_output, spread_state = step(variables, spread)
    np.testing.assert_allclose(spread_output, output, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), spread_state, state)


def test_evaluation_neither_moves_statistics_nor_mixes_examples():
    block, variables, x = _block()
    evaluate = jax.jit(lambda v, x: block.apply(v, x, train=False, mutable=["batch_stats"]))
    output, state = evaluate(variables, x)
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
    others = np.concatenate([x[:1], np.full_like(x[1:], 7.0)])
    alone, _ = evaluate(variables, others)
    np.testing.assert_allclose(alone[0], output[0], atol=1e-5)


def test_bfloat16_computes_close_and_keeps_float32_state():
    block, variables, x = _block()
    half = resnet.Bottleneck(4, 2, dtype=jnp.bfloat16)
    train = {"train": True, "mutable": ["batch_stats"]}
    output, state = jax.jit(functools.partial(half.apply, **train))(variables, x)
    expected, _ = jax.jit(functools.partial(block.apply, **train))(variables, x)
    assert output.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    assert relative_error(output, expected) < 0.02


@pytest.mark.parametrize(("depth", "channels"), [(18, 32), (50, 128)])
def test_output_shapes_and_dtypes(depth, channels):
    model = resnet.Model(depth, width=4, dtype="bfloat16")
    frames = jax.ShapeDtypeStruct((2, 210, 210, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), frames)
    outputs = jax.eval_shape(model.apply, variables, frames)
    assert outputs["map"].shape == (2, 7, 7, channels)
    assert outputs["map"].dtype == jnp.bfloat16
    assert outputs["features"].shape == (2, channels)
    assert outputs["features"].dtype == jnp.float32


def test_unknown_depth_is_named():
    with pytest.raises(ValueError, match=r"depth 34.*\[18, 50\]"):
        resnet.Model(34).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def _block():
    block = resnet.Bottleneck(4, 2)
    x = np.random.default_rng(0).normal(size=(8, 9, 9, 6)).astype(np.float32)
    init = jax.jit(lambda key, x: block.init(key, x, train=False))
    return block, init(jax.random.key(1), x), x
