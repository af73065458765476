"""CMR augmentation (Section IV-C.2): heart crop, flip, rotation, colour jitter, resized crop.

All geometry is one bilinear resampling of the source frame, so that nothing is interpolated twice.
The three cardiac phases (ES, mid, ED) are treated as the channels of an RGB image.
One image and one key in, no batch dimension; `views.py` maps it over the batch on the device.

Differs from torchvision, which augments in separate steps: the rotation is bilinear instead of
nearest, and the colours are jittered after the resized crop, so that the mean in `contrast` is
that of the result.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

# Draws of the random resized crop; if none fits, the largest centred window is taken.
_CROP_TRIES = 10


@dataclasses.dataclass(frozen=True)
class CmrAugmentation:
    """Heart crop, horizontal flip, rotation, random resized crop and colour jitter.

    Attributes:
        size: rows and columns of the result.
        crop_heart: take the heart box as the image; otherwise the whole frame.
        box: top, left, height, width of one box for all subjects, instead of each subject's own.
        flip_probability: rate of the horizontal flip.
        rotation_probability: rate of the rotation.
        degrees: the angle is uniform in [-degrees, degrees].
        brightness, contrast, saturation: each factor is uniform in [1 - x, 1 + x].
        scale: range of the area of the random resized crop, as a share of the image.
        ratio: range of its width / height, drawn log-uniformly.
        probability: rate at which an image is augmented at all.
    """

    size: int = 210
    crop_heart: bool = True
    box: tuple[int, int, int, int] | None = None
    flip_probability: float = 0.5
    rotation_probability: float = 0.5
    degrees: float = 45.0
    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.25
    scale: tuple[float, float] = (0.6, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    probability: float = 0.95

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"CMR augmentation: size must be at least 1 pixel, got {self.size}")
        for name in ("flip_probability", "rotation_probability", "probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"CMR augmentation: {name} must lie in [0, 1], got {getattr(self, name)}"
                )
        for name in ("degrees", "brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"CMR augmentation: {name} must not be negative, got {getattr(self, name)}"
                )
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(
                    f"CMR augmentation: {name} must be (low, high) with 0 < low <= high,"
                    f" got {getattr(self, name)}"
                )

    def __call__(
        self, key: Key[Array, ""], frames: Float[Array, "H W 3"], box: Int[Array, "4"]
    ) -> Float[Array, "size size 3"]:
        """An augmented image; with rate 1 - `probability` the image of `clean`.

        Args:
            key: one random key.
            frames: intensities in [0, 1]; channels ES, mid, ED.
            box: heart box in pixels: top, left, height, width. Not read unless `crop_heart`.
        """
        chance_key, angle_key, window_key, jitter_key = jax.random.split(key, 4)
        rates = jnp.array([self.probability, self.flip_probability, self.rotation_probability])
        gate, flip, rotate = jax.random.uniform(chance_key, (3,)) < rates
        limit = math.radians(self.degrees)
        angle = jax.random.uniform(angle_key, minval=-limit, maxval=limit)
        box = self._box(frames, box)
        window = random_window(window_key, box[2], box[3], scale=self.scale, ratio=self.ratio)
        strengths = (self.brightness, self.contrast, self.saturation)
        order, factors = random_jitter(jitter_key, strengths)

        # Without augmentation every parameter is neutral, which leaves the clean image.
        flip = gate & flip
        angle = jnp.where(gate & rotate, angle, 0.0)
        window = jnp.where(gate, window, _whole(box))
        factors = jnp.where(gate, factors, 1.0)
        image = warp(frames, box, window, angle=angle, flip=flip, size=self.size)
        return colour_jitter(image, order, factors)

    def clean(
        self, frames: Float[Array, "H W 3"], box: Int[Array, "4"]
    ) -> Float[Array, "size size 3"]:
        """The heart box (or the whole frame), only resized: bilinear, half-pixel centres."""
        if not self.crop_heart and frames.shape[:2] == (self.size, self.size):
            return frames
        box = self._box(frames, box)
        return warp(frames, box, _whole(box), angle=0.0, flip=False, size=self.size)

    def _box(self, frames: Float[Array, "H W 3"], box: Int[Array, "4"]) -> Int[Array, "4"]:
        if not self.crop_heart:
            return jnp.array([0, 0, *frames.shape[:2]], jnp.int32)
        return box if self.box is None else jnp.array(self.box, jnp.int32)


def warp(
    frames: Float[Array, "H W 3"],
    box: Int[Array, "4"],
    window: Float[Array, "4"],
    *,
    angle: float | Float[Array, ""],
    flip: bool | Bool[Array, ""],
    size: int,
) -> Float[Array, "size size 3"]:
    """Crop to the box, flip, rotate, crop to the window and resize, in one bilinear resampling.

    Pixels have half-pixel centres and there is no antialiasing (PyTorch's `align_corners=False`).
    What a rotation brings in from beyond the box is 0; up to half a pixel beyond its border, and
    beyond that of the window, the border pixels are repeated.

    Args:
        frames: source image.
        box: the part that is the image: top, left, height, width in source pixels.
        window: the part of the flipped and rotated image to keep: top, left, height, width.
        angle: radians, counter-clockwise about the centre of the box.
        flip: mirror left and right, before the rotation.
        size: rows and columns of the result.
    """
    top, left, height, width = box.astype(jnp.float32)
    # Rows and columns in the rotated image: [size] each.
    rows = window[0] + _source_positions(window[2], size)
    columns = window[1] + _source_positions(window[3], size)
    down = rows - (height - 1) / 2
    right = columns - (width - 1) / 2
    # Back through the rotation: [size, size].
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y = (cos * down)[:, None] + (sin * right)[None, :] + (height - 1) / 2
    x = (cos * right)[None, :] - (sin * down)[:, None] + (width - 1) / 2
    inside = (y >= -0.5) & (y <= height - 0.5) & (x >= -0.5) & (x <= width - 0.5)
    x = jnp.where(flip, width - 1 - x, x)
    y = jnp.clip(y, 0, height - 1) + top
    x = jnp.clip(x, 0, width - 1) + left
    return jnp.where(inside[..., None], _bilinear(frames, y, x), 0.0)


def random_window(
    key: Key[Array, ""],
    height: Int[Array, ""],
    width: Int[Array, ""],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Float[Array, "4"]:
    """Window of torchvision's RandomResizedCrop: top, left, height, width in whole pixels.

    The first of ten draws of (area, aspect ratio) that fits the image is taken; if none fits, the
    largest centred window within the range of ratios.
    """
    shape_key, place_key = jax.random.split(key)
    shapes = jax.random.uniform(shape_key, (2, _CROP_TRIES))
    full_height, full_width = height.astype(jnp.float32), width.astype(jnp.float32)
    area = full_height * full_width * (scale[0] + (scale[1] - scale[0]) * shapes[0])
    aspect = ratio[0] * (ratio[1] / ratio[0]) ** shapes[1]
    heights = jnp.round(jnp.sqrt(area / aspect))
    widths = jnp.round(jnp.sqrt(area * aspect))
    fits = (heights > 0) & (heights <= full_height) & (widths > 0) & (widths <= full_width)
    first = jnp.argmax(fits)
    found = fits[first]

    fallback_height = jnp.minimum(full_height, jnp.round(full_width / ratio[0]))
    fallback_width = jnp.minimum(full_width, jnp.round(full_height * ratio[1]))
    kept_height = jnp.where(found, heights[first], fallback_height)
    kept_width = jnp.where(found, widths[first], fallback_width)
    spare = jnp.stack([full_height - kept_height, full_width - kept_width])
    # The product may round up to spare + 1.
    drawn = jnp.minimum(jnp.floor(jax.random.uniform(place_key, (2,)) * (spare + 1)), spare)
    corner = jnp.where(found, drawn, jnp.floor(spare / 2))
    return jnp.stack([*corner, kept_height, kept_width])


def random_jitter(
    key: Key[Array, ""], strengths: tuple[float, float, float]
) -> tuple[Int[Array, "3"], Float[Array, "3"]]:
    """Order and factors of `colour_jitter`; each factor is uniform in [max(0, 1 - x), 1 + x]."""
    order_key, factor_key = jax.random.split(key)
    low = jnp.array([max(0.0, 1 - strength) for strength in strengths])
    high = jnp.array([1 + strength for strength in strengths])
    factors = jax.random.uniform(factor_key, (3,), minval=low, maxval=high)
    return jnp.argsort(jax.random.uniform(order_key, (3,))), factors


def colour_jitter(
    image: Float[Array, "H W 3"], order: Int[Array, "3"], factors: Float[Array, "3"]
) -> Float[Array, "H W 3"]:
    """Brightness (0), contrast (1) and saturation (2) in the given order, as in torchvision.

    Each blends the image with another one, factor * image + (1 - factor) * other, and clips to
    [0, 1]. The other is black for brightness, the grey version of the image for saturation, and
    the mean of that for contrast.

    Args:
        image: intensities in [0, 1].
        order: the operation at each of the three steps.
        factors: of brightness, contrast and saturation, in this order whatever `order` is.
    """

    def step(image, operation):
        grey = 0.2989 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
        other = jnp.where(operation == 1, jnp.mean(grey), grey)
        other = jnp.where(operation == 0, 0.0, other)[..., None]
        factor = factors[operation]
        return jnp.clip(factor * image + (1 - factor) * other, 0, 1), None

    # A loop and not three unrolled steps: XLA would fuse the resampling that made the image into
    # each of its readers and compute it anew there, which is several times slower on a CPU.
    return jax.lax.scan(step, image, order)[0]


def _whole(box: Int[Array, "4"]) -> Float[Array, "4"]:
    return box.astype(jnp.float32) * jnp.array([0.0, 0.0, 1.0, 1.0])


def _source_positions(length: Float[Array, ""], size: int) -> Float[Array, " size"]:
    """Positions, in pixels of an axis of `length`, of the `size` pixels it is resized to."""
    positions = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (length / size) - 0.5
    return jnp.clip(positions, 0, length - 1)


def _bilinear(
    frames: Float[Array, "H W 3"], y: Float[Array, "h w"], x: Float[Array, "h w"]
) -> Float[Array, "h w 3"]:
    """Values at (y, x), which lie within the frame."""
    last_row, last_column = frames.shape[0] - 1, frames.shape[1] - 1
    above, before = jnp.floor(y), jnp.floor(x)
    down, right = (y - above)[..., None], (x - before)[..., None]
    # A box that reaches beyond the frame reads the frame's border pixels.
    above = jnp.clip(above.astype(jnp.int32), 0, last_row)
    before = jnp.clip(before.astype(jnp.int32), 0, last_column)
    below = jnp.minimum(above + 1, last_row)
    after = jnp.minimum(before + 1, last_column)

    def read(row, column):
        return frames.at[row, column].get(mode="promise_in_bounds")

    upper = read(above, before) * (1 - right) + read(above, after) * right
    lower = read(below, before) * (1 - right) + read(below, after) * right
    return upper * (1 - down) + lower * down
