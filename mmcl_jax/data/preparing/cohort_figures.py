"""A picture of a few records of a prepared cohort, for the eye: frames, heart box, ECG leads.

`write_preview` draws preview.png in the folder of the cohort; `histogram` is for its report.
"""

import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from mmcl_jax.data.cohort import Cohort, open_cohort
from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.figures import COLOURS, new_figure, png

PREVIEW = "preview.png"
SAMPLES_PER_SECOND = 500
SECONDS = 5

_SUBJECTS, _ECGS = 3, 2
_PHASES = ("ES", "mid", "ED")  # channels of a CMR array


def write_preview(cohort_path: str | os.PathLike) -> pathlib.Path:
    """Draws up to 3 subjects with CMR frames and up to 2 with an ECG; returns the path of the PNG.

    They are the first of the training, then of the other splits, one record per person, and the
    ECGs of the subjects with frames come first. The file carries a sentence that names the
    records, see `shown`.

    Raises:
        FileNotFoundError, CohortError: there is no usable cohort, see `open_cohort`.
    """
    cohort = open_cohort(cohort_path)
    with_cmr = _first_subjects(cohort, "has_cmr", _SUBJECTS)
    with_ecg = _first_subjects(cohort, "has_ecg", _ECGS, preferred=with_cmr)
    image_names, ecg_names = _records(cohort, with_cmr), _records(cohort, with_ecg)
    kind = "Simulated subjects" if cohort.source_name == "synthetic" else "Recordings"
    title = f"{kind} (source: {cohort.source_name})"
    figure = preview(
        title,
        images=_read(cohort, with_cmr, "cmr"),
        boxes=_read(cohort, with_cmr, "cmr_box"),
        image_names=image_names,
        ecgs=_read(cohort, with_ecg, "ecg"),
        ecg_names=ecg_names,
    )
    parts = []
    if image_names:
        parts.append(f"the ES, mid and ED frames of {', '.join(image_names)} with the heart box")
    if ecg_names:
        parts.append(f"the first {SECONDS} s of the preprocessed ECG of {', '.join(ecg_names)}")
    text = f"{title}: {', and '.join(parts)}."
    file = cohort.path / PREVIEW
    partial = file.with_name(f"{PREVIEW}.partial")
    partial.write_bytes(png(figure, text))
    partial.replace(file)
    return file


def shown(file: str | os.PathLike) -> str:
    """The sentence in a preview that says what it shows; '' in a picture without one."""
    with PIL.Image.open(file) as image:
        return str(image.info.get("Description", ""))


def preview(
    title: str,
    *,
    images: UInt8[np.ndarray, "N H W 3"],
    boxes: Int[np.ndarray, "N 4"],
    image_names: Sequence[str],
    ecgs: Float[np.ndarray, "M 12 T"],
    ecg_names: Sequence[str],
) -> Figure:
    """A row per CMR (ES, mid, ED with the heart box; the crop of ED), below it the ECGs.

    Args:
        images: channels ES, mid, ED.
        boxes: top, left, height, width in pixels of `images`.
        ecgs: 500 samples per second, after preprocessing; the first 5 s are drawn.

    Raises:
        ValueError: there is nothing to draw.
    """
    heights = [2.5] * len(images) + ([5.2] if len(ecgs) else [])
    if not heights:
        raise ValueError("a preview needs a record with CMR frames or with an ECG")
    with new_figure(9.2, sum(heights) + 0.3) as figure:
        figure.suptitle(title, fontsize=11)
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        rows = zip(parts[: len(images)], images, boxes, image_names, strict=True)
        for part, image, box, name in rows:
            _draw_cmr(part, image, box, name)
        if len(ecgs):
            axes = parts[-1].subplots(1, len(ecgs), squeeze=False, sharey=True)[0]
            step = _spacing(ecgs)
            for axis, ecg, name in zip(axes, ecgs, ecg_names, strict=True):
                _draw_ecg(axis, ecg, step, name)
            axes[0].set_ylabel(f"lead (lines {step:g} standard deviations apart)")
    return figure


def histogram(
    values: Mapping[str, Float[np.ndarray, " n"]], label: str, bins: int = 24
) -> Figure | None:
    """Shares of the records of each split by value; None where no value is known.

    Args:
        values: by split, NaN where missing.
        label: of the axis, with its unit.
    """
    known = {split: column[~np.isnan(column)] for split, column in values.items()}
    known = {split: column for split, column in known.items() if len(column)}
    if not known:
        return None
    everything = np.concatenate(list(known.values()))
    edges = np.histogram_bin_edges(everything, bins)
    with new_figure(7.0, 2.8) as figure:
        axis = figure.subplots()
        for colour, (split, column) in zip(COLOURS, known.items(), strict=False):
            shares = np.histogram(column, edges)[0] / len(column)
            axis.stairs(100 * shares, edges, color=colour, label=f"{split}, {len(column):,}")
        axis.set(xlabel=label, ylabel="share of the records [%]")
        axis.legend()
        axis.grid(True, axis="y")
    return figure


def _draw_cmr(part: SubFigure, image: np.ndarray, box: np.ndarray, name: str) -> None:
    top, left, height, width = (int(value) for value in box)
    axes = part.subplots(1, len(_PHASES) + 1)
    part.suptitle(_short(name), x=0.01, ha="left", fontsize=9, fontweight="bold")
    for channel, (axis, phase) in enumerate(zip(axes[:-1], _PHASES, strict=True)):
        _draw_image(axis, image[..., channel], phase)
        # Pixel centres lie at whole numbers, so a pixel begins half a pixel before.
        corner = (left - 0.5, top - 0.5)
        axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="#FFB000", lw=1.2))
    crop = image[top : top + height, left : left + width, _PHASES.index("ED")]
    _draw_image(axes[-1], crop, "ED, heart box")


def _draw_image(axis: Axes, image: UInt8[np.ndarray, "H W"], title: str) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=9)


def _draw_ecg(axis: Axes, ecg: Float[np.ndarray, "12 T"], step: float, name: str) -> None:
    """12 leads below each other, `step` apart."""
    window = ecg[:, : SECONDS * SAMPLES_PER_SECOND]
    time = np.arange(window.shape[1]) / SAMPLES_PER_SECOND
    levels = -step * np.arange(len(LEADS))
    axis.plot(time, window.T + levels[None, :], color="black", linewidth=0.6)
    axis.set_title(_short(name), fontsize=9, fontweight="bold", loc="left")
    axis.set(xlim=(0, SECONDS), xlabel="time [s]")
    axis.margins(y=0.02)
    axis.set_yticks(levels, LEADS)
    axis.tick_params(axis="y", length=0, labelleft=True)
    axis.grid(True, axis="x")


def _spacing(ecgs: Float[np.ndarray, "M 12 T"]) -> float:
    """Whole number of standard deviations at which neighbouring leads hardly overlap."""
    low, high = np.percentile(ecgs[..., : SECONDS * SAMPLES_PER_SECOND], (0.2, 99.8))
    return max(1.0, float(np.ceil(0.8 * (high - low))))


def _first_subjects(
    cohort: Cohort, column: str, most: int, preferred: Sequence[tuple[str, int]] = ()
) -> list[tuple[str, int]]:
    """Split and row of the first records that have a modality, one per person."""
    found: dict[str, tuple[str, int]] = {}
    every = ((split, row) for split, size in cohort.splits.items() for row in range(size))
    for split, row in itertools.chain(preferred, every):
        table = cohort.table(split)
        if table[column][row]:
            found.setdefault(str(table["subject"][row]), (split, row))
        if len(found) == most:
            break
    return list(found.values())


def _records(cohort: Cohort, places: Sequence[tuple[str, int]]) -> list[str]:
    return [str(cohort.table(split)["record"][row]) for split, row in places]


def _read(cohort: Cohort, places: Sequence[tuple[str, int]], field: str) -> np.ndarray:
    return np.array([cohort.source(split, (field,))[row][field] for split, row in places])


def _short(name: str, most: int = 48) -> str:
    """The name, with its middle left out where it is longer than its place."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[1 - most // 2 :]}"
