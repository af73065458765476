"""Trained towers apart from the run that trained them: the folder that `mmcl_jax.port` writes.

    towers.json          what each tower is, and how PyTorch called its weights
    checkpoints/best/0/  {params,extra}, as in a stage of a run

A stage starts from such a folder where its `init` names it; `mmcl_jax.port` writes one, or a stage
of a run, as a PyTorch file.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmcl_jax import checkpoints, models
from mmcl_jax.models.positions import interpolate
from mmcl_jax.run_dir import RunDir, write_atomically
from mmcl_jax.state import State

Spec = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Towers:
    """Weights with what they are weights of.

    Attributes:
        params: host arrays, one sub-tree per tower.
        extra: collections that no gradient touches (`batch_stats`), one sub-tree per tower in each.
        models: settings of each tower for `models.build`.
        origin: where they come from, for messages.
        torch: names and types of the PyTorch file they were read from; empty for a stage of a run.
        step: optimiser steps behind them.
    """

    params: Mapping[str, Any]
    extra: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Spec]
    origin: str
    torch: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    step: int = 0

    def only(self, names: Sequence[str]) -> "Towers":
        """The named towers, under PyTorch's usual names.

        Raises:
            ValueError: a tower that there is not.
        """
        if unknown := [name for name in names if name not in self.models]:
            raise ValueError(
                f"{self.origin} has no tower {', '.join(unknown)}; it has {', '.join(self.models)}"
            )
        if set(names) == set(self.models):
            return self
        extra = {kind: _pick(trees, names) for kind, trees in self.extra.items()}
        return dataclasses.replace(
            self,
            params=_pick(self.params, names),
            extra={kind: trees for kind, trees in extra.items() if trees},
            models=_pick(self.models, names),
            torch={},
        )

    def check(self, tower: str, wanted: Spec) -> None:
        """Compares a tower with the settings of the network that is to take it.

        Shapes do not show the number of heads, and the wrong one would compute something else.

        Raises:
            ValueError: settings that differ, other than those that weights do not depend on.
        """
        if self.models[tower]["name"] != wanted["name"]:
            raise ValueError(
                f"{tower} of {self.origin} is a {self.models[tower]['name']}, expected a "
                f"{wanted['name']}"
            )
        found = {k: _tuple(v) for k, v in self.models[tower].items() if k not in _FREE}
        if not found:
            return
        network = models.build(wanted)
        other = {key: value for key, value in found.items() if getattr(network, key) != value}
        if other:
            here = ", ".join(f"{key} {getattr(network, key)}" for key in other)
            raise ValueError(
                f"{tower} of {self.origin} has {_listed(other)}; the configuration says {here}. "
                f"Set {' '.join(flags(tower, other))}"
            )


def is_ported(path: str | os.PathLike) -> bool:
    """Whether `path` is a folder that `write` made."""
    return (pathlib.Path(path) / _FILE).is_file()


def write(path: pathlib.Path, towers: Towers, *, overwrite: bool = False) -> None:
    """Writes a folder that `read` reads, on this or another machine.

    Raises:
        FileExistsError: there is something already, and it is not to be overwritten.
    """
    if path.exists() and not (overwrite and is_ported(path)):
        hint = "--overwrite replaces it" if is_ported(path) else "give a new name"
        raise FileExistsError(f"{path} exists already; {hint}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place: a folder that is there is whole.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        contiguous = jax.tree.map(np.ascontiguousarray, (towers.params, towers.extra))
        with checkpoints.Checkpoints(temporary) as saved:
            saved.save_best(State(np.int32(towers.step), *contiguous, {}))
        content = {
            "origin": towers.origin,
            "models": towers.models,
            "torch": towers.torch,
            "step": towers.step,
        }
        write_atomically(temporary / _FILE, json.dumps(content, indent=2) + "\n")
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read(origin: str | os.PathLike) -> Towers:
    """Towers of a folder that `write` made, of `RUN:STAGE`, or of RUN/stages/STAGE.

    Raises:
        FileNotFoundError, ValueError: it is none of these, or the stage is not done.
    """
    path = pathlib.Path(origin)
    if is_ported(path):
        content = json.loads((path / _FILE).read_text())
        params, extra, step = checkpoints.load(path, "best")
        described = {key: content[key] for key in ("models", "torch")}
        return Towers(params, extra, **described, origin=str(path), step=step)
    run, _, stage = str(origin).rpartition(":")
    folder = RunDir(run).stage(stage) if run else path
    settings, done = folder / "stage.json", folder / "done.json"
    if not settings.is_file():
        hint = ""
        if (path / "config.json").is_file():
            found = sorted(file.parent for file in path.glob("stages/**/stage.json"))
            names = [str(stage.relative_to(path / "stages")) for stage in found]
            hint = f". It is a run: name a stage as {path}:STAGE, of {', '.join(names) or 'none'}"
        raise FileNotFoundError(
            f"{origin}: neither a folder that mmcl_jax.port wrote nor a stage RUN:STAGE{hint}"
        )
    if not done.is_file():
        raise ValueError(f"{folder}: the stage is not done; run it to its end first")
    hand_on = json.loads(done.read_text()).get("hand_on", "best")
    params, extra, step = checkpoints.load(folder, hand_on)
    return Towers(params, extra, _specs(settings, params), origin=str(origin), step=step)


def fit_positions(params: Mapping[str, Any], spec: Spec, origin: str) -> dict[str, Any]:
    """A tower whose positions are stretched or shrunk to the recordings that `spec` reads.

    Raises:
        ValueError: the number of leads differs.
    """
    if "pos_embed" not in params:
        return dict(params)
    network = models.build(spec)
    rows, columns = network.leads // network.patch[0], network.samples // network.patch[1]
    table = np.asarray(params["pos_embed"])
    tokens = table.shape[1] - 1
    if tokens == rows * columns:
        return dict(params)
    # Products in bfloat16, as TPUs and some GPUs compute them, would not be PyTorch's.
    with jax.default_matmul_precision("highest"):
        fitted = np.asarray(interpolate(table, rows, columns))
    print(
        f"  {origin}: positions interpolated (bicubic) from {tokens // rows} to {columns} "
        f"patches per lead, {columns * network.patch[1]} samples",
        flush=True,
    )
    return {**params, "pos_embed": fitted}


def flags(tower: str, settings: Spec) -> list[str]:
    """Command-line flags that give a configuration these settings of a tower."""
    return [f"--config.models.{tower}.{key}={_flag(value)}" for key, value in settings.items()]


_FILE = "towers.json"
# Settings that leave the weights as they are, and the length, to which positions are fitted.
_FREE = ("name", "pool", "positions", "samples", "outputs")


def _specs(settings: pathlib.Path, params: Mapping[str, Any]) -> dict[str, Spec]:
    written = json.loads(settings.read_text())
    changes = written["stage"]["towers"]
    specs = {}
    for tower in params:
        spec = {**written["models"][tower], **changes.get(tower, {})}
        if tower == "head":
            spec["outputs"] = int(params["head"]["fc"]["kernel"].shape[1])
        network = models.build(spec)
        kept = ("name", *(k for k in _WEIGHTS.get(spec["name"], spec) if k != "name"))
        specs[tower] = {k: spec["name"] if k == "name" else getattr(network, k) for k in kept}
    return specs


# Settings that describe weights; how they are trained is not among them.
_WEIGHTS = {
    "vit": ("width", "depth", "heads", "mlp_ratio", "patch", "leads", "samples", "pool"),
    "mae_decoder": ("width", "depth", "heads", "mlp_ratio", "patch", "leads", "samples"),
    "resnet": ("depth", "width"),
    "projector": ("hidden", "out"),
    "head": ("outputs",),
}


def _pick(trees: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: trees[name] for name in names if name in trees}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _listed(settings: Spec) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _flag(value: Any) -> str:
    return f"'{tuple(value)}'" if isinstance(value, list | tuple) else str(value)
