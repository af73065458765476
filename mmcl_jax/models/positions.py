"""Position embeddings: the frozen 2-D sin-cos table, and a change of the number of time columns."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def sincos_table(width: int, leads: int, columns: int) -> Float[np.ndarray, "1 N+1 D"]:
    """2-D sin-cos positions of a grid of leads and time columns; the CLS position is zero.

    The first half of the width encodes the time column, the second half the lead. Each half is
    [sin(p w_k), cos(p w_k)] with w_k = 10000^(-4k / width), k = 0 ... width / 4 - 1.

    Raises:
        ValueError: the width is not a multiple of 4.

    References:
        He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022.
    """
    if width % 4:
        raise ValueError(f"sin-cos positions: width {width} is no multiple of 4")
    lead, column = np.meshgrid(np.arange(leads), np.arange(columns), indexing="ij")
    halves = [_sincos(column.ravel(), width // 2), _sincos(lead.ravel(), width // 2)]
    table = np.concatenate([np.zeros((1, width)), np.concatenate(halves, axis=1)])
    return table[None].astype(np.float32)


def interpolate(
    table: Float[Array, "1 N+1 D"], leads: int, columns: int
) -> Float[Array, "1 M+1 D"]:
    """Stretches a table to another number of time columns; the leads and CLS stay as they are.

    Bicubic with a = -0.75, half-pixel centres and repeated border columns, no antialiasing: what
    PyTorch's `interpolate(mode="bicubic", align_corners=False)` computes. `jax.image.resize`
    differs (a = -0.5, antialiased).

    Args:
        table: positions of [CLS, lead 0 column 0, lead 0 column 1, ...].
        leads: leads of the grid, the same before and after.
        columns: time columns wanted.

    Raises:
        ValueError: the table does not hold a whole number of columns for each lead.
    """
    tokens = table.shape[1] - 1
    if tokens % leads:
        raise ValueError(
            f"position embedding: {tokens} tokens are no whole number of columns for {leads} "
            "leads; a pre-trained encoder can change its duration, not its leads"
        )
    old = tokens // leads
    if old == columns:
        return table
    grid = table[0, 1:].reshape(leads, old, -1)
    stretched = jnp.einsum("co,lod->lcd", jnp.asarray(_bicubic(old, columns)), grid)
    flat = stretched.reshape(1, leads * columns, -1).astype(table.dtype)
    return jnp.concatenate([table[:, :1], flat], axis=1)


def _sincos(position: Float[np.ndarray, " N"], width: int) -> Float[np.ndarray, "N width"]:
    frequency = 10000.0 ** (-np.arange(width // 2) / (width / 2))
    angle = position[:, None] * frequency[None, :]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def _bicubic(old: int, new: int, a: float = -0.75) -> Float[np.ndarray, "new old"]:
    """Rows of weights that resample `old` columns to `new` (cubic convolution, Keys 1981)."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old), np.float32)
    for tap in range(-1, 3):
        column = np.floor(centre).astype(int) + tap
        x = np.abs(centre - column)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        kernel = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
        np.add.at(weights, (np.arange(new), np.clip(column, 0, old - 1)), kernel)
    return weights
