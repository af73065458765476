"""Configurations shrunk to a second or so per stage, and how tests start and read them."""

import csv
import importlib.util
import json
import pathlib

from mmcl_jax.experiment import Experiment
from mmcl_jax.run_dir import RunDir

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"


def read_config(name: str, argument: str = "demo"):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument)
    config.unlock()
    return config


def shrink(config, epochs: int = 1) -> dict:
    """Every stage of a configuration in a second or so of steps."""
    for tower in {"ecg_encoder", "decoder"} & set(config.models):
        config.models[tower].update({"width": 16, "depth": 1, "heads": 2, "samples": 1000})
    if "cmr_encoder" in config.models:
        config.models.cmr_encoder.update({"depth": 18, "width": 8})
        config.data.synthetic.subjects = 80
        config.data.prepare_workers = 0
    for name in config.order:
        stage = config.stages[name]
        if "objective" not in stage:
            continue
        stage.epochs, stage.batch_size = epochs, 8
        stage.optimizer.warmup_epochs = 0
        stage.ecg_view.length = 1000
        if "cmr" in stage.fields:
            stage.cmr_view.size = 48
        if stage.targets:
            with config.ignore_type():
                stage.targets = tuple(t for t in stage.targets if t not in ("AF", "DM"))
    config.stages.evaluate.update({"resamples": 50, "batch_size": 8})
    return json.loads(config.to_json())


def start(config: dict, folder: pathlib.Path) -> Experiment:
    run = RunDir(folder)
    experiment = Experiment(config, run)
    run.write_config(config)
    return experiment


def rows(folder):
    with (folder / "report" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))
