"""ResNet of the CMR frames (He et al., CVPR 2016), the same function as torchvision's.

The stride of a bottleneck sits on its 3x3 convolution ("v1.5"), padding is explicit and symmetric,
and batch normalisation keeps the unbiased running variance.
"""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from mmcl_jax.models.batch_norm import BatchNorm
from mmcl_jax.models.dense import rows_times
from mmcl_jax.models.max_pool import max_pool

# Blocks of the four layers, and whether they are bottlenecks.
SIZES = {18: ((2, 2, 2, 2), False), 50: ((3, 4, 6, 3), True)}


class Model(nn.Module):
    """Image encoder without the classification layer.

    Attributes:
        depth: 18 or 50.
        width: channels that leave the stem; 64 is torchvision's.
        rematerialise: compute each block again in the backward pass instead of keeping what is
            inside it: less memory, more time. XLA on a CPU undoes it.
        dtype: of the computation; parameters and statistics are float32.
    """

    depth: int = 50
    width: int = 64
    rematerialise: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, frames: Float[Array, "B H W 3"], *, train: bool = False) -> dict[str, Array]:
        """Encodes frames in [0, 1].

        With `train` the batch's own statistics normalise and the running ones move (collection
        'batch_stats' must be mutable). Under jit over several devices they are those of the
        global batch.

        Returns:
            'map' [B, h, w, C], the last feature map (7 x 7 x 2048 for 210 x 210 frames), and
            'features' [B, C], its mean in float32.
        """
        if self.depth not in SIZES:
            raise ValueError(f"resnet: depth {self.depth} is not one of {sorted(SIZES)}")
        dtype = jnp.dtype(self.dtype)
        norm = functools.partial(BatchNorm, dtype=dtype)
        counts, bottleneck = SIZES[self.depth]
        make = Bottleneck if bottleneck else Basic
        if self.rematerialise:
            make = nn.remat(make, static_argnums=(2,))

        x = Conv(self.width, 7, 2, dtype=dtype, name="conv1")(frames)
        x = nn.relu(norm(name="bn1")(x, train=train))
        x = max_pool(x)
        for layer, blocks in enumerate(counts):
            for i in range(blocks):
                stride = 2 if layer and i == 0 else 1
                block = make(
                    self.width * 2**layer, stride, dtype=dtype, name=f"layer{layer + 1}_{i}"
                )
                x = block(x, train)
        return {"map": x, "features": x.astype(jnp.float32).mean(axis=(1, 2))}


class Bottleneck(nn.Module):
    """1x1 to `width`, 3x3 with the stride, 1x1 to 4 `width`, around a shortcut."""

    width: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w C4"]:
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = functools.partial(BatchNorm, dtype=self.dtype)
        y = nn.relu(norm(name="bn1")(conv(self.width, 1, name="conv1")(x), train=train))
        y = conv(self.width, 3, self.stride, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y, train=train))
        y = norm(name="bn3")(conv(4 * self.width, 1, name="conv3")(y), train=train)
        if x.shape != y.shape:
            x = conv(4 * self.width, 1, self.stride, name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x, train=train)
        return nn.relu(x + y)


class Basic(nn.Module):
    """Two 3x3 convolutions around a shortcut, the first with the stride."""

    width: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w C"]:
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = functools.partial(BatchNorm, dtype=self.dtype)
        y = conv(self.width, 3, self.stride, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y, train=train))
        y = norm(name="bn2")(conv(self.width, 3, name="conv2")(y), train=train)
        if x.shape != y.shape:
            x = conv(self.width, 1, self.stride, name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x, train=train)
        return nn.relu(x + y)


class Conv(nn.Module):
    """Convolution without bias, padded by size // 2 on each side; Kaiming-normal over the outputs.

    A 1x1 convolution is computed as a matrix product of one row per location, which on a CPU is
    several times as fast.
    """

    channels: int
    size: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w channels"]:
        kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        shape = (self.size, self.size, x.shape[-1], self.channels)
        kernel = self.param("kernel", kernel_init, shape).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.size == 1:
            x = x[:, :: self.stride, :: self.stride]
            return rows_times(x, kernel[0, 0])
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.stride, self.stride),
            padding=((self.size // 2, self.size // 2),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
