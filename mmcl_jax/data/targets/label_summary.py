"""What is known of a label over some records: the numbers, and a few words for people."""

from typing import Any

import numpy as np
from jaxtyping import Float

from mmcl_jax.data.targets.labels import Label


def summarise(label: Label, values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """JSON: 'known' and 'missing' records, and over the known ones

    of a binary label: 'positives', 'prevalence';
    of a multi-class label: 'counts' by class;
    of a regression label: 'mean', 'sd', 'min', 'max' in its unit.

    Args:
        values: NaN where missing.
    """
    known = values[~np.isnan(values)].astype(np.float64)
    summary: dict[str, Any] = {"known": len(known), "missing": len(values) - len(known)}
    if not len(known):
        return summary
    if label.kind == "binary":
        return {**summary, "positives": int(known.sum()), "prevalence": float(known.mean())}
    if label.kind == "multiclass":
        counts = np.bincount(known.astype(int), minlength=len(label.classes))
        return {**summary, "counts": dict(zip(label.classes, counts.tolist(), strict=True))}
    statistics = {
        "mean": known.mean(),
        "sd": known.std(),
        "min": known.min(),
        "max": known.max(),
    }
    return {**summary, **{name: float(f"{value:.6g}") for name, value in statistics.items()}}


def words(label: Label, values: Float[np.ndarray, " n"]) -> str:
    """`12.3 %`, `142.1, 30.2 mL` (mean, standard deviation), `A 20 %, B 80 %`; '-' for nothing."""
    summary = summarise(label, values)
    if not summary["known"]:
        return "-"
    if "prevalence" in summary:
        return f"{100 * summary['prevalence']:.1f} %"
    if "counts" in summary:
        shares = [f"{n} {100 * c / summary['known']:.0f} %" for n, c in summary["counts"].items()]
        return ", ".join(shares)
    return f"{summary['mean']:.4g}, {summary['sd']:.3g} {label.unit}".strip()
