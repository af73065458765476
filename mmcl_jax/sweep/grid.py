"""The grid of a sweep: which settings its points change, and which point is best.

A stage sweeps where its `sweep` has a grid:

    sweep = {
        "grid": {"batch_size": (8, 16, 32), "layer_decay": (0.5, 0.75), ...},
        "seeds": (),      # of the search; the first seed of the stage by default
        "members": 24,    # trained side by side; rounded up to a multiple of the devices
    }
"""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmcl_jax.data.targets.labels import Label

AXES = (
    "batch_size",
    "layer_decay",
    "drop_path",
    "label_smoothing",
    "weight_decay",
    "base_rate",
    "rate",
)
# A member with one of these takes it as an argument of the step even where it is 0.
MODEL_AXES = ("label_smoothing", "drop_path")
_FIELDS = ("grid", "seeds", "members")

Point = Mapping[str, float]


def check(stage) -> None:
    """What can be known before a sweep is begun.

    Args:
        stage: a `stages.Stage` with a sweep.

    Raises:
        ValueError: an unknown axis or field, an axis without numbers, or settings of the stage
            that do not go with a sweep.
    """
    where, sweep = f"stages.{stage.group}.sweep", stage.config["sweep"]
    if unknown := sorted(set(sweep) - set(_FIELDS)):
        raise ValueError(f"{where} has no field {', '.join(unknown)}; it has {', '.join(_FIELDS)}")
    grid = sweep.get("grid", {})
    if unknown := [axis for axis in grid if axis not in AXES]:
        raise ValueError(f"{where}.grid has no axis {', '.join(unknown)}; known: {', '.join(AXES)}")
    if not grid:
        raise ValueError(f"{where}.grid has no axis; known: {', '.join(AXES)}")
    if "rate" in grid and "base_rate" in grid:
        raise ValueError(f"{where}.grid has rate and base_rate; a member has one learning rate")
    for axis, values in grid.items():
        listed = isinstance(values, list | tuple) and len(values) > 0
        if not listed or not all(isinstance(value, numbers.Real) for value in values):
            raise ValueError(f"{where}.grid.{axis} is {values!r}, expected a list of numbers")
        if axis == "batch_size" and not all(_whole(value) and value >= 1 for value in values):
            raise ValueError(f"{where}.grid.{axis} is {values!r}, expected whole numbers from 1")
        if len(set(values)) < len(values):
            raise ValueError(f"{where}.grid.{axis} lists a value twice: {values!r}")
    parts = stage.config["accumulate"] or 1
    if uneven := [size for size in grid.get("batch_size", ()) if size % parts]:
        raise ValueError(f"{where}.grid.batch_size: {uneven} do not divide by accumulate={parts}")
    if not stage.target:
        raise ValueError(f"{where}: only a stage with targets can sweep")
    if stage.config["hand_on"] != "best":
        raise ValueError(
            f"{where}: a sweep keeps the best parameters only; set stages.{stage.group}.hand_on "
            "to best"
        )
    if "drop_path" in grid and "ecg_encoder" not in stage.config["towers"]:
        raise ValueError(f"{where}.grid.drop_path needs an ecg_encoder, which the stage lacks")
    if sweep.get("members", 1) < 1:
        raise ValueError(f"{where}.members is {sweep['members']}, expected at least 1")


def points(grid: Mapping[str, Sequence[float]], labels: Sequence[Label] = ()) -> list[Point]:
    """Every combination of the values, the last axis fastest.

    Args:
        grid: values of each axis.
        labels: what is predicted. For regression, points that differ in label smoothing alone are
            the same, so only its first value is taken.
    """
    values = {axis: list(values) for axis, values in grid.items()}
    if "label_smoothing" in values and any(label.kind == "regression" for label in labels):
        values["label_smoothing"] = values["label_smoothing"][:1]
    return [
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]


def at_point(stage, point: Point, seed: int):
    """`stage` with the settings of a point and a seed: the same member as a run alone."""
    config: dict[str, Any] = dict(stage.config)
    optimizer, settings = dict(config["optimizer"]), dict(config["settings"])
    towers = {tower: dict(changes) for tower, changes in config["towers"].items()}
    for axis, value in point.items():
        if axis == "batch_size":
            config["batch_size"] = int(value)
        elif axis == "label_smoothing":
            settings[axis] = float(value)
        elif axis == "drop_path":
            towers["ecg_encoder"][axis] = float(value)
        else:
            if axis in ("rate", "base_rate"):
                optimizer = {k: v for k, v in optimizer.items() if k not in ("rate", "base_rate")}
            optimizer[axis] = float(value)
    config |= {"optimizer": optimizer, "settings": settings, "towers": towers, "sweep": {}}
    name = f"{stage.group}/{stage.target}/{seed}"
    return dataclasses.replace(stage, name=name, config=config, seed=seed)


def of_each_batch_size(stage, labels: Sequence[Label]) -> list:
    """A member of the stage's sweep for each batch size that it has."""
    every = points(stage.config["sweep"]["grid"], labels)
    by_size = {point.get("batch_size"): point for point in every}
    return [at_point(stage, point, stage.seed) for point in by_size.values()]


def choose(values: Mapping[int, Sequence[float | None]], sign: int) -> int:
    """The point with the highest mean (`sign` 1) or the lowest (-1); of equals the first.

    Args:
        values: point -> best validation value of each seed; None for one that diverged, whose
            point is then not chosen.

    Raises:
        ValueError: a seed of every point diverged.
    """
    means = {
        point: sign * float(np.mean(found))
        for point, found in sorted(values.items())
        if all(value is not None and math.isfinite(value) for value in found)
    }
    if not means:
        raise ValueError(
            f"in each of the {len(values)} points of the grid the loss of a member was no number; "
            "lower the learning rates"
        )
    return max(means, key=means.get)


def _whole(value: float) -> bool:
    return float(value).is_integer()
