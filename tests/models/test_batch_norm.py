import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.models.batch_norm import BatchNorm


def test_training_normalises_with_the_biased_and_follows_the_unbiased_variance():
    x = np.random.default_rng(0).normal(3, 2, size=(4, 5, 2)).astype(np.float32)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, train=True)
    variables["params"] = {"scale": jnp.array([2.0, 3.0]), "bias": jnp.array([1.0, -1.0])}
    y, state = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    mean, var = x.mean(axis=(0, 1)), x.var(axis=(0, 1))
    expected = (x - mean) / np.sqrt(var + 1e-5) * [2, 3] + [1, -1]
    np.testing.assert_allclose(y, expected, atol=1e-5)
    stats = state["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * x.var(axis=(0, 1), ddof=1), rtol=1e-5)


def test_evaluation_uses_the_running_statistics():
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    stats = {"mean": jnp.array([1.0, 2.0]), "var": jnp.array([4.0, 9.0])}
    y = BatchNorm(use_scale=False, use_bias=False).apply({"batch_stats": stats}, x, train=False)
    np.testing.assert_allclose(y, (x - [1, 2]) / np.sqrt([4 + 1e-5, 9 + 1e-5]), atol=1e-6)


def test_initialising_does_not_move_the_statistics():
    x = jnp.full((4, 2), 7.0)
    stats = BatchNorm().init(jax.random.key(0), x, train=True)["batch_stats"]
    np.testing.assert_array_equal(stats["mean"], 0)
    np.testing.assert_array_equal(stats["var"], 1)


def test_a_single_value_cannot_train():
    x = jnp.zeros((1, 2))
    variables = BatchNorm().init(jax.random.key(0), x, train=False)
    with pytest.raises(ValueError, match="one value per channel"):
        BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
