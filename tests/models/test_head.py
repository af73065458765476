import jax
import jax.numpy as jnp
import numpy as np

from mmcl_jax.models import head


def test_starts_near_zero_and_answers_in_float32():
    features = jnp.ones((3, 384), jnp.bfloat16)
    variables = head.Model(17).init(jax.random.key(0), features)
    params = jax.tree.map(np.asarray, variables["params"]["fc"])
    assert abs(params["kernel"].std() / 0.01 - 1) < 0.05
    assert not params["bias"].any()
    logits = head.Model(17).apply(variables, features)
    assert logits.dtype == jnp.float32
    expected = np.tile(np.asarray(params["kernel"]).sum(axis=0), (3, 1))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
