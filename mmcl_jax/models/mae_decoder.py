"""Decoder of the masked autoencoder: from visible tokens to the samples of every patch."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from mmcl_jax.models.dense import Dense
from mmcl_jax.models.positions import sincos_table
from mmcl_jax.models.vit import Block, layer_norm


class Model(nn.Module):
    """Light transformer over visible and mask tokens in their places (Section III-A).

    References:
        He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022.
    """

    width: int = 256
    depth: int = 2
    heads: int = 8
    mlp_ratio: float = 4.0
    patch: tuple[int, int] = (1, 100)  # leads, samples
    leads: int = 12
    samples: int = 2500
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, latent: Float[Array, "B 1+Nv De"], restore: Int[Array, "B N"]
    ) -> Float[Array, "B N P"]:
        """Predicts the samples of all N patches, visible ones included, in float32.

        Args:
            latent: normalised encoder tokens, CLS first, then the visible patches.
            restore: where to find each patch in [visible in the encoder's order, hidden].

        Raises:
            ValueError: `restore` does not hold one index for each patch of the grid.
        """
        dtype = jnp.dtype(self.dtype)
        rows, columns = self.leads // self.patch[0], self.samples // self.patch[1]
        count = rows * columns
        if restore.shape[1] != count:
            raise ValueError(
                f"mae_decoder: 'restore' has {restore.shape[1]} patches, expected {count} = "
                f"{rows} x {columns}; give encoder and decoder the same leads, samples and patch"
            )
        kernel_init = nn.initializers.xavier_uniform()

        embedded = Dense(self.width, kernel_init=kernel_init, dtype=dtype, name="embed")(latent)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        pos_embed = self.param("pos_embed", self._positions_init, (1, 1 + count, self.width))
        hidden_shape = (len(latent), 1 + count - latent.shape[1], self.width)
        hidden = jnp.broadcast_to(mask_token.astype(dtype), hidden_shape)
        shuffled = jnp.concatenate([embedded[:, 1:], hidden], axis=1)
        # Each place is read once, so the gradient needs no atomic additions on a GPU.
        record = jnp.arange(len(latent))[:, None]
        patches = shuffled.at[record, restore].get(mode="promise_in_bounds", unique_indices=True)
        tokens = jnp.concatenate([embedded[:, :1], patches], axis=1) + pos_embed.astype(dtype)

        for i in range(self.depth):
            block = Block(
                self.heads, self.mlp_ratio, kernel_init=kernel_init, dtype=dtype, name=f"block_{i}"
            )
            tokens = block(tokens)
        tokens = layer_norm("norm", dtype)(tokens[:, 1:])
        predict = Dense(
            self.patch[0] * self.patch[1], kernel_init=kernel_init, dtype=dtype, name="predict"
        )
        return predict(tokens).astype(jnp.float32)

    def _positions_init(self, key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "1 N+1 D"]:
        del key  # a table, nothing to draw
        columns = self.samples // self.patch[1]
        return jnp.asarray(sincos_table(shape[2], (shape[1] - 1) // columns, columns))
