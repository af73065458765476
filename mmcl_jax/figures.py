"""Figures of the report: arrays in, a matplotlib Figure out. `png` turns one into bytes.

Figures are made without pyplot, so no display, no global state and no open windows are involved.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence

import matplotlib
import numpy as np
import sklearn.metrics
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito's colours, which people with colour vision deficiency can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
DPI = 120

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    # Names of records and labels may hold '$', and then are no formulas.
    "text.parse_math": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}

Series = tuple[Sequence[float], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class RocCurve:
    """One curve: `name` is its legend entry, for example 'seed 0: 0.731 [0.702, 0.758]'."""

    name: str
    label: Float[np.ndarray, " N"]
    probability: Float[np.ndarray, " N"]


@dataclasses.dataclass(frozen=True)
class Scatter:
    """One phenotype: measured and predicted values in `unit`, NaN where not measured."""

    name: str
    unit: str
    measured: Float[np.ndarray, " N"]
    predicted: Float[np.ndarray, " N"]


def png(figure: Figure, description: str = "") -> bytes:
    """The figure as PNG; equal figures give equal bytes, because no version or date is written.

    `description` says in the file itself what the picture shows.
    """
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    metadata = {"Software": None} | ({"Description": description} if description else {})
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="png", dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as SVG, letters as outlines; equal figures give equal bytes, as `png`."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "mmcl_jax"}):
        figure.savefig(buffer, format="svg", dpi=DPI, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


@contextlib.contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """A new figure of `width` x `height` inches, in the style of the report."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), dpi=DPI, layout="constrained")


@contextlib.contextmanager
def figure_grid(
    width: float, height: float, *, rows: int = 1, columns: int = 1
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A new figure of `width` x `height` inches and its `[rows, columns]` axes."""
    with new_figure(width, height) as figure:
        yield figure, figure.subplots(rows, columns, squeeze=False)


def training_curves(
    title: str,
    runs: Mapping[str, Mapping[str, Series]],
    *,
    metric: str | None = None,
    rate: str = "learning_rate",
) -> Figure:
    """Loss, validation metric and learning rate of one stage against the optimiser step.

    Args:
        runs: run name (a seed; '' for a single run) -> series name -> (steps, values). The series
            'train/loss', 'val/loss', `metric` and `rate` are drawn; what no run has gets no panel.
        metric: name of the validation metric's series.
    """
    panels = [("loss", ("train/loss", "val/loss"))]
    if metric:
        panels.append((_words(metric), (metric,)))
    panels.append(("learning rate", (rate,)))
    panels = [(ylabel, names) for ylabel, names in panels if _has_any(runs, names)]
    single = len(runs) == 1
    with figure_grid(3.7 * len(panels), 3.0, columns=len(panels)) as (figure, axes):
        for axis, (ylabel, names) in zip(axes[0], panels, strict=True):
            for position, (run, series) in enumerate(runs.items()):
                for second, name in enumerate(names):
                    if name in series:
                        color = COLOURS[(second if single else position) % len(COLOURS)]
                        marker = "." if len(series[name][0]) == 1 else None
                        style = "--" if second else "-"
                        label = run if not single else _words(name)
                        axis.plot(
                            *series[name], color=color, linestyle=style, marker=marker, label=label
                        )
            both = not single and len(names) > 1 and all(_has_any(runs, [name]) for name in names)
            axis.set_xlabel("optimiser step")
            axis.set_ylabel(f"{ylabel}\nsolid: training, dashed: validation" if both else ylabel)
            axis.ticklabel_format(axis="y", scilimits=(-3, 4))
            axis.grid(True)
        if single:
            axes[0, 0].legend()
        else:
            # One entry per run: the other panels repeat its colour.
            handles = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
            solid = [Line2D([], [], color=line.get_color()) for line in handles.values()]
            figure.legend(solid, list(handles), loc="outside lower center", ncols=8)
        figure.suptitle(title, fontsize=11)
    return figure


def roc_curves(panels: Mapping[str, Sequence[RocCurve]]) -> Figure:
    """One panel per disease, in which each curve's legend entry carries its AUROC and interval.

    Each curve needs both classes. The title counts the records where all curves have the same.
    """
    columns = min(3, max(1, len(panels)))
    rows = -(-len(panels) // columns)
    with figure_grid(3.9 * columns, 4.1 * rows, rows=rows, columns=columns) as (figure, axes):
        for axis, (disease, curves) in _each(axes, panels.items()):
            axis.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":", label="chance")
            counts = set()
            for position, curve in enumerate(curves):
                known = ~np.isnan(curve.label)
                false, true, _ = sklearn.metrics.roc_curve(
                    curve.label[known], curve.probability[known]
                )
                counts.add(f"n = {known.sum():,}, {curve.label[known].sum():,.0f} with the label")
                color = COLOURS[position % len(COLOURS)]
                axis.plot(false, true, color=color, label=curve.name)
            axis.set_title(f"{disease} ({counts.pop()})" if len(counts) == 1 else disease)
            axis.set(xlabel="1 - specificity", ylabel="sensitivity")
            axis.set(xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
            axis.grid(True)
            axis.legend(loc="lower right", title="AUROC [95 % interval]", title_fontsize=8)
    return figure


def phenotype_scatter(
    panels: Sequence[Scatter], *, title: str = "", drawn: int = 500, seed: int = 0
) -> Figure:
    """Predicted against measured phenotypes, as Fig. 4 of the paper.

    At most `drawn` records of each panel are drawn. The regression line and r are those of all
    records. The dotted line is perfect prediction.
    """
    columns = min(5, max(1, len(panels)))
    rows = -(-len(panels) // columns)
    with figure_grid(2.35 * columns, 2.5 * rows, rows=rows, columns=columns) as (figure, axes):
        for axis, panel in _each(axes, panels):
            _scatter_panel(axis, panel, drawn, np.random.default_rng(seed))
        if title:
            figure.suptitle(title, fontsize=11)
    return figure


def _scatter_panel(axis: Axes, panel: Scatter, drawn: int, random: np.random.Generator) -> None:
    known = np.isfinite(panel.measured) & np.isfinite(panel.predicted)
    x, y = panel.measured[known], panel.predicted[known]
    title = panel.name
    if known.sum() > 1 and np.ptp(x) > 0 and np.ptp(y) > 0:
        r = np.corrcoef(x, y)[0, 1]
        title += f", r = {r:.2f}"
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        axis.plot([low, high], [low, high], color="#777777", linewidth=0.8, linestyle=":")
        ends = np.array([x.min(), x.max()])
        slope = r * y.std() / x.std()
        axis.plot(ends, y.mean() + slope * (ends - x.mean()), color=COLOURS[1])
        margin = 0.03 * (high - low)
        axis.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
    points = random.permutation(len(x))[:drawn]
    axis.scatter(x[points], y[points], s=5, color=COLOURS[0], alpha=0.35, linewidths=0)
    axis.set_title(title)
    unit = f" [{panel.unit}]" if panel.unit else ""
    axis.set(xlabel=f"measured{unit}", ylabel=f"predicted{unit}", aspect="equal")
    axis.locator_params(nbins=4)


def _each(axes: np.ndarray, items) -> Iterator[tuple[Axes, object]]:
    """Pairs the grid's axes with the items and hides the axes left over."""
    items = list(items)
    for axis in axes.flat[len(items) :]:
        axis.set_axis_off()
    return zip(axes.flat, items, strict=False)


def _has_any(runs: Mapping[str, Mapping[str, Series]], names: Sequence[str]) -> bool:
    return any(name in series for series in runs.values() for name in names)


def _words(name: str) -> str:
    """'val/auroc' as people write it."""
    part, _, rest = name.partition("/")
    known = {"auroc": "AUROC", "loss": "loss", "r": "r", "ap": "average precision", "r2": "R²"}
    part = {"train": "training", "val": "validation", "test": "test"}.get(part, part)
    return f"{part} {known.get(rest, rest.replace('_', ' '))}".strip()
