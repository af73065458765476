"""Tiny towers, views and a batch of every field, shared by tests."""

import functools

import jax
import numpy as np

from mmcl_jax import models, objectives
from mmcl_jax.augment.cmr import CmrAugmentation
from mmcl_jax.augment.ecg import EcgAugmentation
from mmcl_jax.augment.views import Views

VIT = {"name": "vit", "width": 16, "depth": 1, "heads": 2, "samples": 500}
DECODER = {"name": "mae_decoder", "width": 16, "depth": 1, "heads": 2, "samples": 500}
RESNET = {"name": "resnet", "depth": 18, "width": 8}
PROJECTOR = {"name": "projector", "hidden": 8, "out": 8}
NORMALISED = {"name": "normalised_projector", "hidden": 16, "out": 8}
ECG_VIEW = EcgAugmentation(length=500)
CMR_VIEW = CmrAugmentation(size=64)
NAMES = ("masked_modelling", "clip", "simclr", "supervised", "byol", "barlow_twins", "clocs")


def objective(name: str, outputs: int = 2, **settings) -> tuple[objectives.Objective, Views]:
    """A small version of an objective with the views that it takes."""
    towers = {
        "masked_modelling": {"ecg_encoder": VIT | {"pool": "none"}, "decoder": DECODER},
        "clip": {
            "ecg_encoder": VIT | {"drop_path": 0.1},
            "ecg_projector": PROJECTOR,
            "cmr_encoder": RESNET,
            "cmr_projector": PROJECTOR,
        },
        "simclr": {"cmr_encoder": RESNET, "cmr_projector": PROJECTOR},
        "supervised": {
            "ecg_encoder": VIT | {"pool": "attention"},
            "head": {"name": "head", "outputs": outputs},
        },
        "byol": {
            "ecg_encoder": VIT | {"drop_path": 0.1},
            "ecg_projector": NORMALISED,
            "ecg_predictor": NORMALISED,
        },
        "barlow_twins": {"ecg_encoder": VIT, "ecg_projector": NORMALISED},
        "clocs": {"ecg_encoder": VIT, "ecg_projector": PROJECTOR},
    }[name]
    views = Views(
        ecg=ECG_VIEW if "ecg_encoder" in towers else None,
        cmr=CMR_VIEW if "cmr_encoder" in towers else None,
        count=2 if name in ("simclr", "byol", "barlow_twins", "clocs") else 1,
        halves=name == "clocs",
    )
    built = {tower: models.build(spec) for tower, spec in towers.items()}
    return objectives.build(name, {**settings, **built}), views


def batch(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random rows of every field, shorter than real recordings."""
    generator = np.random.default_rng(seed)
    return {
        "ecg": generator.standard_normal((size, 12, 1000), np.float32),
        "cmr": generator.integers(0, 255, (size, 210, 210, 3), np.uint8),
        "cmr_box": np.tile(np.array([[44, 68, 78, 78]], np.int32), (size, 1)),
        "labels": generator.integers(0, 2, (size, 1)).astype(np.float32),
        "label_valid": np.ones((size, 1), np.float32),
        "valid": np.ones(size, np.float32),
        "index": np.arange(size, dtype=np.int32),
    }


def clean(views: Views, rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The batch as an objective sees it in evaluation."""
    return jax.jit(functools.partial(views, train=False))(jax.random.key(0), rows)
