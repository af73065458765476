"""Figures of the paper's report that no other part draws: low-data curves and reliability."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mmcl_jax.figures import COLOURS, new_figure
from mmcl_jax.statistics.calibration import Calibration

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")


@dataclasses.dataclass(frozen=True)
class LowDataCurve:
    """AUROC of one method against the share of training labels, with the 95 % interval.

    `low` and `high` are NaN where there is one seed only.
    """

    name: str
    fraction: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclasses.dataclass(frozen=True)
class LowDataPanel:
    """One disease: `records` are the training records of each share, '' where not known."""

    title: str
    curves: Sequence[LowDataCurve]
    records: Mapping[float, str]


def low_data(panels: Sequence[LowDataPanel]) -> Figure:
    """One panel per disease, as Fig. 5 of the paper: AUROC in per cent, labels on a log scale."""
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    with new_figure(3.9 * len(panels), 4.4) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            _low_data_panel(axis, panel, names)
        handles = {line.get_label(): line for axis in axes for line in axis.get_lines()}
        figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=6)
    return figure


def reliability(title: str, panels: Mapping[str, Calibration]) -> Figure:
    """One diagram per model: observed frequency against predicted probability, n of each bin."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with new_figure(2.9 * columns, 0.4 + 3.9 * rows) as figure:
        heights = [3, 1] * rows
        axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=heights)
        for axis in axes.flat:
            axis.set_axis_off()
        for position, (name, found) in enumerate(panels.items()):
            row, column = divmod(position, columns)
            _reliability_panel(axes[2 * row, column], axes[2 * row + 1, column], name, found)
        figure.suptitle(title, fontsize=11)
    return figure


def _low_data_panel(axis: Axes, panel: LowDataPanel, names: Sequence[str]) -> None:
    for curve in panel.curves:
        position = names.index(curve.name)
        color = COLOURS[position % len(COLOURS)]
        marker = _MARKERS[position % len(_MARKERS)]
        style = "-" if position < len(COLOURS) else "--"
        width = 2.5 if "(ours)" in curve.name else 1.3
        axis.plot(
            curve.fraction, np.multiply(curve.mean, 100), color=color, marker=marker,
            markersize=4, linestyle=style, linewidth=width, label=curve.name,
        )  # fmt: skip
        axis.fill_between(
            curve.fraction, np.multiply(curve.low, 100), np.multiply(curve.high, 100),
            color=color, alpha=0.12, linewidth=0,
        )  # fmt: skip
    shares = sorted(panel.records)
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    ticks = [
        f"{100 * share:g} %" + (f"\nn = {panel.records[share]}" if panel.records[share] else "")
        for share in shares
    ]
    axis.set_xticks(shares, ticks)
    axis.margins(x=0.1)
    axis.set(title=panel.title, xlabel="training labels", ylabel="AUROC [%]")
    axis.grid(True)


def _reliability_panel(above: Axes, below: Axes, name: str, found: Calibration) -> None:
    above.set_axis_on()
    below.set_axis_on()
    above.plot([0, 1], [0, 1], color="#777777", linewidth=0.8, linestyle=":")
    filled = found.count > 0
    x, y = found.predicted[filled], found.observed[filled]
    # Rounding may put an interval's end a hair beyond the frequency.
    spread = np.maximum([y - found.low[filled], found.high[filled] - y], 0)
    above.errorbar(
        x, y, yerr=spread, color=COLOURS[0], marker="o", markersize=3.5, linewidth=1.2,
        elinewidth=0.8,
    )  # fmt: skip
    above.set_title(f"{name}\nBrier {found.brier:.3f}, ECE {found.ece:.3f}", fontsize=9)
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="observed frequency")
    above.set_xlabel("predicted probability")
    above.grid(True)
    centres = (found.edges[:-1] + found.edges[1:]) / 2
    below.bar(centres, found.count, width=np.diff(found.edges) * 0.9, color="#9aa5b1")
    for centre, count in zip(centres, found.count, strict=True):
        below.text(
            centre, count, f"{count:,}", ha="center", va="bottom", fontsize=6.5,
            rotation=90 if count >= 1000 else 0,
        )  # fmt: skip
    below.set(xlim=(0, 1), ylabel="n", yticks=[], xlabel=f"probability, n = {found.count.sum():,}")
    below.margins(y=0.45)
