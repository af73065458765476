"""Projector into the space shared by ECG and CMR: two layers (Section IV-C)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mmcl_jax.models.dense import Dense, torch_uniform


class Model(nn.Module):
    """Dense, ReLU, Dense, with biases and without normalisation; works on any leading axes.

    The outputs are not of unit length: the losses divide by the norm.
    """

    hidden: int = 512
    out: int = 128
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... K"]:
        x = nn.relu(self._dense("fc1", x.shape[-1], self.hidden)(x))
        return self._dense("fc2", self.hidden, self.out)(x).astype(jnp.float32)

    def _dense(self, name: str, inputs: int, outputs: int) -> nn.Module:
        init = torch_uniform(inputs)
        dtype = jnp.dtype(self.dtype)
        return Dense(outputs, kernel_init=init, bias_init=init, dtype=dtype, name=name)
