"""Says what to change where the devices have too little memory for a stage."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from mmcl_jax import objectives
from mmcl_jax.stages import Stage
from mmcl_jax.sweep.search import MEMBERS


class OutOfDeviceMemory(MemoryError):
    """A device could not give what a stage asked for."""


@contextlib.contextmanager
def explained(stage: Stage, config: Mapping[str, Any]) -> Iterator[None]:
    """Turns XLA's error of too little memory into one that says what to do about it.

    Args:
        stage: what is trained within.
        config: of the experiment.

    Raises:
        OutOfDeviceMemory: instead of XLA's error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        # XLA has one class for all of its errors, told apart by their first word.
        code, _, what = str(error).partition(":")
        if code.strip() != "RESOURCE_EXHAUSTED":
            raise
        # A list of what is in memory may follow.
        asked = (what.strip() or "out of memory").splitlines()[0].rstrip(".")
        raise OutOfDeviceMemory(
            f"stage {stage.name}, {jax.devices()[0].device_kind}: {asked}. See that no other "
            f"program uses the device, or take {', or '.join(_with_less(stage, config))}. What was "
            "saved is kept"
        ) from error


def _with_less(stage: Stage, config: Mapping[str, Any]) -> list[str]:
    """Settings with which a stage needs less memory, first those that cost least."""
    where, own = f"--config.stages.{stage.group}", stage.config
    found = []
    if sweep := own.get("sweep"):
        members = sweep.get("members", MEMBERS)
        found += [f"{where}.sweep.members={members // 2}"] if members > 1 else []
    elif config["data"].get("resident") != "never" and jax.process_count() == 1:
        found.append("--config.data.resident=never")
    for tower, changes in own["towers"].items():
        if {**config["models"][tower], **changes}.get("rematerialise") is False:
            place = f"{where}.towers" if "rematerialise" in changes else "--config.models"
            found.append(f"{place}.{tower}.rematerialise=True")
    # Where rows of a batch are compared with each other it has no parts.
    in_parts = objectives.find(own["objective"]).weight is not objectives.Objective.weight
    parts = 2 * max(own["accumulate"], 1)
    # By itself a CPU computes parts of 8 rows.
    chosen = own["accumulate"] or jax.default_backend() != "cpu"
    if in_parts and chosen and not sweep and own["batch_size"] % (parts * jax.device_count()) == 0:
        found.append(f"{where}.accumulate={parts} (draws and BatchNorm are then those of parts)")
    if sweep:
        return [*found, "a grid of smaller batches in another --workdir"]
    return [*found, f"a smaller {where}.batch_size (another result)"]
