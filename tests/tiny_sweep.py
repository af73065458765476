"""Configuration of a fine-tuning of seconds, with a grid or without."""

import json

import jax
import numpy as np
import optax
import tiny

from mmcl_jax import default_config
from mmcl_jax.data import cohort as cohorts

BATCH = 8
GRID = {"batch_size": (8, 16), "rate": (3e-6, 5e-4)}


def config_of(cohort_folder=None, grid=None, **fields):
    config = default_config.experiment("sweep")
    config.order = ("finetune", "evaluate")
    config.stages.evaluate = {"splits": ("val",), "crops": 1, "resamples": 20, "batch_size": 8}
    config.models = {
        "ecg_encoder": {**tiny.VIT, "depth": 2, "pool": "attention"}, "head": {"name": "head"}
    }  # fmt: skip
    config.stages.finetune = default_config.stage(
        "supervised",
        **{
            "settings": {"label_smoothing": 0.1},
            "towers": {"ecg_encoder": {"drop_path": 0.2}, "head": {}},
            "targets": ("CAD",),
            "seeds": (0, 101),
            "ecg_view": {"length": 500},
            "batch_size": BATCH,
            "epochs": 4,
            "log_every": 5,
            "optimizer": {
                "name": "adamw", "base_rate": 1e-4, "weight_decay": 0.1, "layer_decay": 0.5,
                "schedule": "cosine", "warmup_epochs": 1,
            },
            "select": "val/loss",
            # Who does not gain 0.0002 in an epoch stops.
            "patience": 0,
            "band": -2e-4,
            **fields,
        },
    )  # fmt: skip
    if grid:
        config.stages.finetune.sweep = {"grid": grid, "seeds": (), "members": 8}
    plain = json.loads(config.to_json())
    if cohort_folder:
        plain["data"]["path"] = str(cohort_folder)
        plain["data"]["preprocessing"] = cohorts.open_cohort(cohort_folder).settings
    return plain


def relative(one, other) -> float:
    """Norm of the difference of two trees, relative to that of the second."""
    difference = optax.tree.norm(jax.tree.map(np.subtract, one, other))
    return float(difference / optax.tree.norm(other))
