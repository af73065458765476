"""Run directories: which there are, which count, and what their models are."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmcl_jax.report.inputs import Predictions, Run, read_json, read_predictions

FINE_TUNED = "fine-tuned"
_SHUFFLED = ", shuffled labels"
_PROBES = {"linear": "linear probe", "neighbours": "nearest neighbours"}


@dataclasses.dataclass(frozen=True)
class Key:
    """What a set of fine-tuned models has in common.

    Attributes:
        method: `name` of the configuration.
        fraction: share of the training labels, in (0, 1].
        protocol: `fine-tuned`; or `frozen encoder`, or `linear probe` or `nearest neighbours` with
            the stage probed and how its records were chosen, and any of them with `, shuffled
            labels`, which are in no table of the paper.
    """

    method: str
    fraction: float = 1.0
    protocol: str = FINE_TUNED


def find_runs(folders: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """The run directories (those with a config.json) at or below `folders`, each once, by path.

    Raises:
        FileNotFoundError: a folder does not exist, or there is no run in any.
    """
    found = set()
    for folder in map(pathlib.Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        for path, below, files in os.walk(folder):
            below[:] = [name for name in below if not name.startswith(".")]
            if "config.json" in files:
                found.add(pathlib.Path(path).resolve())
                # A run holds no other run.
                below.clear()
    if not found:
        names = ", ".join(map(str, folders))
        raise FileNotFoundError(f"no run directory (a folder with a config.json) below {names}")
    return sorted(found)


def origins(run: Run) -> set[str]:
    """Ids of the trained stages that stages of a run took their towers from."""
    found = set()
    for file in run.path.glob("stages/**/stage.json"):
        found |= set(read_json(file).get("started_from", {}).values())
    return found


def trained(run: Run) -> set[str]:
    """Ids of the finished stages of a run."""
    files = run.path.glob("stages/**/done.json")
    return {record["id"] for file in files if "id" in (record := read_json(file))}


def used(runs: Sequence[Run]) -> list[Run]:
    """Runs that hold a fine-tuned model, that such a run takes towers from, or alone of a method.

    Others are candidates that were not chosen, such as other learning rates of a stage.
    """
    kept = []
    for run in runs:
        same = [other for other in runs if other.config["name"] == run.config["name"]]
        wanted = any(trained(run) & origins(other) for other in same if other.predictions)
        if run.predictions or wanted or len(same) == 1:
            kept.append(run)
    return kept


def models(run: Run) -> Iterator[tuple[Key, Predictions]]:
    """What a run holds: its fine-tuned models, and probes of its frozen encoders.

    Probes on another cohort than that of the run are left out.
    """
    method = run.config["name"]
    for predictions in run.predictions:
        stage, data = _trained_with(run, predictions.stage)
        protocol = "frozen encoder" if stage.get("frozen") else FINE_TUNED
        protocol += _SHUFFLED if data.get("shuffle_labels") else ""
        yield Key(method, float(stage.get("fraction", 1.0)), protocol), predictions
    for about in sorted(run.path.glob("probe/*/probe.json")):
        probe = read_json(about)
        if missing := {"stage", "selection", "shuffled", "other_cohort"} - probe.keys():
            raise ValueError(
                f"{about}: lacks {', '.join(sorted(missing))}; run mmcl_jax.probe again, or delete "
                f"{about.parent}"
            )
        if probe["other_cohort"]:
            continue
        suffix, selection = f" of {probe['stage']}", probe["selection"]
        if not selection["balanced"]:
            suffix += ", unbalanced"
        if selection["seed"]:
            suffix += f" (selection seed {selection['seed']})"
        if probe["shuffled"]:
            suffix += f"{_SHUFFLED} (seed {probe.get('shuffle_seed', 0)})"
        for kind, name in _PROBES.items():
            key = Key(method, float(selection["fraction"]), name + suffix)
            for file in sorted(about.parent.glob(f"predictions/{kind}__*.npz")):
                if not file.name.endswith(".part.npz"):
                    yield key, read_predictions(file)


def _trained_with(run: Run, name: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Settings of a stage and of the data as its model was trained with them.

    The configuration of the run may have been changed since (--force_config).
    """
    settings = read_json(run.path / "stages" / name / "stage.json")
    if not settings:
        stage = (run.config.get("stages") or {}).get(name.partition("/")[0])
        settings = {"stage": stage, "data": run.config.get("data")}
    return settings["stage"] or {}, settings["data"] or {}
