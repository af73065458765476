"""Runs as training leaves them, in seconds: every stage has random parameters."""

import json
import pathlib

import jax
import numpy as np
from made_up_ecg import made_up

from mmcl_jax import default_config, stages
from mmcl_jax.checkpoints import Checkpoints
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data import pipeline
from mmcl_jax.data.sources.table import Table
from mmcl_jax.experiment import Experiment
from mmcl_jax.state import State, initialise

CLASSES = ("SR", "AF", "VT")
SPLITS = ("train",) * 4 + ("val", "test")
N = 72


def command(verb, run, path, output, *more) -> int:
    """The exit code of `embed` or `predict`."""
    arguments = ["--run", run, "--input", path, "--output", output, *more]
    return verb.main([str(argument) for argument in arguments])


def write_data(folder: pathlib.Path) -> None:
    """72 ECGs in an array, with frames and labels, and the cohort of them."""
    np.save(folder / "ecg.npy", made_up(n=N).astype(np.float32))
    generator = np.random.default_rng(1)
    np.save(folder / "cmr.npy", generator.random((N, 3, 32, 32)).astype(np.float32))
    rows = ["record,subject,split,CAD,LVEDV,rhythm"]
    for i in range(N):
        values = f"{i // 6 % 2},{120 + 40 * np.sin(i):.3f},{CLASSES[i // 6 % 3]}"
        rows.append(f"r{i:02d},s{i:02d},{SPLITS[i % 6]},{values}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    source = Table(
        folder / "ecg.npy", rate=500, unit="mV", labels=folder / "labels.csv",
        cmr=folder / "cmr.npy",
        declared={
            "binary": "CAD", "regression": "LVEDV:mL", "multiclass": f"rhythm:{';'.join(CLASSES)}",
        },
    )  # fmt: skip
    cohorts.write(source, folder / "cohort", workers=0, progress=False)


def configuration(cohort: pathlib.Path) -> dict:
    """MDM, MMCL and two seeds of three targets."""
    config = default_config.experiment("tiny")
    config.order = ("mdm", "mmcl", "finetune")
    vit = {"width": 16, "depth": 1, "heads": 2, "samples": 500}
    config.models = {
        "ecg_encoder": {"name": "vit", **vit},
        "decoder": {"name": "mae_decoder", **vit},
        "cmr_encoder": {"name": "resnet", "depth": 18, "width": 8},
        "ecg_projector": {"name": "projector", "hidden": 8, "out": 8},
        "cmr_projector": {"name": "projector", "hidden": 8, "out": 8},
        "head": {"name": "head"},
    }
    config.data.path = str(cohort)
    common = {
        "ecg_view": {"length": 500},
        "batch_size": 8,
        "epochs": 1,
        "optimizer": {"name": "adamw", "rate": 1e-3, "weight_decay": 0.0},
    }
    config.stages.mdm = default_config.stage(
        "masked_modelling", towers={"ecg_encoder": {"pool": "none"}, "decoder": {}}, **common
    )
    config.stages.mmcl = default_config.stage(
        "clip",
        towers=dict.fromkeys(("ecg_encoder", "ecg_projector", "cmr_encoder", "cmr_projector"), {}),
        fields=("ecg", "cmr"),
        cmr_view={"size": 32},
        **common,
    )
    config.stages.finetune = default_config.stage(
        "supervised",
        towers={"ecg_encoder": {"pool": "attention"}, "head": {}},
        targets=("CAD", "LVEDV", "rhythm"),
        seeds=(0, 1),
        select={"classification": "val/auroc", "regression": "val/r"},
        **common,
    )
    config.stages.evaluate = {
        "splits": ("val", "test"), "crops": 3, "resamples": 20, "batch_size": 8,
    }  # fmt: skip
    return json.loads(config.to_json())


class Untrained(Experiment):
    """Leaves stages with random parameters: what they are does not matter here."""

    def train(self, stage):
        objective, views, labels = stages.build(stage, self.config["models"], self.cohort)
        fields = tuple(stage.config["fields"])
        rows = pipeline.select(self.cohort, "val", fields=fields)[:2]
        names = tuple(label.name for label in labels)
        (example,) = pipeline.eval_batches(
            self.cohort, "val", rows, fields=fields, labels=names, batch_size=2
        )
        key = jax.random.key(0)
        shapes = jax.eval_shape(lambda: initialise(objective, views, example, key))
        generator = np.random.default_rng(stage.seed)
        params, extra = jax.tree.map(
            lambda leaf: 0.3 * generator.standard_normal(leaf.shape, np.float32), shapes
        )
        self._write_settings(stage)
        step = np.zeros((), np.int32)
        with Checkpoints(self.run.stage(stage.name)) as saved:
            saved.save_best(State(step=step, params=params, extra=extra, optimizer_state={}))
        return {"hand_on": "best", "records": len(self.cohort.table("train")["record"])}
