"""The folder that an export writes: program, weights inside, checks, model card."""

import collections
import dataclasses
import importlib.resources
import io
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.export
import numpy as np

from mmcl_jax import inference
from mmcl_jax.data.cohort_format import settings_hash
from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.experiment import Experiment
from mmcl_jax.export import model_card
from mmcl_jax.export.exported import PLATFORMS, export_groups, window_length
from mmcl_jax.export.model_card_markdown import to_markdown
from mmcl_jax.inference import Program, TrainedRun
from mmcl_jax.run_dir import describe_environment

FORMAT = 1  # version of model.json
_CHECKED = 2  # recordings in check.npz
# Relative to the largest value of a column: sums in another order. The program is compiled anew, so
# half precision, and the matrix units of accelerators, round in other places.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 5e-2


def export_run(
    experiment: Experiment,
    output: str | os.PathLike,
    *,
    stage: str = "",
    embedding: bool = False,
    card_only: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the folder `output`.

    Args:
        stage: name of a stage, or the first parts of the names of several, such as `finetune/CAD`.
            Empty for all that predict labels, or the pre-trained encoder where there is none.
        embedding: export the encoder although the stage predicts labels.
        card_only: write the model card and nothing else.
        overwrite: replace files of an earlier export; others in the folder stay.

    Returns:
        JSON summary.

    Raises:
        ValueError: no such stage, or it is not done, or it reads no ECG.
        FileExistsError: `output` exists.
    """
    output = pathlib.Path(output).expanduser()
    if output.exists() and not (overwrite and output.is_dir()):
        raise FileExistsError(
            f"{output} exists; name another --output, or replace the files of an earlier export "
            "there with --overwrite"
        )
    program, embedding = _choose(experiment, stage, embedding)
    card = model_card.describe(experiment, program)
    files: dict[str, bytes] = {
        "model_card.json": _json(card),
        "model_card.md": to_markdown(card).encode(),
    }
    summary = {"stages": len(card["model"]["stages"]), "columns": len(program.columns)}
    if not card_only:
        model, difference = _model_files(program, embedding)
        files |= model
        size = len(files["model.jaxexport"])
        summary |= {"megabytes": round(size / 1e6, 2), "difference": f"{difference:.1e}"}
    _write(output, files)
    return summary


def _choose(experiment: Experiment, name: str, embedding: bool) -> tuple[Program, bool]:
    """What inference would run, and whether it embeds."""
    _check_stage(experiment, name)
    trained = TrainedRun(experiment, name)
    if embedding or not trained.predicts:
        return trained.embedder, True
    return trained.predictor, False


def _check_stage(experiment: Experiment, name: str) -> None:
    stages = [stage.name for stage in experiment.training_stages()]
    below = f"{name.rstrip('/')}/"
    chosen = [stage for stage in stages if not name or f"{stage}/".startswith(below)]
    if not chosen:
        raise ValueError(
            f"{experiment.run.path} has no stage {name!r}; it has {', '.join(stages) or 'none'}"
        )
    if not any(experiment.run.done(stage) for stage in chosen):
        done = [stage for stage in stages if experiment.run.done(stage)]
        raise ValueError(
            f"stage {name or ', '.join(chosen)} of {experiment.run.path} is not done; finished "
            f"stages: {', '.join(done) or 'none'}. Run mmcl_jax.main with this --workdir first"
        )


def _model_files(program: Program, embedding: bool) -> tuple[dict[str, bytes], float]:
    """Contents by file name, and how far the program is from this package at most (relative)."""
    samples = program.settings.samples
    method = inference.embed_batch if embedding else "predict"
    exported = export_groups(program.groups, method, crops=program.crops, samples=samples)
    content = _model_json(program, embedding)
    # Noise: nobody's recording.
    generator = np.random.default_rng(0)
    ecg = generator.standard_normal((_CHECKED, len(LEADS), samples), np.float32)
    found = np.asarray(exported.call(ecg)[content["output"]["name"]])
    expected = program(ecg)
    scale = np.maximum(np.abs(expected).max(axis=0), 1e-30)
    difference = float((np.abs(found - expected) / scale[None]).max())
    if not difference < (tolerance := _tolerance(program)):
        raise ValueError(
            f"the exported program differs from the run by {difference:.1e} of the largest output, "
            f"expected less than {tolerance:.0e}; nothing was written"
        )
    files = {
        "model.jaxexport": _serialised(exported),
        "model.json": _json(content),
        "load.py": (importlib.resources.files(__package__) / "load_exported.py").read_bytes(),
        "check.npz": _npz(ecg=ecg, output=found),
    }
    return files, difference


def _tolerance(program: Program) -> float:
    encoders = [m.objective.ecg_encoder for group in program.groups for m in group.members]
    exact = all(np.dtype(encoder.dtype) == np.float32 for encoder in encoders)
    return _TOLERANCE if exact and jax.default_backend() == "cpu" else _HALF_TOLERANCE


def _model_json(program: Program, embedding: bool) -> dict[str, Any]:
    members = [member for group in program.groups for member in group.members]
    settings, samples = members[0].settings, program.settings.samples
    columns = _columns_json(program)
    free = program.crops == 1
    return {
        "format": FORMAT,
        "file": "model.jaxexport",
        "platforms": list(PLATFORMS),
        "stages": [member.stage.name for member in members],
        "input": {
            "name": "ecg",
            "dtype": "float32",
            "shape": ["b", len(LEADS), "t" if free else samples],
            "least_samples": max(window_length(m, samples) for m in members) if free else samples,
            "unit": "none: preprocessed, each lead group has mean 0 and variance 1",
            "leads": list(LEADS),
            "rate": program.settings.rate,
            "windows": program.crops,
        },
        "output": {
            "name": "embedding" if embedding else "prediction",
            "dtype": "float32",
            "shape": ["b", len(columns)],
            "columns": columns,
        },
        "preprocessing": {"ecg": dict(settings), "hash": settings_hash({"ecg": dict(settings)})},
        "versions": describe_environment()["packages"],
    }


def _columns_json(program: Program) -> list[dict[str, Any]]:
    labels = {label.name: label for group in program.groups for label in group.labels}
    entries, classes_seen = [], collections.Counter()
    for column in program.columns:
        entry = {**dataclasses.asdict(column), "stages": list(column.stages)}
        if label := labels.get(column.label):
            entry["label_kind"] = label.kind
            if label.classes:
                # A column per class, in order; the deviation over seeds follows its mean.
                classes_seen[label.name] += column.statistic != "sd"
                position = (classes_seen[label.name] - 1) % len(label.classes)
                entry["class"] = label.classes[position]
        entries.append(entry)
    return entries


def _write(output: pathlib.Path, files: dict[str, bytes]) -> None:
    """All files or, where writing fails, none; a new folder appears at once."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    partial.mkdir()
    try:
        for name, content in files.items():
            (partial / name).write_bytes(content)
        if output.is_dir():
            for name in files:
                (partial / name).replace(output / name)
        else:
            partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _serialised(exported: jax.export.Exported) -> bytes:
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise ValueError(
            'export needs flatbuffers: pip install "mmcl_jax[export]", or --card-only'
        ) from error


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()
