"""Batch normalisation with PyTorch's running statistics."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class BatchNorm(nn.Module):
    """Normalises each channel over every other axis, in float32, then scales and shifts.

    Training divides by the biased variance of the batch but lets the running variance follow the
    unbiased one, as PyTorch does (`flax.linen.BatchNorm` uses the biased one for both). Running
    statistics live in the collection 'batch_stats' under 'mean' and 'var'.
    """

    momentum: float = 0.9  # share of the old running statistics that stays; PyTorch's 0.1
    eps: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... C"], *, train: bool) -> Float[Array, "... C"]:
        channels = x.shape[-1]
        count = x.size // channels
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        if train and not self.is_initializing():
            if count < 2:
                raise ValueError("batch norm: one value per channel has no variance to train on")
            mean, var = _moments(x)
            self._follow(running_mean, mean)
            self._follow(running_var, var * (count / (count - 1)))
        else:
            mean, var = running_mean.value, running_var.value
        factor = jax.lax.rsqrt(var + self.eps)
        if self.use_scale:
            factor *= self.param("scale", nn.initializers.ones_init(), (channels,))
        normal = (x.astype(jnp.float32) - _wide(mean, x)) * _wide(factor, x)
        if self.use_bias:
            normal += _wide(self.param("bias", nn.initializers.zeros_init(), (channels,)), x)
        return normal.astype(self.dtype)

    def _follow(self, running: nn.Variable, batch: Float[Array, "C"]) -> None:
        running.value = self.momentum * running.value + (1 - self.momentum) * batch


def _moments(x: Float[Array, "... C"]) -> tuple[Float[Array, "C"], Float[Array, "C"]]:
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axis=axes, dtype=jnp.float32)
    return mean, jnp.square(x.astype(jnp.float32) - _wide(mean, x)).mean(axis=axes)


def _wide(channel: Float[Array, "C"], x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """One value per channel, with the axes of `x`."""
    return jnp.expand_dims(channel, tuple(range(x.ndim - 1)))
