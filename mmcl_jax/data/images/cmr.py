"""From three short-axis frames to the image that the encoder reads, and the box around the heart.

The channels are end-systole (ES), the frame midway through systole, and end-diastole (ED) of the
middle slice. Pixels keep their native size: frames are padded or cropped about their centre, never
resampled. Paper IV-A; the clipping and the order of the channels follow the published code.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

# Crop of the published code for UK Biobank images: top, left, height, width in pixels.
CONSTANT_BOX = (44, 68, 78, 78)


@dataclasses.dataclass(frozen=True)
class CmrSettings:
    """What decides whether two prepared images are comparable.

    Attributes:
        size: rows and columns.
        clip: quantile of the intensity above which everything is white.
    """

    size: int = 210
    clip: float = 0.99

    def as_dict(self) -> dict[str, Any]:
        """The settings and the order of the channels as plain JSON values."""
        return {"channels": ["ES", "mid", "ED"], **dataclasses.asdict(self)}


DEFAULT = CmrSettings()


def stack_frames(
    es: Float[np.ndarray, "h w"],
    mid: Float[np.ndarray, "h w"],
    ed: Float[np.ndarray, "h w"],
    settings: CmrSettings = DEFAULT,
) -> UInt8[np.ndarray, "H W 3"]:
    """Clips, scales to 0-255 and brings to [210, 210] three frames of the same slice.

    One scale serves the three frames, so that an intensity means the same in each of them.

    Raises:
        ValueError: the frames are no images of one shape, hold NaN, or show nothing.
    """
    if es.ndim != 2 or not es.shape == mid.shape == ed.shape:
        raise ValueError(f"frames have shapes {es.shape}, {mid.shape}, {ed.shape}, expected one")
    frames = np.stack([es, mid, ed], axis=-1).astype(np.float64)
    if not np.isfinite(frames).all():
        raise ValueError("a frame holds NaN or infinite values")
    low, high = frames.min(), np.quantile(frames, settings.clip)
    if high <= low:
        raise ValueError("the frames show nothing: all but the brightest 1 % have one intensity")
    scaled = np.clip((frames - low) / (high - low), 0.0, 1.0)
    return fit(np.rint(scaled * 255.0).astype(np.uint8), settings.size)


def fit(image: np.ndarray, size: int = DEFAULT.size) -> np.ndarray:
    """Zero-pads or crops the first two axes about the centre to [size, size]."""
    fitted = np.zeros((size, size, *image.shape[2:]), dtype=image.dtype)
    source, target = [], []
    for length, shift in zip(image.shape, offset(image.shape, size), strict=False):
        source.append(slice(max(0, -shift), min(length, size - shift)))
        target.append(slice(max(0, shift), min(size, length + shift)))
    fitted[tuple(target)] = image[tuple(source)]
    return fitted


def offset(shape: tuple[int, ...], size: int = DEFAULT.size) -> tuple[int, int]:
    """What `fit` adds to a row and to a column number."""
    return (size - shape[0]) // 2, (size - shape[1]) // 2


def box_around_mask(
    mask: Bool[np.ndarray, "h w"], margin: float = 0.5, size: int = DEFAULT.size
) -> tuple[int, int, int, int]:
    """Square box around a segmented left ventricle.

    Args:
        mask: true on the left ventricle, in the pixels of the frames before `fit`.
        margin: on each side, as a share of the longer extent of the mask. Half of it takes in the
            right ventricle.

    Returns:
        Top, left, height, width in the pixels after `fit`.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.nonzero(mask)
    if not rows.size:
        raise ValueError("the mask of the left ventricle is empty")
    centre = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
    extent = max(np.ptp(rows), np.ptp(columns)) + 1
    return box_around(centre, extent * (1 + 2 * margin), mask.shape, size)


def box_around(
    centre: tuple[float, float], side: float, shape: tuple[int, ...], size: int = DEFAULT.size
) -> tuple[int, int, int, int]:
    """Square box of `side` pixels about a point of a frame, moved into the image if need be.

    Args:
        centre: row and column in the pixels of the frames before `fit`.
        shape: of the frames before `fit`.

    Returns:
        Top, left, height, width in the pixels after `fit`.
    """
    side = min(max(1, round(side)), size)
    corner = []
    for position, shift in zip(centre, offset(shape, size), strict=True):
        # Pixel p covers [p - 0.5, p + 0.5].
        first = round(position + shift + 0.5 - side / 2)
        corner.append(min(max(0, first), size - side))
    return corner[0], corner[1], side, side


def phases(area: Float[np.ndarray, " T"]) -> tuple[int, int, int]:
    """Frames of ES, mid-systole and ED from the area or volume of the left ventricle.

    ED is the largest, ES the smallest. The mid frame lies halfway from ED to ES in time, across the
    end of the cycle if need be: a cine covers one cycle, whichever frame it starts with. With ED at
    frame 0 that is half the number of ES, as in the published code.

    Raises:
        ValueError: fewer than 3 frames, or an area that never changes.
    """
    frames = len(area)
    if frames < 3:
        raise ValueError(f"{frames} frames in a cycle, expected at least 3")
    ed, es = int(np.argmax(area)), int(np.argmin(area))
    if area[ed] == area[es]:
        raise ValueError("the left ventricle never changes: ED and ES cannot be told apart")
    return es, mid_frame(ed, es, frames), ed


def mid_frame(ed: int, es: int, frames: int) -> int:
    """The frame halfway from ED to ES in a cycle of `frames`, see `phases`."""
    return (ed + (es - ed) % frames // 2) % frames
