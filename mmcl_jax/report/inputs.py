"""Reads the files of a run directory that the report shows. Only `config.json` must exist."""

import csv
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Shaped

from mmcl_jax.data.preparing.cohort_figures import PREVIEW
from mmcl_jax.data.targets.labels import DEMOGRAPHICS, DISEASES, PHENOTYPES

METRIC_COLUMNS = ("model", "target", "split", "metric", "value", "low", "high", "n", "seed")

_PREDICTION_FIELDS = [
    "record",
    "subject",
    "split",
    "names",
    "kinds",
    "units",
    "label",
    "prediction",
    "seed",
    "target",
]
_CMR_FIELDS = ("frames", "whole", "box", "similarity", "record")
_ECG_FIELDS = ("ecg", "similarity", "record")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of `evaluate/metrics.csv`; `model` without a trailing seed component."""

    model: str
    target: str
    split: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    seed: str


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What one fine-tuned model predicts: probabilities of labels and classes, or in their unit."""

    path: pathlib.Path
    stage: str
    target: str
    seed: int
    record: Shaped[np.ndarray, " N"]
    subject: Shaped[np.ndarray, " N"]
    split: Shaped[np.ndarray, " N"]
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    units: tuple[str, ...]
    label: Float[np.ndarray, "N K"]
    prediction: Float[np.ndarray, "N K"]


@dataclasses.dataclass(frozen=True)
class Run:
    """The files of a run directory; empty or None where the file is absent."""

    path: pathlib.Path
    config: dict
    environment: dict
    log: dict[str, list[dict]]
    metrics: tuple[Row, ...]
    metrics_text: str
    predictions: tuple[Predictions, ...]
    cmr: Mapping[str, np.ndarray] | None
    ecg: Mapping[str, np.ndarray] | None
    heart: dict[str, dict[str, float]]


def read_run(path: pathlib.Path) -> Run:
    """Reads a run directory.

    Raises:
        FileNotFoundError: there is no `config.json`.
        ValueError: a file lacks a column or field, or a line of `metrics.jsonl` is not JSON.
    """
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path / 'config.json'}: not found, so {path} is no run directory")
    text, rows = _metrics(path / "evaluate" / "metrics.csv")
    return Run(
        path=path,
        config=read_json(path / "config.json"),
        environment=read_json(path / "environment.json"),
        log=_log(path / "metrics.jsonl"),
        metrics=rows,
        metrics_text=text,
        predictions=tuple(
            read_predictions(file)
            for file in sorted(path.glob("evaluate/predictions/*.npz"))
            if not file.name.endswith(".part.npz")  # half written
        ),
        cmr=_arrays(path / "interpret" / "cmr_similarity.npz", _CMR_FIELDS),
        ecg=_arrays(path / "interpret" / "ecg_similarity.npz", _ECG_FIELDS),
        heart=read_json(path / "interpret" / "heart.json"),
    )


def read_predictions(path: pathlib.Path) -> Predictions:
    """A file of predictions, as `evaluate` and `probe` write them.

    Raises:
        ValueError: it lacks a field, or arrays do not fit each other.
    """
    arrays = _arrays(path, _PREDICTION_FIELDS)
    n, k = len(arrays["record"]), len(arrays["names"])
    for field in ("label", "prediction"):
        if arrays[field].shape != (n, k):
            raise ValueError(
                f"{path}: {field} must have shape {(n, k)} (records, names), "
                f"found {arrays[field].shape}"
            )
    return Predictions(
        path=path,
        stage=path.stem.replace("__", "/"),
        target=str(arrays["target"]),
        seed=int(arrays["seed"]),
        names=tuple(arrays["names"].tolist()),
        kinds=tuple(arrays["kinds"].tolist()),
        units=tuple(arrays["units"].tolist()),
        **{name: arrays[name] for name in ("record", "subject", "split", "label", "prediction")},
    )


def read_json(path: pathlib.Path) -> dict:
    """A file with a JSON object; empty where there is no file.

    Raises:
        ValueError: it holds something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def without_seed(stage: str) -> str:
    """'finetune/CAD/seed3' and 'finetune/CAD/3' are runs of 'finetune/CAD'."""
    return re.sub(r"/(?:seed[_=-]?)?\d+$", "", stage)


def seed_of(stage: str) -> str:
    """The last component of a stage name where it is a seed, else ''."""
    return stage[len(without_seed(stage)) + 1 :]


def group_of(run: Run) -> dict[str, str]:
    """Label name -> the group it is reported in: the known label groups, else the run's target."""
    groups = {name: p.target for p in run.predictions for name in p.names}
    return groups | {label.name: label.group for label in DISEASES + DEMOGRAPHICS + PHENOTYPES}


def data_source(run: Run) -> str:
    """Name of the source that the cohort was prepared from, '' where the run does not state it.

    It is read from the cohort where that is at hand, else from a stage that was trained on it.
    Failing both, a configuration whose `data` names no path stands for the synthetic cohort, and
    one that does is shown with that path.
    """
    data = run.config.get("data")
    if not isinstance(data, Mapping):
        return ""
    path = str(data.get("path") or "")
    records = [_cohort_folder(run) / "cohort.json", *sorted(run.path.glob("stages/**/done.json"))]
    source = next((found for file in records if (found := read_json(file).get("source"))), "")
    if source:
        return f"{source} ({path})" if path else str(source)
    return path or "synthetic"


def cohort_preview(run: Run) -> pathlib.Path | None:
    """The picture that was drawn when the cohort of the run was prepared, where it is at hand."""
    file = _cohort_folder(run) / PREVIEW
    return file if file.is_file() else None


def _cohort_folder(run: Run) -> pathlib.Path:
    data = run.config.get("data")
    path = data.get("path") if isinstance(data, Mapping) else None
    return pathlib.Path(str(path)).expanduser() if path else run.path / "cohort"


def _log(path: pathlib.Path) -> dict[str, list[dict]]:
    """Stage -> its lines in order of steps. A resumed run repeats steps: its later lines count."""
    if not path.is_file():
        return {}
    lines = path.read_text().splitlines()
    stages: dict[str, dict[int, dict]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            steps = stages.setdefault(record["stage"], {})
            steps[record["step"]] = steps.get(record["step"], {}) | record
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            # A run that was stopped while it wrote leaves half a line at the end.
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                break
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with 'stage' and 'step', "
                f"found {line[:60]!r}"
            ) from error
    return {
        stage: [record for _, record in sorted(steps.items())] for stage, steps in stages.items()
    }


def _metrics(path: pathlib.Path) -> tuple[str, tuple[Row, ...]]:
    if not path.is_file():
        return "", ()
    text = path.read_text()
    header, *rows = [row for row in csv.reader(text.splitlines()) if row] or [[]]
    if tuple(header) != METRIC_COLUMNS:
        raise ValueError(f"{path}: expected the columns {','.join(METRIC_COLUMNS)}, found {header}")
    parsed = []
    for number, row in enumerate(rows, start=2):
        try:
            model, target, split, metric, value, low, high, n, seed = row
            numbers = [float(text or "nan") for text in (value, low, high)]
            parsed.append(
                Row(without_seed(model), target, split, metric, *numbers, int(float(n)), seed)
            )
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: cannot be read ({error}): {row}") from error
    return text, tuple(parsed)


def _arrays(path: pathlib.Path, fields) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        if missing := [field for field in fields if field not in file]:
            raise ValueError(f"{path}: lacks {', '.join(missing)}; it holds {', '.join(file)}")
        return {field: file[field] for field in fields}
