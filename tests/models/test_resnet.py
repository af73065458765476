import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmcl_jax.models import resnet
from tests.golden_weights import relative_error

TINY = {"depth": 18, "width": 4}


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
    x = jax.random.normal(jax.random.key(0), (2, side, side, 3))
    conv = resnet.Conv(5, size, stride)
    variables = conv.init(jax.random.key(1), x)
    expected = jax.lax.conv_general_dilated(
        x,
        variables["params"]["kernel"],
        (stride, stride),
        ((size // 2, size // 2),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(conv.apply(variables, x), expected, atol=1e-5)


def test_convolutions_start_kaiming_normal_over_the_outputs():
    variables = resnet.Conv(64, 3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))
    kernel = variables["params"]["kernel"]
    assert abs(kernel.std() / (2 / (9 * 64)) ** 0.5 - 1) < 0.03


def test_eight_devices_give_the_numbers_of_one():
    model, variables, frames = _tiny()
    step = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(frames, NamedSharding(mesh, PartitionSpec("data")))
    outputs, state = step(variables, frames)
    spread_outputs, spread_state = step(variables, spread)
    np.testing.assert_allclose(spread_outputs["features"], outputs["features"], atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), spread_state, state)


def test_evaluation_neither_moves_statistics_nor_mixes_examples():
    model, variables, frames = _tiny()
    outputs, state = model.apply(variables, frames, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
    alone = model.apply(variables, frames[:1])
    np.testing.assert_allclose(alone["features"], outputs["features"][:1], atol=1e-5)


def test_bfloat16_computes_close_and_keeps_float32_state():
    model, variables, frames = _tiny()
    half = resnet.Model(**TINY, dtype="bfloat16")
    outputs, state = half.apply(variables, frames, train=True, mutable=["batch_stats"])
    expected, _ = model.apply(variables, frames, train=True, mutable=["batch_stats"])
    assert outputs["map"].dtype == jnp.bfloat16
    assert outputs["features"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    assert relative_error(outputs["features"], expected["features"]) < 0.05


def test_unknown_depth_is_named():
    with pytest.raises(ValueError, match=r"depth 34.*\[18, 50\]"):
        resnet.Model(34).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def _tiny():
    model = resnet.Model(**TINY)
    frames = jax.random.uniform(jax.random.key(0), (8, 48, 48, 3))
    return model, jax.jit(model.init)(jax.random.key(1), frames), frames
