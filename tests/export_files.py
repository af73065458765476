"""Shared by the tests of the export: the configuration of their run, looks at what it wrote."""

import json
import pathlib

import jax
import numpy as np
import pytest

from mmcl_jax import default_config
from mmcl_jax.experiment import Experiment
from mmcl_jax.export import __main__ as command


def make_config(cohort: pathlib.Path) -> dict:
    """MDM, two targets, and a stage that nobody runs."""
    config = default_config.experiment("tiny *run*")
    config.order = ("mdm", "finetune", "later", "evaluate")
    vit = {"width": 16, "depth": 1, "heads": 2, "samples": 500}
    config.models = {
        "ecg_encoder": {"name": "vit", **vit},
        "decoder": {"name": "mae_decoder", **vit},
        "head": {"name": "head"},
    }
    config.data.path = str(cohort)
    common = {
        "ecg_view": {"length": 500},
        "batch_size": 8,
        "epochs": 1,
        "optimizer": {"name": "adamw", "rate": 1e-2, "weight_decay": 0.0},
    }
    mdm = {"ecg_encoder": {"pool": "none"}, "decoder": {}}
    supervised = {
        "towers": {"ecg_encoder": {"pool": "attention"}, "head": {}},
        "init": {"ecg_encoder": "mdm"},
        "new": ("/attention_pool/", "/fc_norm/"),
        "unused": ("/norm/",),
        "select": {"classification": "val/auroc", "regression": "val/r"},
        **common,
    }
    stage = default_config.stage
    config.stages = {
        "mdm": stage("masked_modelling", towers=mdm, **common),
        "finetune": stage("supervised", targets=("CAD", "age"), balanced=True, **supervised),
        "later": stage("masked_modelling", towers=mdm, **common),
        "evaluate": {"splits": ("val", "test"), "crops": 1, "resamples": 20, "batch_size": 8},
    }
    return json.loads(config.to_json())


def content(folder: pathlib.Path, name: str = "model.json") -> dict:
    return json.loads((folder / name).read_text())


def load(folder: pathlib.Path) -> jax.export.Exported:
    return jax.export.deserialize(bytearray((folder / "model.jaxexport").read_bytes()))


def recordings(run: pathlib.Path, split: str = "test") -> np.ndarray:
    source = Experiment.open(run).cohort.source(split)
    return np.stack([source[i]["ecg"] for i in range(len(source))])


def assert_close(found, expected, tolerance=1e-6):
    """Relative to the largest value of each column."""
    scale = np.maximum(np.abs(expected).max(axis=0), 1e-30)
    assert np.abs(found - expected).max(initial=0, axis=0).shape == scale.shape
    assert (np.abs(found - expected) / scale).max() <= tolerance


def error_of(capsys, run, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        command.main([str(run), *map(str, arguments)])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    return error
