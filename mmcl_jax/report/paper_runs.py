"""Run directories: which there are, which count, and what their models are."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

from mmcl_jax.report.inputs import Predictions, Run, read_predictions

FINE_TUNED = "fine-tuned"
_PROBES = {"linear": "linear probe", "neighbours": "nearest neighbours"}


@dataclasses.dataclass(frozen=True)
class Key:
    """What a set of fine-tuned models has in common.

    Attributes:
        method: `name` of the configuration.
        fraction: share of the training labels, in (0, 1].
        protocol: `fine-tuned`; or `frozen encoder`, `linear probe` or `nearest neighbours`, and any
            of them with `, shuffled labels`, which are in no table of the paper.
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


def origins(run: Run) -> set[pathlib.Path]:
    """Other runs that stages of a run take their towers from (`init`: RUN:STAGE)."""
    found = set()
    for stage in (run.config.get("stages") or {}).values():
        for at in (stage.get("init") or {}).values():
            if ":" in str(at):
                found.add(pathlib.Path(str(at).rpartition(":")[0]).resolve())
    return found


def used(runs: Sequence[Run]) -> list[Run]:
    """Runs that hold a fine-tuned model, that such a run takes towers from, or alone of a method.

    Others are candidates that were not chosen, such as other learning rates of a stage.
    """
    kept = []
    for run in runs:
        same = [other for other in runs if other.config["name"] == run.config["name"]]
        wanted = any(run.path in origins(other) for other in same if other.predictions)
        if run.predictions or wanted or len(same) == 1:
            kept.append(run)
    return kept


def models(run: Run) -> Iterator[tuple[Key, Predictions]]:
    """What a run holds: its fine-tuned models, and probes of its frozen encoders."""
    method = run.config["name"]
    leak_test = (run.config.get("data") or {}).get("shuffle_labels")
    suffix = ", shuffled labels" if leak_test else ""
    for predictions in run.predictions:
        group = predictions.stage.partition("/")[0]
        stage = (run.config.get("stages") or {}).get(group) or {}
        protocol = "frozen encoder" if stage.get("frozen") else FINE_TUNED
        yield Key(method, float(stage.get("fraction", 1.0)), protocol + suffix), predictions
    for file in sorted(run.path.glob("probe/*/predictions/*.npz")):
        kind = file.stem.partition("__")[0]
        if kind not in _PROBES or file.name.endswith(".part.npz"):
            continue
        about = file.parents[1] / "probe.json"
        selection = json.loads(about.read_text())["selection"] if about.is_file() else {}
        fraction = float(selection.get("fraction", 1.0))
        yield Key(method, fraction, _PROBES[kind] + suffix), read_predictions(file)
