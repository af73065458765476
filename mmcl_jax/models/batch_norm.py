"""Batch normalisation with PyTorch's running statistics."""

import functools

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
        scale, bias = jnp.ones(channels), jnp.zeros(channels)
        if self.use_scale:
            scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        if not train or self.is_initializing():
            factor = scale * jax.lax.rsqrt(running_var.value + self.eps)
            return _affine(x, factor, bias - running_mean.value * factor).astype(self.dtype)
        if count < 2:
            raise ValueError("batch norm: one value per channel has no variance to train on")
        normal, mean, var = _normalise(x, scale, bias, self.eps)
        self._follow(running_mean, mean)
        self._follow(running_var, var * (count / (count - 1)))
        return normal.astype(self.dtype)

    def _follow(self, running: nn.Variable, batch: Float[Array, " C"]) -> None:
        running.value = self.momentum * running.value + (1 - self.momentum) * batch


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(
    x: Float[Array, "... C"], scale: Float[Array, " C"], bias: Float[Array, " C"], eps: float
) -> tuple[Float[Array, "... C"], Float[Array, " C"], Float[Array, " C"]]:
    """Normalised by the batch, with its mean and biased variance, all in float32.

    The backward pass keeps nothing but x and three values per channel, and reads x and the
    gradient twice; automatic differentiation keeps and reads several arrays of the size of x.
    No gradient flows through the returned statistics: they only move the running ones.
    """
    return _forward(x, scale, bias, eps)[0]


def _forward(x, scale, bias, eps):
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axis=axes, dtype=jnp.float32)
    var = jnp.square(x.astype(jnp.float32) - _wide(mean, x)).mean(axis=axes)
    deviation = jax.lax.rsqrt(var + eps)
    factor = scale * deviation
    return (_affine(x, factor, bias - mean * factor), mean, var), (x, scale, mean, deviation)


def _backward(eps, kept, gradients):
    del eps
    x, scale, mean, deviation = kept
    gradient = gradients[0]
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    standard = _affine(x, deviation, -mean * deviation)
    to_bias = gradient.sum(axis=axes)
    to_scale = (gradient * standard).sum(axis=axes)
    factor = scale * deviation
    # gradient - mean(gradient) - standard * mean(gradient * standard), times the factor.
    slope = -factor * deviation * to_scale / count
    shift = -factor * to_bias / count - slope * mean
    to_x = gradient * _wide(factor, x) + _affine(x, slope, shift)
    return to_x.astype(x.dtype), to_scale, to_bias


_normalise.defvjp(_forward, _backward)


def _affine(
    x: Float[Array, "... C"], factor: Float[Array, " C"], shift: Float[Array, " C"]
) -> Float[Array, "... C"]:
    return x.astype(jnp.float32) * _wide(factor, x) + _wide(shift, x)


def _wide(channel: Float[Array, " C"], x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """One value per channel, with the axes of `x`."""
    return jnp.expand_dims(channel, tuple(range(x.ndim - 1)))
