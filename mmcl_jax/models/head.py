"""Linear head of a downstream task."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class Model(nn.Module):
    """One linear layer in float32; kernel normal, bias 0.

    `kernel_sd` is 0.01 behind an encoder that was pre-trained and 0.02 in a ViT from scratch.
    """

    outputs: int
    kernel_sd: float = 0.01

    @nn.compact
    def __call__(self, features: Float[Array, "... D"]) -> Float[Array, "... K"]:
        kernel_init = nn.initializers.normal(self.kernel_sd)
        return nn.Dense(self.outputs, kernel_init=kernel_init, dtype=jnp.float32, name="fc")(
            features
        )
