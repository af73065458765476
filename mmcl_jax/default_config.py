"""What every configuration starts from: infrastructure, and the fields that a stage may set.

`configs/` is loaded by path and cannot import its neighbours, so what its files share is here; one
that builds on another takes it with `neighbour`. No number of the paper is here: those stand in
`configs/`.
"""

import importlib.util
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from mmcl_jax.data.images.cmr import CmrSettings
from mmcl_jax.data.signals.ecg import EcgSettings


def experiment(name: str) -> ConfigDict:
    """An experiment without stages; `stages` and `order` are for the configuration to fill."""
    return ConfigDict(
        {
            # Also the column `model` of report/metrics.csv.
            "name": name,
            # Of every stage that does not list seeds of its own.
            "seed": 0,
            "data": {
                # A prepared cohort; empty for the synthetic one, made in the run directory.
                "path": "",
                "synthetic": {
                    "subjects": 2000,
                    "seed": 0,
                    "prevalence": "paper",
                    "phenotyped": 0.5,
                    # Training, validation and test subjects in per cent.
                    "splits": (70, 15, 15),
                },
                # A leak test: training and validation records get each other's labels, so results
                # on the test split must be those of chance.
                "shuffle_labels": False,
                # Processes that prepare the synthetic cohort; -1 for one per core.
                "prepare_workers": -1,
                # Recordings on the device for the whole of a stage, kept in memory where they are
                # not on the device: auto where they fit, always or never.
                "resident": "auto",
                "cache": "auto",
                # Processes that read those in neither; 0 reads in threads of this one.
                "workers": 0,
                # At a damaged record: stop, or skip it with a count in the metrics.
                "on_corrupt": "stop",
                # The cohort must have been prepared like this.
                "preprocessing": {"ecg": EcgSettings().as_dict(), "cmr": CmrSettings().as_dict()},
            },
            # Parameters and optimiser state: replicate puts them whole on every device; fsdp splits
            # them, which needs less memory and more communication. The results are the same.
            "sharding": {"parameters": "replicate"},
            "models": {},
            "order": (),
            "stages": {},
            "writers": {
                # RUN/tensorboard; needs the extra `tensorboard`.
                "tensorboard": False,
                # Needs the extra `wandb`. Offline until told otherwise.
                "wandb": {"enabled": False, "project": "", "entity": "", "mode": "offline"},
            },
        }
    )


def stage(objective: str, **fields: Any) -> ConfigDict:
    """A training stage: `fields` over the defaults below.

    Raises:
        ValueError: a field that no stage has.
    """
    config = ConfigDict(
        {
            # File of mmcl_jax/objectives, and its settings.
            "objective": objective,
            "settings": {},
            # Tower -> changes to config.models[tower].
            "towers": {},
            # Tower -> stage that it is taken from, RUN:STAGE for another run directory, or a folder
            # that mmcl_jax.port wrote; empty for fresh parameters.
            "init": {},
            # Regular expressions of parameters that start fresh although their tower is taken over,
            # and of parameters of the taken tower that are left behind.
            "new": (),
            "unused": (),
            # Towers that are not trained, and regular expressions of single parameters.
            "frozen": (),
            "frozen_parameters": (),
            # What is predicted (labels or groups), once per seed; nothing for pre-training.
            "targets": (),
            "seeds": (),
            # A grid of settings, searched for each target (see mmcl_jax/sweep/grid.py).
            "sweep": {},
            # Modalities that a record must have.
            "fields": ("ecg",),
            "ecg_view": {},
            "cmr_view": {},
            # Of each record: 1, 2, or "halves" for two of which each sees one half of the ECG.
            "views": 1,
            # Training records: all positives and as many negatives (binary targets), a share of
            # them, and the seed of that selection, the same for every seed of the training.
            "balanced": False,
            "fraction": 1.0,
            "selection_seed": 0,
            # Of the order of the records; -1 for the seed of the stage.
            "order_seed": -1,
            "batch_size": 128,
            # Parts of a batch, computed one after another to save memory; not for losses that
            # compare the records of a batch (clip, simclr). 0 chooses what is fast: parts of 8
            # examples on a CPU, otherwise one.
            "accumulate": 0,
            "epochs": 1,
            "evaluate_every_epochs": 1,
            "log_every": 50,
            "optimizer": {},
            # Metric of the best parameters; with targets, one per kind of label.
            "select": "val/loss",
            "hand_on": "best",
            "patience": -1,
            "band": 0.0,
        }
    )
    if unknown := sorted(set(fields) - set(config)):
        raise ValueError(f"a stage has no field {', '.join(unknown)}; it has {', '.join(config)}")
    with config.ignore_type():
        config.update(fields)
    return config


def arguments(text: str | None, known: Mapping[str, str]) -> frozenset[str]:
    """The words behind the colon of `--config=file.py:word,word`.

    Args:
        known: what each word does.

    Raises:
        ValueError: an unknown word.
    """
    words = frozenset(word for word in (text or "").split(",") if word)
    if unknown := sorted(words - set(known)):
        meanings = "; ".join(f"{word}: {meaning}" for word, meaning in known.items())
        raise ValueError(f"unknown config argument {', '.join(unknown)}. Known: {meanings}")
    return words


def neighbour(file: str, name: str) -> Callable[[str | None], ConfigDict]:
    """`get_config` of the configuration `name` in the folder of `file`.

    Args:
        file: `__file__` of the configuration that builds on it.

    Raises:
        FileNotFoundError: there is no such configuration.
    """
    path = pathlib.Path(file).with_name(f"{name}.py")
    if not path.is_file():
        raise FileNotFoundError(f"{file} builds on {path}, which does not exist; copy it too")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config
