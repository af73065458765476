"""Where an ECG encoder looks: attention rollout over the patches of (lead, time).

Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020: the weights of all layers
multiplied, each with one half for the residual branch. What attention reaches is not what a
prediction depends on (Jain and Wallace, NAACL 2019); `occlusion.py` shows that.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmcl_jax.models import vit


def rollout(
    encoder: vit.Model, params: Any, ecg: Float[Array, "B L T"]
) -> tuple[Float[Array, "B L n"], Float[Array, "B L n"]]:
    """Shares of the patches in what the encoder puts out, as averages over the heads.

    Args:
        encoder: with any pooling; one that does not pool is taken for the mean of its patch tokens.
        params: of the encoder.
        ecg: preprocessed, of the length that the encoder reads.

    Returns:
        Rollout from the output through all blocks, and the weights of the pooling alone. Both sum
        to at most 1; the rest is what the CLS token adds. n columns of `encoder.patch` samples; a
        patch of several leads counts for each of them.
    """
    outputs, state = encoder.apply(
        {"params": params},
        ecg,
        capture_intermediates=lambda module, _: module.name == "qkv",
        mutable=["intermediates"],
    )
    pooling = _pooling(encoder, params, outputs["tokens"])
    reached = pooling
    for number in reversed(range(encoder.depth)):
        (qkv,) = state["intermediates"][f"block_{number}"]["attention"]["qkv"]["__call__"]
        mixed = jnp.einsum("bn,bnm->bm", reached, _attention(qkv, encoder.heads))
        reached = 0.5 * reached + 0.5 * mixed
    return _on_leads(encoder, reached), _on_leads(encoder, pooling)


def _pooling(
    encoder: vit.Model, params: Any, tokens: Float[Array, "B N+1 D"]
) -> Float[Array, "B N+1"]:
    """Weight of each token, CLS first, in the pooled features."""
    batch, count = tokens.shape[0], tokens.shape[1] - 1
    if encoder.pool == "cls":
        return jnp.zeros((batch, count + 1)).at[:, 0].set(1)
    if encoder.pool == "attention":
        weights = _attention_of_the_mean(
            params["attention_pool"]["in_proj"], tokens[:, 1:], encoder
        )
    else:
        weights = jnp.full((batch, count), 1 / count)
    return jnp.pad(weights, ((0, 0), (1, 0)))


def _attention_of_the_mean(
    projection: Any, tokens: Float[Array, "B N D"], encoder: vit.Model
) -> Float[Array, "B N"]:
    """The weights within `vit.AttentionPool`."""
    tokens = tokens.astype(jnp.float32)
    width = tokens.shape[-1]
    kernel, bias = projection["kernel"], projection["bias"]
    query = tokens.mean(axis=1, keepdims=True) @ kernel[:, :width] + bias[None, None, :width]
    key = tokens @ kernel[:, width : 2 * width] + bias[None, None, width : 2 * width]
    return _weights(_heads(query, encoder.heads), _heads(key, encoder.heads))[:, 0]


def _attention(qkv: Float[Array, "B N 3D"], heads: int) -> Float[Array, "B N N"]:
    query, key, _ = jnp.split(qkv.astype(jnp.float32), 3, axis=-1)
    return _weights(_heads(query, heads), _heads(key, heads))


def _heads(tokens: Float[Array, "B N D"], heads: int) -> Float[Array, "B N h d"]:
    return tokens.reshape(*tokens.shape[:2], heads, -1)


def _weights(query: Float[Array, "B N h d"], key: Float[Array, "B M h d"]) -> Float[Array, "B N M"]:
    """Softmax over the keys, mean over the heads."""
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key) * query.shape[-1] ** -0.5
    return jax.nn.softmax(logits, axis=-1).mean(axis=1)


def _on_leads(encoder: vit.Model, shares: Float[Array, "B N+1"]) -> Float[Array, "B L n"]:
    rows = encoder.leads // encoder.patch[0]
    grid = shares[:, 1:].reshape(len(shares), rows, -1)
    return jnp.repeat(grid, encoder.patch[0], axis=1)
