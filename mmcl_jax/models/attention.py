"""Multi-head self-attention, in the formulation that each backend runs fastest."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mmcl_jax.models.dense import Dense, Initializer


def attention(
    query: Float[Array, "B N heads d"],
    key: Float[Array, "B M heads d"],
    value: Float[Array, "B M heads d"],
) -> Float[Array, "B N heads d"]:
    """softmax(query key^T / sqrt(d)) value, with the softmax in float32.

    On a CPU the batch is walked one example at a time and the weights are computed again in the
    backward pass: the [heads, N, M] logits then stay in cache, which makes it about three times
    as fast as the whole batch at once. GPUs and TPUs get the whole batch, on NVIDIA GPUs in half
    precision through cuDNN's fused kernel.
    """
    if jax.default_backend() == "cpu":
        return _one_example_at_a_time(query, key, value)
    implementation = "cudnn" if _cudnn_serves(query) else None
    return jax.nn.dot_product_attention(query, key, value, implementation=implementation)


class SelfAttention(nn.Module):
    """Self-attention with one projection for query, key and value (in this order)."""

    heads: int
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        batch, count, width = tokens.shape
        if width % self.heads:
            raise ValueError(f"attention: width {width} is no multiple of heads {self.heads}")
        qkv = Dense(3 * width, kernel_init=self.kernel_init, dtype=self.dtype, name="qkv")
        stacked = qkv(tokens).reshape(batch, count, 3, self.heads, width // self.heads)
        mixed = attention(stacked[:, :, 0], stacked[:, :, 1], stacked[:, :, 2])
        proj = Dense(width, kernel_init=self.kernel_init, dtype=self.dtype, name="proj")
        return proj(mixed.reshape(batch, count, width))


def _one_example_at_a_time(query: Array, key: Array, value: Array) -> Array:
    # A scan's body is not merged with its surroundings, so no barrier against that is needed.
    body = jax.checkpoint(_attend, prevent_cse=False)
    return jax.lax.map(lambda example: body(*example), (query, key, value))


def _attend(
    query: Float[Array, "N heads d"],
    key: Float[Array, "M heads d"],
    value: Float[Array, "M heads d"],
) -> Float[Array, "N heads d"]:
    scaled = query * query.shape[-1] ** -0.5
    logits = jnp.einsum("nhd,mhd->hnm", scaled, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("hnm,mhd->nhd", weights, value)


def _cudnn_serves(query: Array) -> bool:
    """Whether cuDNN's fused kernel takes these: half precision, small heads, Ampere or newer."""
    device = jax.devices()[0]
    return (
        query.dtype in (jnp.bfloat16, jnp.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 128
        and "cuda" in device.client.platform_version.lower()
        and float(device.compute_capability) >= 8.0
    )
