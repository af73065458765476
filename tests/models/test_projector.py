import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import relative_error

from mmcl_jax.models import projector


def test_similarity_per_location_is_the_published_one(resnet50, golden):
    prefix = "projection_head_imaging.layers."
    state = golden_weights.projector(prefix, 2048, 512, 128)
    params = golden_weights.projector_params(state, prefix)
    expected = np.load(golden / "similarity_grid.npz")
    scaled = resnet50.outputs["map"] / float(expected["feature_map_scale"])
    local = projector.Model().apply({"params": params}, scaled)  # [B, 7, 7, 128]
    signal = expected["signal_projection"]
    similarity = np.einsum("bhwk,bk->bhw", local, signal)
    similarity /= np.linalg.norm(local, axis=3)
    similarity /= np.linalg.norm(signal, axis=1)[:, None, None]
    assert relative_error(similarity, expected["similarity"]) <= 1e-4


@pytest.mark.parametrize(("inputs", "count"), [(384, 262_784), (2048, 1_114_752)])
def test_parameter_counts(inputs, count):
    x = jax.ShapeDtypeStruct((1, inputs), jnp.float32)
    params = jax.eval_shape(projector.Model().init, jax.random.key(0), x)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_kernels_and_biases_start_uniform_as_in_pytorch():
    params = jax.jit(projector.Model().init)(jax.random.key(0), jnp.zeros((1, 100)))["params"]
    for layer, inputs in (("fc1", 100), ("fc2", 512)):
        for leaf in params[layer].values():
            leaf = np.asarray(leaf)
            assert abs(leaf).max() <= inputs**-0.5
            assert abs(leaf.std() / (inputs**-0.5 / 3**0.5) - 1) < 0.15


def test_bfloat16_projects_in_float32():
    x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    model = projector.Model(hidden=16, out=4)
    variables = jax.jit(model.init)(jax.random.key(1), x)
    half = projector.Model(hidden=16, out=4, dtype="bfloat16").apply(variables, x)
    assert half.dtype == jnp.float32
    assert relative_error(half, model.apply(variables, x)) < 0.03
