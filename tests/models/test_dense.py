import jax
import numpy as np

from mmcl_jax.models.dense import Dense, rows_times, torch_uniform


def test_rows_times_is_the_product_over_the_last_axis():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 3, 4)).astype(np.float32)
    kernel = draw.normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_allclose(
        rows_times(x, kernel), np.einsum("bnd,de->bne", x, kernel), rtol=1e-5
    )


def test_dense_is_a_linen_layer_on_any_leading_axes():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    params = {
        "kernel": np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32),
        "bias": np.arange(5, dtype=np.float32),
    }
    expected = x @ params["kernel"] + params["bias"]
    for inputs, outputs in ((x, expected), (x[0, 0], expected[0, 0])):
        ours = Dense(5).apply({"params": params}, inputs)
        np.testing.assert_allclose(ours, outputs, rtol=1e-5, atol=1e-5)


def test_torch_uniform_is_bounded_by_the_root_of_the_inputs():
    values = np.asarray(torch_uniform(25)(jax.random.key(0), (1000,)))
    assert abs(values).max() <= 0.2
    assert abs(values.std() - 0.2 / 3**0.5) < 0.005
