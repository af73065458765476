"""Numbers per lead and time over a 12-lead ECG: attention, effect of occlusion."""

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.figures import figure_grid

# Of an ECG on paper: limb leads left, chest leads right, three to a column.
_LAYOUT = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
_PAPER = {"color": "#e9b8b8", "linewidth": 0.5, "zorder": 1.5}


def ecg_map(
    ecg: Float[np.ndarray, "12 T"],
    values: Float[np.ndarray, "12 W"],
    *,
    edges: Float[np.ndarray, " W+1"],
    rate: float,
    unit: str,
    title: str,
    meaning: str,
    signed: bool,
) -> Figure:
    """12 leads in 3 rows and 4 columns; the colour behind a stretch is its value.

    Args:
        ecg: drawn from 0 to the last of `edges`, leads in the order of `LEADS`.
        values: one for each lead and stretch of time.
        edges: beginnings of the stretches and end of the last one, in seconds.
        rate: samples of `ecg` per second.
        unit: of `ecg`. With mV the grid is that of ECG paper: 0.2 s and 0.5 mV.
        title: above the figure.
        meaning: of the colours.
        signed: colours from blue through white to red, 0 in the middle; else from white at 0 to
            red.
    """
    end = float(edges[-1])
    ecg = ecg[:, : round(end * rate)]
    time = np.arange(ecg.shape[1]) / rate
    low, high = np.percentile(ecg, (0.05, 99.95))
    margin = 0.15 * (high - low)
    limits = (low - margin, high + margin)
    top = max(float(np.abs(values).max()), np.finfo(np.float32).tiny)
    colours = {"cmap": "RdBu_r" if signed else "Reds", "vmin": -top if signed else 0, "vmax": top}
    with figure_grid(16, 8.5, rows=3, columns=4) as (figure, axes):
        for row, names in zip(axes, _LAYOUT, strict=True):
            for axis, name in zip(row, names, strict=True):
                lead = LEADS.index(name)
                image = axis.pcolormesh(
                    edges, limits, values[lead][None, :], alpha=0.75, linewidth=0, **colours
                )
                image.set_rasterized(True)
                axis.plot(time, ecg[lead], color="black", linewidth=0.8)
                axis.set_title(name, loc="left", fontweight="bold")
                axis.set(xlim=(0, end), ylim=limits)
                _draw_paper(axis, unit)
                axis.label_outer()
        for axis in axes[-1]:
            axis.set_xlabel("time [s]")
        for axis in axes[:, 0]:
            axis.set_ylabel(f"[{unit}]")
        figure.suptitle(title, fontsize=11)
        figure.colorbar(image, ax=axes, shrink=0.7, pad=0.01, label=meaning)
    return figure


def _draw_paper(axis: Axes, unit: str) -> None:
    axis.xaxis.set_major_locator(MultipleLocator(1))
    axis.xaxis.set_minor_locator(MultipleLocator(0.2))
    if unit == "mV":
        axis.yaxis.set_major_locator(MultipleLocator(1))
        axis.yaxis.set_minor_locator(MultipleLocator(0.5))
    axis.grid(which="both", **_PAPER)
    axis.tick_params(which="minor", length=0)
