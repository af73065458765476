"""Linear layers: the product, one row per token or pixel, and PyTorch's initial values."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Initializer = nn.initializers.Initializer


def rows_times(
    x: Float[Array, "... I"], kernel: Float[Array, "I O"], *_: Any, **options: Any
) -> Float[Array, "... O"]:
    """x kernel, with all leading axes of x flattened into one.

    The numbers are those of the product over several axes, but on a CPU the gradients of that one
    are computed through copies: flat, a training step takes 5 % (ViT) to 15 % (ResNet50) less.
    Also serves as `dot_general` of a Linen layer, whose dimension numbers say the same.
    """
    dimensions = (((1,), (0,)), ((), ()))
    flat = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, dimensions, **options)
    return flat.reshape(*x.shape[:-1], kernel.shape[1])


Dense = functools.partial(nn.Dense, dot_general=rows_times)


def torch_uniform(fan_in: int) -> Initializer:
    """Uniform in +-1/sqrt(fan_in): PyTorch's default for a linear layer's kernel and bias."""
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
