"""Figures of the interpretability module: similarity maps over CMR frames and over ECG leads.

Colours are those of Fig. 6 of the paper: RdBu reversed from -1 (blue) to 1 (red), half transparent.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmcl_jax.figures import figure_grid

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
SAMPLES_PER_SECOND = 500

_COLOURS = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1, "alpha": 0.5}
_ES, _MID, _ED = 0, 1, 2  # channels of a CMR array


def cmr_similarity(
    frames: Float[np.ndarray, "N H W 3"],
    similarity: Float[np.ndarray, "N h w"],
    whole: Float[np.ndarray, "N H W 3"],
    box: Int[np.ndarray, "N 4"],
    names: Sequence[str],
) -> Figure:
    """One column per subject: whole frame with crop box, ES, mid, ED, and the similarity map.

    Args:
        frames: what the encoder saw, after the crop to the heart, in [0, 1]; channels ES, mid, ED.
        similarity: cosine between the ECG projection and each location of the CMR feature map. The
            picture enlarges it bilinearly; the range above the map is that of the map itself.
        whole: the frames before the crop.
        box: top, left, height, width of the crop in pixels of `whole`.
        names: title of each column.
    """
    count, size = len(frames), frames.shape[1]
    rows = (
        "whole frame, crop box",
        "end-systole",
        "mid-phase",
        "end-diastole",
        "similarity, mid-phase",
    )
    with figure_grid(1.75 * count + 1.0, 9.4, rows=len(rows), columns=count) as (figure, axes):
        for column in range(count):
            top, left, height, width = (int(value) for value in box[column])
            pictures = [whole[column, ..., _MID]]
            pictures += [frames[column, ..., phase] for phase in (_ES, _MID, _ED, _MID)]
            for axis, picture in zip(axes[:, column], pictures, strict=True):
                axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
            # Pixel centres lie at whole numbers, so a pixel begins half a pixel before.
            axes[0, column].add_patch(
                Rectangle(
                    (left - 0.5, top - 0.5), width, height, fill=False, edgecolor="#FFB000", lw=1.5
                )
            )
            axes[0, column].set_title(names[column])
            grid = similarity[column]
            image = axes[-1, column].imshow(enlarge(grid, size), **_COLOURS)
            axes[-1, column].set_title(f"{grid.min():.2f} to {grid.max():.2f}", fontsize=8)
        for axis, label in zip(axes[:, 0], rows, strict=True):
            axis.set_ylabel(label)
        figure.colorbar(image, ax=axes[-1, :], shrink=0.9, label="cosine similarity")
    return figure


def cmr_similarity_of_methods(
    frames: Float[np.ndarray, "N H W 3"],
    similarity: Mapping[str, Float[np.ndarray, "N h w"]],
    names: Sequence[str],
) -> Figure:
    """One column per subject: the mid-phase frame, and below it the map of each method.

    Arguments as those of `cmr_similarity`; `similarity` has one entry per method.
    """
    count, size = len(frames), frames.shape[1]
    rows = 1 + len(similarity)
    with figure_grid(1.75 * count + 1.4, 1.95 * rows, rows=rows, columns=count) as (figure, axes):
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for column, name in enumerate(names):
            for axis in axes[:, column]:
                axis.imshow(frames[column, ..., _MID], cmap="gray", vmin=0, vmax=1)
            axes[0, column].set_title(name)
            for axis, grids in zip(axes[1:, column], similarity.values(), strict=True):
                image = axis.imshow(enlarge(grids[column], size), **_COLOURS)
                axis.set_title(
                    f"{grids[column].min():.2f} to {grids[column].max():.2f}", fontsize=8
                )
        for axis, label in zip(axes[:, 0], ("mid-phase frame", *similarity), strict=True):
            axis.set_ylabel(label)
        figure.colorbar(image, ax=axes, shrink=0.6, label="cosine similarity")
    return figure


def ecg_similarity(
    ecg: Float[np.ndarray, "L T"], similarity: Float[np.ndarray, "L n"], title: str = ""
) -> Figure:
    """12 leads over time; the background of a patch is its cosine similarity to the CMR projection.

    `ecg` is the encoder's input (standard deviations of the lead's group), 500 samples per second;
    `similarity` has one value per patch, T / n samples (0.2 s) long.
    """
    samples = ecg.shape[1]
    seconds = samples / SAMPLES_PER_SECOND
    time = np.arange(samples) / SAMPLES_PER_SECOND
    low, high = np.percentile(ecg, (0.1, 99.9))
    margin = 0.15 * (high - low)
    limits = (low - margin, high + margin)
    with figure_grid(11, 8.2, rows=6, columns=2) as (figure, axes):
        # Column-wise: limb leads on the left, chest leads on the right.
        for axis, lead, signal, patches in zip(axes.T.flat, LEADS, ecg, similarity, strict=True):
            image = axis.imshow(
                patches[None, :], extent=(0, seconds, *limits), aspect="auto", **_COLOURS
            )
            axis.plot(time, signal, color="black", linewidth=0.7)
            axis.set(xlim=(0, seconds), ylim=limits)
            axis.set_ylabel(lead, rotation=0, ha="right", va="center", fontweight="bold")
            axis.tick_params(labelbottom=axis in axes[-1])
        for axis in axes[-1]:
            axis.set_xlabel("time [s]")
        figure.supylabel("amplitude [standard deviations]", fontsize=9)
        spread = f"{similarity.min():.2f} to {similarity.max():.2f}"
        figure.suptitle(f"{title} (similarity {spread})".strip(), fontsize=11)
        figure.colorbar(image, ax=axes, shrink=0.6, label="cosine similarity")
    return figure


def enlarge(grid: Float[np.ndarray, "h w"], size: int) -> Float[np.ndarray, "H W"]:
    """Bilinear enlargement to `size` x `size`, half-pixel centres, edge values continued."""
    rows, columns = ((np.arange(size) + 0.5) * length / size - 0.5 for length in grid.shape)
    tall = np.stack([np.interp(rows, np.arange(len(line)), line) for line in grid.T], axis=1)
    return np.stack([np.interp(columns, np.arange(len(line)), line) for line in tall])
