"""Linear head of a downstream task."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class Model(nn.Module):
    """One linear layer in float32; kernel normal with sd 0.01, bias 0."""

    outputs: int

    @nn.compact
    def __call__(self, features: Float[Array, "... D"]) -> Float[Array, "... K"]:
        kernel_init = nn.initializers.normal(0.01)
        return nn.Dense(self.outputs, kernel_init=kernel_init, dtype=jnp.float32, name="fc")(
            features
        )
