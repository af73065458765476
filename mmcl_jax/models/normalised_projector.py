"""Projector with batch normalisation, as BYOL and Barlow Twins have it; also BYOL's predictor."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mmcl_jax.models.batch_norm import BatchNorm
from mmcl_jax.models.dense import Dense, torch_uniform


class Model(nn.Module):
    """Dense without bias, BatchNorm, ReLU, Dense."""

    hidden: int = 4096
    out: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B D"], *, train: bool) -> Float[Array, "B K"]:
        """Projects; with `train` the statistics are those of the batch and 'batch_stats' moves."""
        dtype = jnp.dtype(self.dtype)
        fc1 = Dense(
            self.hidden,
            use_bias=False,
            kernel_init=torch_uniform(x.shape[-1]),
            dtype=dtype,
            name="fc1",
        )
        x = nn.relu(BatchNorm(dtype=dtype, name="norm")(fc1(x), train=train))
        init = torch_uniform(self.hidden)
        fc2 = Dense(self.out, kernel_init=init, bias_init=init, dtype=dtype, name="fc2")
        return fc2(x).astype(jnp.float32)
