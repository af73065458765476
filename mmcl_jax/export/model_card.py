"""Model card: what a model is, what it was trained on, how well it does, what it is not for.

The facts, as JSON; `model_card_markdown.py` writes them for people.
"""

import csv
import importlib.metadata
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mmcl_jax import evaluate
from mmcl_jax.data.cohort import Cohort
from mmcl_jax.data.targets.label_summary import summarise, words
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.experiment import Experiment
from mmcl_jax.inference import Program
from mmcl_jax.inference.models import Trained
from mmcl_jax.run_dir import describe_environment
from mmcl_jax.stages import Stage

USE = (
    "Research on what an ECG tells about the heart: comparing methods, embedding or labelling "
    "recordings of a study, a start for fine-tuning on other data.",
)
NOT_FOR = (
    "Clinical use. The model is no medical device. Its outputs must not guide the diagnosis, "
    "screening, triage or treatment of a person.",
)
SYNTHETIC = (
    "The training data are simulated. The results check that the method and the software work; "
    "they say nothing about patients."
)


def describe(experiment: Experiment, program: Program) -> dict[str, Any]:
    """The card as JSON.

    Args:
        program: the stages that the card is about.
    """
    members = [member for group in program.groups for member in group.members]
    labels = list({x.name: x for group in program.groups for x in group.labels}.values())
    data = _data(experiment, members, labels)
    metrics = _metrics(experiment, members, labels)
    return {
        "format": 1,
        "name": experiment.config["name"],
        "model": {
            "task": "labels from a 12-lead ECG" if labels else "embedding of a 12-lead ECG",
            "stages": [member.stage.name for member in members],
            "encoder": _encoder(members[0]),
            "labels": [_label(label) for label in labels],
        },
        "intended_use": list(USE),
        "not_for": list(NOT_FOR),
        "data": data,
        "training": _training(experiment, members),
        "metrics": metrics,
        "limits": _limits(members, labels, data, metrics),
        "preprocessing": {
            "ecg": dict(members[0].settings),
            "hash": data["preprocessing_hash"],
            "windows": program.crops,
        },
        "licence": {
            "software": _software_licence(),
            "weights": "Not stated. The terms of the training data decide who may use them.",
        },
        "versions": {
            "training": _environment(experiment).get("packages", {}),
            "card": describe_environment()["packages"],
            "source_revision": _environment(experiment).get("git_revision", "unknown"),
        },
    }


def _label(label: Label) -> dict[str, Any]:
    return {
        "name": label.name,
        "kind": label.kind,
        "unit": label.unit,
        "description": label.description,
        "classes": list(label.classes),
    }


def _encoder(trained: Trained) -> dict[str, Any]:
    encoder = trained.objective.ecg_encoder
    names = ("width", "depth", "heads", "patch", "samples", "positions", "pool")
    found = {name: getattr(encoder, name) for name in names if hasattr(encoder, name)}
    found = {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}
    return {**found, "dtype": np.dtype(encoder.dtype).name}


def _data(
    experiment: Experiment, members: Sequence[Trained], labels: Sequence[Label]
) -> dict[str, Any]:
    done = experiment.run.done(members[0].stage.name)
    known: dict[str, Any] = {"preprocessing_hash": done.get("preprocessing_hash", "unknown")}
    cohort, reason = _cohort(experiment)
    if cohort is not None and cohort.settings_hash != known["preprocessing_hash"]:
        cohort, reason = None, "the cohort was prepared anew since, with other settings"
    if cohort is None:
        synthetic = not experiment.config["data"]["path"]
        return {**known, "source": "unknown", "synthetic": synthetic, "missing": reason}
    splits = {}
    for split, count in cohort.splits.items():
        table = cohort.table(split)
        has_ecg = table["has_ecg"]
        found = {}
        for label in labels:
            values = table["labels"][:, cohort.labels.index(label)][has_ecg]
            found[label.name] = {**summarise(label, values), "words": words(label, values)}
        splits[split] = {
            "records": count,
            "subjects": len(set(table["subject"].tolist())),
            "with_ecg": int(has_ecg.sum()),
            "with_cmr": int(table["has_cmr"].sum()),
            "labels": found,
        }
    return {
        **known,
        "source": cohort.source_name,
        "synthetic": cohort.source_name == "synthetic",
        "splits": splits,
        "missing": "",
    }


def _cohort(experiment: Experiment) -> tuple[Cohort | None, str]:
    """The cohort of the run, or why it cannot be described; a synthetic one is not made for it."""
    folder = experiment.config["data"]["path"] or experiment.run.path / "cohort"
    if not pathlib.Path(folder).expanduser().is_dir():
        return None, "the cohort is not at hand where the card was written"
    try:
        return experiment.cohort, ""
    except (OSError, ValueError):
        return None, "the cohort could not be opened where the card was written"


def _training(experiment: Experiment, members: Iterable[Trained]) -> list[dict[str, Any]]:
    """The stages behind the model in the order of training, those they started from included."""
    wanted, left = set(), [member.stage for member in members]
    by_name = {stage.name: stage for stage in experiment.training_stages()}
    while left:
        stage = left.pop()
        if stage.name not in wanted:
            wanted.add(stage.name)
            origins = stage.config["init"].values()
            left += [by_name[origin] for origin in origins if origin in by_name]
    return [_stage(experiment, stage) for name, stage in by_name.items() if name in wanted]


def _stage(experiment: Experiment, stage: Stage) -> dict[str, Any]:
    done = experiment.run.done(stage.name) or {}
    settings = json.loads((experiment.run.stage(stage.name) / "stage.json").read_text())["stage"]
    names = ("objective", "settings", "epochs", "batch_size", "optimizer", "balanced", "fraction")
    return {
        "name": stage.name,
        "seed": stage.seed,
        **{name: settings[name] for name in names if name in settings},
        "started_from": {k: _origin(v) for k, v in settings["init"].items()},
        **{name: done[name] for name in ("records", "steps", "best", "seconds") if name in done},
    }


def _origin(name: str) -> str:
    """A stage; one of another run without the folders around it."""
    folder, _, stage = name.rpartition(":")
    return f"{pathlib.Path(folder).name}:{stage}" if folder else stage


def _metrics(
    experiment: Experiment, members: Sequence[Trained], labels: Sequence[Label]
) -> dict[str, Any]:
    file = experiment.run.path / "evaluate" / "metrics.csv"
    if not file.is_file():
        return {"rows": [], "missing": "The run has not been evaluated."}
    evaluated = (experiment.run.done("evaluate") or {}).get("inputs", {}).get("runs", {})
    current = [m for m in members if evaluated.get(m.stage.name, m.id) == m.id]
    if len(current) < len(members):
        return {"rows": [], "missing": "The model was trained anew since the run was evaluated."}
    names = {name for label in labels for name in (label.name, *label.outputs)}
    names = names or {evaluate.RETRIEVAL}
    seeds = {str(member.stage.seed) for member in members}
    with file.open(newline="", encoding="utf-8") as stream:
        rows = [r for r in csv.DictReader(stream) if r["target"] in names and r["seed"] in seeds]
    if not labels and members[0].stage.config["objective"] != "clip":
        rows = []
    keys = [(row["target"], row["split"], row["metric"], row["seed"]) for row in rows]
    if len(set(keys)) < len(keys):
        reason = "Several stages of the run predict these labels; evaluate/metrics.csv names none."
        return {"rows": [], "missing": reason}
    found = [
        {
            **{name: row[name] for name in ("target", "split", "metric")},
            **{name: float(row[name]) if row[name] else None for name in ("value", "low", "high")},
            "n": int(float(row["n"])),
            "seed": int(row["seed"]),
        }
        for row in rows
    ]
    reason = "" if found else "The evaluation of the run has no result for this model."
    return {"rows": found, "missing": reason}


def _limits(
    members: Sequence[Trained],
    labels: Sequence[Label],
    data: dict[str, Any],
    metrics: dict[str, Any],
) -> list[str]:
    config = members[0].stage.config
    limits = [SYNTHETIC] if data["synthetic"] else []
    limits += [
        "Inputs must be preprocessed exactly as below. Recordings of other devices, filters, lead "
        "placements or lengths than the training data have not been tested.",
        "Nobody has examined how the model does by age, sex, ethnicity, device or hospital.",
    ]
    if metrics["rows"]:
        limits.append(
            "The metrics are of held-out subjects of the same source; on other data expect less. "
            "Records of the split val have also chosen the parameters."
        )
    classification = any(label.kind != "regression" for label in labels)
    if classification:
        limits.append("The probabilities have not been calibrated.")
    if classification and config.get("balanced"):
        limits.append(
            "Binary labels were trained on as many negative as positive records, so their "
            "probabilities are far above the share of positives where a disease is rare."
        )
    if len({member.stage.seed for member in members}) > 1:
        limits.append(
            "The deviation over seeds is that of the training, no interval of the prediction. The "
            "metrics are of one seed each, the outputs the mean over seeds."
        )
    return limits


def _environment(experiment: Experiment) -> dict[str, Any]:
    file = experiment.run.path / "environment.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _software_licence() -> str:
    try:
        metadata = importlib.metadata.metadata("mmcl_jax")
    except importlib.metadata.PackageNotFoundError:
        return "Apache-2.0"
    return metadata.get("License-Expression") or metadata.get("License") or "Apache-2.0"
