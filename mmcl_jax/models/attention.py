"""Multi-head self-attention, in the formulation that each backend runs fastest."""

from collections.abc import Callable

import jax
import jax.export
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mmcl_jax.models.dense import Dense, Initializer
from mmcl_jax.models.precision import is_ampere_or_newer


def self_attention(qkv: Float[Array, "B N 3 heads d"]) -> Float[Array, "B N heads d"]:
    """softmax(query key^T / sqrt(d)) value, with the softmax in float32.

    On a CPU the batch is walked one example at a time and the weights are computed again in the
    backward pass, so that the [heads, N, N] logits stay in cache. GPUs and TPUs get the whole
    batch, on NVIDIA GPUs in half precision through cuDNN's fused kernel.

    Args:
        qkv: query, key and value of each token.
    """
    if jax.export.is_symbolic_dim(qkv.shape[0]):
        # Traced for export: the device is known only where the program is loaded.
        return jax.lax.platform_dependent(qkv, cpu=_one_example_at_a_time, default=_whole_batch)
    if jax.default_backend() == "cpu":
        return _one_example_at_a_time(qkv)
    return _fused(qkv) if _cudnn_serves(qkv) else _whole_batch(qkv)


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
        mixed = self_attention(qkv(tokens).reshape(batch, count, 3, self.heads, -1))
        proj = Dense(width, kernel_init=self.kernel_init, dtype=self.dtype, name="proj")
        return proj(mixed.reshape(batch, count, width))


def _whole_batch(qkv: Float[Array, "B N 3 heads d"]) -> Float[Array, "B N heads d"]:
    return jax.nn.dot_product_attention(*(qkv[:, :, i] for i in range(3)))


def _fused(
    qkv: Float[Array, "B N 3 heads d"], implementation: str = "cudnn"
) -> Float[Array, "B N heads d"]:
    """By cuDNN, which trains with even numbers of tokens: others get one more, that no one reads.

    With a CLS token the encoder and the decoder have odd numbers.
    """
    count = qkv.shape[1]
    if count % 2 == 0:
        return jax.nn.dot_product_attention(
            *(qkv[:, :, i] for i in range(3)), implementation=implementation
        )
    # Always `count`. Computed from qkv because jax maps the fused kernel over members of a sweep
    # only where all of its arguments have the members' axis.
    lengths = jnp.where(qkv[:, 0, 0, 0, 0] > 0, count, count).astype(jnp.int32)
    qkv = jnp.pad(qkv, ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
    mixed = jax.nn.dot_product_attention(
        *(qkv[:, :, i] for i in range(3)),
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return mixed[:, :count]


@jax.custom_vjp
def _one_example_at_a_time(qkv: Float[Array, "B N 3 heads d"]) -> Float[Array, "B N heads d"]:
    return _forward(qkv)[0]


def _forward(qkv):
    mixed, log_total = _map_examples(_attend, qkv)
    return mixed, (qkv, mixed, log_total)


def _backward(kept, gradient):
    qkv, mixed, log_total = kept
    along = (gradient * mixed).astype(jnp.float32).sum(axis=-1).swapaxes(1, 2)  # [B, heads, N]
    return (_map_examples(_attend_backward, qkv, log_total, along, gradient),)


_one_example_at_a_time.defvjp(_forward, _backward)


def _map_examples(function: Callable, *arrays: Array):
    """`function` of each example, one after another on each device."""
    batch = arrays[0].shape[0]
    devices = jax.device_count()
    groups = devices if batch % devices == 0 else 1

    def split(array):
        # [steps, devices, ...]: a batch that is split over devices stays where it is.
        return array.reshape(groups, batch // groups, *array.shape[1:]).swapaxes(0, 1)

    def join(array):
        return array.swapaxes(0, 1).reshape(batch, *array.shape[2:])

    mapped = jax.lax.map(lambda group: jax.vmap(function)(*group), tuple(map(split, arrays)))
    return jax.tree.map(join, mapped)


def _attend(
    qkv: Float[Array, "N 3 heads d"],
) -> tuple[Float[Array, "N heads d"], Float[Array, "heads N"]]:
    """Mixed values, and the logarithm of the sum that each softmax divides by."""
    query, key, value = _heads_first(qkv)
    logits = _logits(query, key)
    top = logits.max(axis=-1)
    weights = jnp.exp(logits - top[..., None])
    total = weights.sum(axis=-1)
    # Dividing the mixed values instead of the weights saves a pass over [heads, N, N].
    mixed = jnp.einsum("hnm,hmd->hnd", weights.astype(value.dtype), value)
    mixed = mixed / total[..., None].astype(value.dtype)
    return mixed.swapaxes(0, 1), top + jnp.log(total)


def _attend_backward(
    qkv: Float[Array, "N 3 heads d"],
    log_total: Float[Array, "heads N"],
    along: Float[Array, "heads N"],
    gradient: Float[Array, "N heads d"],
) -> Float[Array, "N 3 heads d"]:
    """Gradient of `_attend` (Dao et al., FlashAttention, NeurIPS 2022, appendix B.4).

    `along` is the product of each mixed value with its gradient.
    """
    query, key, value = _heads_first(qkv)
    dtype = value.dtype
    gradient = gradient.swapaxes(0, 1)
    # Transposed, [heads, M, N]: of the products below, all but the last run along their rows.
    weights = jnp.exp(_logits(key, query) - log_total[:, None])
    to_weights = _logits(value, gradient)
    to_logits = (weights * (to_weights - along[:, None])).astype(dtype)
    to_value = jnp.einsum("hmn,hnd->hmd", weights.astype(dtype), gradient)
    to_key = jnp.einsum("hmn,hnd->hmd", to_logits, query)
    to_query = jnp.einsum("hdm,hmn->hdn", key.swapaxes(1, 2), to_logits).swapaxes(1, 2)
    to_query = to_query * key.shape[-1] ** -0.5
    return jnp.stack([to_query, to_key, to_value]).transpose(2, 0, 1, 3)


def _heads_first(qkv: Float[Array, "N 3 heads d"]) -> Float[Array, "3 heads N d"]:
    """Query, divided by sqrt(d), key and value."""
    query, key, value = qkv.transpose(1, 2, 0, 3)
    return query * query.shape[-1] ** -0.5, key, value


def _logits(
    query: Float[Array, "heads N d"], key: Float[Array, "heads M d"]
) -> Float[Array, "heads N M"]:
    return jnp.einsum("hnd,hmd->hnm", query, key, preferred_element_type=jnp.float32)


def _cudnn_serves(qkv: Array) -> bool:
    """Whether cuDNN's fused kernel takes these: half precision, small heads, Ampere or newer."""
    return (
        qkv.dtype in (jnp.bfloat16, jnp.float16)
        and qkv.shape[-1] % 8 == 0
        and qkv.shape[-1] <= 128
        and is_ampere_or_newer()
    )
