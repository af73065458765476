"""Vision transformer of the 12-lead ECG: one token per lead and 0.2 s (Section IV-C)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from mmcl_jax.models.attention import SelfAttention
from mmcl_jax.models.dense import Dense, Initializer, rows_times, torch_uniform
from mmcl_jax.models.positions import sincos_table

POOLS = ("global", "attention", "cls", "none")
POSITIONS = ("sincos", "learned")


class Size(NamedTuple):
    """Fields of `Model` that make a size: `Model(**SIZES["small"]._asdict())`."""

    width: int
    depth: int
    heads: int


# The sizes that the authors' code names; "tiny" is the paper's encoder (Section IV-C).
SIZES = {
    "tiny": Size(384, 3, 6),
    "tiny_deep": Size(192, 12, 3),
    "small": Size(512, 4, 8),
    "small_deep": Size(384, 12, 6),
}


class Model(nn.Module):
    """ECG encoder: patch embedding, positions, CLS token, pre-norm transformer blocks, pooling.

    `positions` also chooses the initial values: "sincos" those of the masked autoencoder (a fixed
    table, Xavier-uniform kernels), "learned" those of a ViT trained from scratch (everything
    normal, sd 0.02). `pool` is one of

        global     fc_norm of the mean over the patch tokens
        attention  fc_norm of an attention pool over the patch tokens
        cls        norm of the CLS token
        none       no pooled features; norm of every token, which the MAE decoder reads
    """

    width: int = 384
    depth: int = 3
    heads: int = 6
    mlp_ratio: float = 4.0
    patch: tuple[int, int] = (1, 100)  # leads, samples
    leads: int = 12
    samples: int = 2500
    positions: str = "sincos"
    pool: str = "global"
    drop_path: float = 0.0  # rate of the last block; the others rise to it linearly from 0
    fc_norm_twice: bool = False  # applies fc_norm to its own output, as the published code does
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        ecg: Float[Array, "B L T"],
        *,
        train: bool = False,
        visible: Int[Array, "B Nv"] | None = None,
    ) -> dict[str, Array]:
        """Encodes recordings.

        Args:
            ecg: z-scored recordings of exactly `leads` and `samples`.
            train: drops residual branches (`drop_path`; draws from the stream of that name).
            visible: indices of the patches to read, in the order wanted; all if None.

        Returns:
            'tokens' [B, 1 + Nv, D]: what the last block puts out, CLS first. With pool "none" also
            'latent' [B, 1 + Nv, D], else 'features' [B, D] in float32.
        """
        self._check(ecg)
        dtype = jnp.dtype(self.dtype)
        mae = self.positions == "sincos"
        dense_init = nn.initializers.xavier_uniform() if mae else nn.initializers.normal(0.02)

        patches = patchify(ecg, self.patch)  # [B, N, P]
        count, samples = patches.shape[1:]
        cls_init = nn.initializers.normal(0.02 if mae else 1e-6)
        cls_token = self.param("cls_token", cls_init, (1, 1, self.width))
        pos_embed = self.param("pos_embed", self._positions_init, (1, 1 + count, self.width))
        position = pos_embed[:, 1:]  # [1, N, D]
        if visible is not None:
            # Gathered before the embedding: hidden patches cost nothing.
            patches = jnp.take_along_axis(patches, visible[:, :, None], axis=1)
            position = position[0][visible]  # [B, Nv, D]
        embed = Dense(
            self.width,
            kernel_init=dense_init if mae else torch_uniform(samples),
            bias_init=torch_uniform(samples),
            dtype=dtype,
            name="patch_embed",
        )
        tokens = embed(patches) + position.astype(dtype)
        first = jnp.broadcast_to(cls_token + pos_embed[:, :1], (ecg.shape[0], 1, self.width))
        tokens = jnp.concatenate([first.astype(dtype), tokens], axis=1)

        for i in range(self.depth):
            rate = self.drop_path * i / max(self.depth - 1, 1)
            block = Block(self.heads, self.mlp_ratio, rate, dense_init, dtype, name=f"block_{i}")
            tokens = block(tokens, train=train)

        if self.pool == "none":
            return {"tokens": tokens, "latent": layer_norm("norm", dtype)(tokens)}
        if self.pool == "cls":
            features = layer_norm("norm", jnp.float32)(tokens[:, 0])
            return {"tokens": tokens, "features": features}
        if self.pool == "global":
            pooled = tokens[:, 1:].astype(jnp.float32).mean(axis=1)
        else:
            pooled = AttentionPool(self.heads, dtype, name="attention_pool")(tokens[:, 1:])
        fc_norm = layer_norm("fc_norm", jnp.float32)
        features = fc_norm(pooled)
        return {"tokens": tokens, "features": fc_norm(features) if self.fc_norm_twice else features}

    def _positions_init(self, key: Array, shape: tuple[int, ...]) -> Float[Array, "1 N+1 D"]:
        if self.positions == "learned":
            return nn.initializers.normal(0.02)(key, shape)
        columns = self.samples // self.patch[1]
        return jnp.asarray(sincos_table(self.width, (shape[1] - 1) // columns, columns))

    def _check(self, ecg: Array) -> None:
        for field, value, known in (
            ("pool", self.pool, POOLS),
            ("positions", self.positions, POSITIONS),
        ):
            if value not in known:
                raise ValueError(f"vit: {field} is {value!r}, expected one of {known}")
        if ecg.shape[1:] != (self.leads, self.samples):
            raise ValueError(
                f"vit: got recordings of {ecg.shape[1:]} (leads, samples), expected "
                f"{(self.leads, self.samples)}; set the fields 'leads' and 'samples' of the model"
            )


class AttentionPool(nn.Module):
    """Multi-head attention with one query, the mean token; no position, no CLS (Section IV-C).

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
        ICML 2021, Section 2.4.
    """

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        batch, count, width = tokens.shape
        kernel, bias = _Stacked(width, 3 * width, name="in_proj")()
        kernel = kernel.astype(self.dtype)
        bias = bias.astype(self.dtype)
        # The mean token asks and all tokens answer, so queries of the tokens are not computed.
        mean = tokens.astype(jnp.float32).mean(axis=1).astype(self.dtype)
        query = rows_times(mean, kernel[:, :width]) + bias[None, :width]
        pairs = rows_times(tokens, kernel[:, width:]) + bias[None, None, width:]
        query = query.reshape(batch, self.heads, -1)
        pairs = pairs.reshape(batch, count, 2, self.heads, -1)

        scaled = query * query.shape[-1] ** -0.5
        logits = jnp.einsum(
            "bhd,bnhd->bhn", scaled, pairs[:, :, 0], preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        pooled = jnp.einsum("bhn,bnhd->bhd", weights, pairs[:, :, 1]).reshape(batch, width)
        out_proj = Dense(width, kernel_init=torch_uniform(width), dtype=self.dtype, name="out_proj")
        return out_proj(pooled)


class Block(nn.Module):
    """Pre-norm transformer block; each residual branch is dropped per example with `drop_path`."""

    heads: int
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B N D"], *, train: bool = False
    ) -> Float[Array, "B N D"]:
        width = tokens.shape[-1]
        attend = SelfAttention(self.heads, self.kernel_init, self.dtype, name="attention")
        mlp = Mlp(int(width * self.mlp_ratio), self.kernel_init, self.dtype, name="mlp")
        branch = attend(layer_norm("norm1", self.dtype)(tokens))
        tokens = tokens + self._drop(branch, train)
        branch = mlp(layer_norm("norm2", self.dtype)(tokens))
        return tokens + self._drop(branch, train)

    def _drop(self, branch: Float[Array, "B N D"], train: bool) -> Float[Array, "B N D"]:
        """Stochastic depth (Huang et al., ECCV 2016), scaled so that the mean stays."""
        if not train or (isinstance(self.drop_path, float) and self.drop_path == 0):
            return branch
        kept = 1 - self.drop_path
        draw = jax.random.bernoulli(self.make_rng("drop_path"), kept, (len(branch), 1, 1))
        # A rate that is traced is float32, which the branch would become too.
        return branch * (draw / kept).astype(branch.dtype)


class Mlp(nn.Module):
    """Dense, exact GELU, Dense."""

    hidden: int
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        fc1 = Dense(self.hidden, kernel_init=self.kernel_init, dtype=self.dtype, name="fc1")
        fc2 = Dense(tokens.shape[-1], kernel_init=self.kernel_init, dtype=self.dtype, name="fc2")
        return fc2(gelu(fc1(tokens)))


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exact GELU by the error function: half the time of `jax.nn.gelu` on a CPU, which uses erfc.

    Computed in float32. erfc keeps the relative precision of results near 0 at x < -3; here, as in
    PyTorch, their absolute error is 1e-7. The backward pass keeps x alone.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_distribution(wide)).astype(x.dtype)


def _gelu_forward(x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    return gelu(x), x


def _gelu_backward(x: Float[Array, "..."], gradient: Float[Array, "..."]) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * jnp.square(wide)) / (2 * jnp.pi) ** 0.5
    return ((gradient * (_normal_distribution(wide) + wide * density)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def _normal_distribution(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


def patchify(ecg: Float[Array, "B L T"], patch: tuple[int, int]) -> Float[Array, "B N P"]:
    """Cuts recordings into patches of (leads, samples), lead-major: token = row * columns + column.

    Raises:
        ValueError: the recording is no whole number of patches.
    """
    batch, leads, samples = ecg.shape
    if leads % patch[0] or samples % patch[1]:
        raise ValueError(
            f"patchify: {(leads, samples)} (leads, samples) is no whole number of patches {patch}"
        )
    grid = ecg.reshape(batch, leads // patch[0], patch[0], samples // patch[1], patch[1])
    return grid.swapaxes(2, 3).reshape(batch, -1, patch[0] * patch[1])


def layer_norm(name: str, dtype: jnp.dtype) -> nn.LayerNorm:
    """LayerNorm with eps 1e-6; statistics in float32 whatever the dtype."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)


class _Stacked(nn.Module):
    """Kernel [inputs, outputs] and bias of a projection whose parts are used one by one."""

    inputs: int
    outputs: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        shape = (self.inputs, self.outputs)
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), shape)
        return kernel, self.param("bias", nn.initializers.zeros_init(), shape[1:])
