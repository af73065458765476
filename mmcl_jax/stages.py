"""From the settings of a stage to what the loop takes: objective, views, schedule, optimiser.

A training stage with `targets` and `seeds` stands for one stage per target and seed, named
`finetune/CAD/0`.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Int

from mmcl_jax import models, objectives, optim
from mmcl_jax.augment.cmr import CmrAugmentation
from mmcl_jax.augment.ecg import EcgAugmentation
from mmcl_jax.augment.views import Views
from mmcl_jax.data import pipeline
from mmcl_jax.data.cohort import Cohort
from mmcl_jax.data.targets.labels import PHENOTYPES, Label
from mmcl_jax.objectives.base import Batch, Objective
from mmcl_jax.port import ported
from mmcl_jax.recipe import Hyper, Recipe
from mmcl_jax.sharding import check_batch_size, make_mesh
from mmcl_jax.sweep import grid as sweep_grid
from mmcl_jax.train import Schedule

# Settings of the optimiser that make the learning rate.
_RATE_SETTINGS = ("rate", "base_rate", "schedule", "warmup_epochs")
# On a CPU a batch is computed in parts of as many (see `state`).
_CPU_ROWS = 8
# Of a validation batch; in a sweep, where 24 members evaluate theirs together, of each member.
_EVALUATION_ROWS, _SWEEP_ROWS = 256, 64


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage as it is run.

    Attributes:
        name: path below RUN/stages, such as `mdm` or `finetune/CAD/0`.
        group: its name in the configuration, such as `finetune`.
        config: its settings.
        seed: of initialisation, data order and every draw.
        target: label or group of labels that it predicts; empty for pre-training.
    """

    name: str
    group: str
    config: Mapping[str, Any]
    seed: int
    target: str = ""


def expand(config: Mapping[str, Any]) -> list[Stage]:
    """The stages of `config['order']`, one for each target and seed where a stage names them."""
    stages = []
    for group in config["order"]:
        if group not in config["stages"]:
            raise ValueError(
                f"order names stage {group!r}; the configuration has {', '.join(config['stages'])}"
            )
        settings = dict(config["stages"][group])
        if "init" in settings:
            # An empty origin is there to be set on the command line.
            settings["init"] = {tower: at for tower, at in settings["init"].items() if at}
        targets = settings.pop("targets", ())
        seeds = settings.pop("seeds", ())
        if seeds and not targets:
            raise ValueError(f"stages.{group} has seeds but no targets; its seed is config.seed")
        if not targets:
            stages.append(Stage(group, group, settings, config["seed"]))
        for target in targets:
            for seed in seeds or (config["seed"],):
                name = f"{group}/{target}/{seed}"
                stages.append(Stage(name, group, settings, seed, target))
    return stages


def check(stage: Stage, earlier: Sequence[Stage]) -> None:
    """What can be known before anything is trained.

    Raises:
        ValueError: an objective, hand-on or origin that does not exist, a warm-up longer than the
            stage, or a batch that cannot be split over the devices.
    """
    where, config = f"stages.{stage.group}", stage.config
    if config["objective"] == "tabular":
        # It needs this module too.
        from mmcl_jax import tabular

        tabular.check(stage)
        return
    if config["objective"] not in objectives.names():
        raise ValueError(
            f"{where}.objective is {config['objective']!r}; known: {', '.join(objectives.names())}"
        )
    if config["hand_on"] not in ("latest", "best"):
        raise ValueError(f"{where}.hand_on is {config['hand_on']!r}; known: latest, best")
    warmup = config["optimizer"].get("warmup_epochs", 0)
    if not 0 <= warmup < config["epochs"]:
        raise ValueError(
            f"{where}.optimizer.warmup_epochs is {warmup}, expected at least 0 and less than "
            f"{where}.epochs, which is {config['epochs']}"
        )
    if config["accumulate"] < 0:
        raise ValueError(f"{where}.accumulate is {config['accumulate']}, expected at least 0")
    if config.get("sweep"):
        # Its members, not their batches, are split over the devices.
        sweep_grid.check(stage)
        if jax.process_count() > 1:
            raise ValueError(
                f"{where}.sweep: its members train in one process, here are {jax.process_count()}. "
                "Start one with --processes=1 for each target, as launch/slurm_sweep.sh does"
            )
    else:
        check_batch_size(
            config["batch_size"],
            make_mesh(),
            f"{where}.batch_size",
            parts=config["accumulate"] or 1,
        )
    names = [other.name for other in earlier if "objective" in other.config]
    for tower, origin in config["init"].items():
        known = origin in names or ":" in origin or ported.is_ported(origin)
        if not known:
            raise ValueError(
                f"{where}.init takes {tower} from {origin!r}, which is no earlier stage "
                f"({', '.join(names) or 'there is none'}) and no folder that mmcl_jax.port wrote. "
                "A stage of another run is RUN:STAGE"
            )


def check_records(stage: Stage, cohort: Cohort) -> None:
    """What the cohort tells before anything is trained.

    Raises:
        ValueError: a label that it does not have, no usable record, fewer than a batch, a
            learning rate that is not given, or a validation split in which its metric is undefined.
    """
    labels = target_labels(stage, cohort)
    rows, val_rows = select_rows(stage, cohort, labels)
    if stage.config["objective"] == "tabular":
        return
    sweeps = stage.config.get("sweep")
    for one in sweep_grid.of_each_batch_size(stage, labels) if sweeps else [stage]:
        learning_rate(one, schedule(one, cohort, rows, labels))
    columns = [cohort.labels.index(label) for label in labels if label.kind == "binary"]
    values = cohort.table("val")["labels"][val_rows][:, columns]
    has_both = (values == 0).any(axis=0) & (values == 1).any(axis=0)
    by_auroc = _by_kind(stage.config["select"], labels).endswith("auroc")
    if columns and by_auroc and not has_both.any():
        raise ValueError(
            f"the {len(val_rows):,} validation records of {cohort.path} that know "
            f"{', '.join(label.name for label in labels)} are all of one class, so no AUROC "
            "can be computed; prepare the cohort with a larger validation split"
        )


def build(
    stage: Stage, towers: Mapping[str, Any], cohort: Cohort
) -> tuple[objectives.Objective, Views, tuple[Label, ...]]:
    """Objective, views and labels of a stage.

    Args:
        towers: `models` of the configuration: the settings of each tower before the stage's own.
        cohort: says what a target is.
    """
    labels = target_labels(stage, cohort)
    return *assemble(stage, towers, labels), labels


def target_labels(stage: Stage, cohort: Cohort) -> tuple[Label, ...]:
    """What a stage predicts; nothing for pre-training."""
    return cohort.target(_members(stage.target)) if stage.target else ()


def assemble(
    stage: Stage, towers: Mapping[str, Any], labels: Sequence[Label]
) -> tuple[objectives.Objective, Views]:
    """`build` for labels that are known."""
    config = stage.config
    settings = {**config["settings"], "frozen": tuple(config["frozen"])}
    if unknown := [tower for tower in config["towers"] if tower not in towers]:
        raise ValueError(
            f"stages.{stage.group}.towers names {', '.join(unknown)}; models has "
            f"{', '.join(towers)}"
        )
    specs = {tower: {**towers[tower], **changes} for tower, changes in config["towers"].items()}
    if stage.target:
        settings["kind"] = objective_kind(labels)
        outputs = 2 if settings["kind"] == "binary" else sum(len(x.outputs) for x in labels)
        specs["head"] = {**specs["head"], "outputs": outputs}
    built = {tower: models.build(spec) for tower, spec in specs.items()}
    objective = objectives.build(config["objective"], {**settings, **built})
    ecg_view, cmr_view = None, None
    if "ecg" in config["fields"]:
        ecg_view = call(EcgAugmentation, config["ecg_view"], f"stages.{stage.group}.ecg_view")
    if "cmr" in config["fields"]:
        cmr_view = call(CmrAugmentation, config["cmr_view"], f"stages.{stage.group}.cmr_view")
    halves = config["views"] == "halves"
    views = Views(
        ecg=ecg_view,
        cmr=cmr_view,
        count=2 if halves else config["views"],
        halves=halves,
        mesh=make_mesh(),
    )
    return objective, views


def select_rows(
    stage: Stage, cohort: Cohort, labels: Sequence[Label]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Rows of the training and of the validation split that a stage uses."""
    config = stage.config
    common = {
        "fields": tuple(config["fields"]),
        "target": tuple(label.name for label in labels) or None,
    }
    rows = pipeline.select(
        cohort,
        "train",
        balanced=config["balanced"] and objective_kind(labels) == "binary",
        fraction=config["fraction"],
        seed=config["selection_seed"],
        **common,
    )
    return rows, pipeline.select(cohort, "val", **common)


def _by_kind(setting: Any, labels: Sequence[Label]) -> Any:
    """The part of a setting that is for regression or for classification."""
    if not labels or not isinstance(setting, Mapping):
        return setting
    return setting["regression" if labels[0].kind == "regression" else "classification"]


def schedule(
    stage: Stage, cohort: Cohort, rows: Int[np.ndarray, " n"], labels: Sequence[Label]
) -> Schedule:
    """How long a stage trains on `rows` of the training split, in steps."""
    config = stage.config
    batch_size = config["batch_size"]
    per_epoch = pipeline.steps_per_epoch(cohort, "train", rows, batch_size)
    return Schedule(
        steps=config["epochs"] * per_epoch,
        steps_per_epoch=per_epoch,
        batch_size=batch_size,
        evaluate_every=config["evaluate_every_epochs"] * per_epoch,
        log_every=config["log_every"],
        select=_by_kind(config["select"], labels),
        patience=config["patience"],
        band=_by_kind(config["band"], labels),
    )


def recipe(
    stage: Stage,
    objective: objectives.Objective,
    views: Views,
    schedule: Schedule,
) -> Recipe:
    """The recipe of a stage; its `hyper` holds what stages may differ in without a new program.

    Raises:
        ValueError: the settings give no learning rate, or two, or lengths that do not fit.
    """
    where, settings = f"stages.{stage.group}.optimizer", dict(stage.config["optimizer"])
    length, peak = _length(settings, schedule), _peak(stage, schedule)
    fixed = {k: v for k, v in settings.items() if k not in (*_RATE_SETTINGS, "weight_decay")}
    if "weight_decay" not in settings:
        raise ValueError(f"{where} needs weight_decay, the coefficient of the decay (0 for none)")
    hyper = {"rate": peak, "weight_decay": settings["weight_decay"]}
    if fixed.pop("layer_decay", None) is not None:
        hyper["layer_decay"] = settings["layer_decay"]
    if length["name"] == "cosine":
        hyper |= {"steps": length["steps"], "warmup": length["warmup"]}
    if getattr(objective, "label_smoothing", 0):
        hyper["label_smoothing"] = objective.label_smoothing
    ecg_encoder = getattr(objective, "ecg_encoder", None)
    if getattr(ecg_encoder, "drop_path", 0):
        hyper["drop_path"] = ecg_encoder.drop_path
    if hasattr(objective, "total_steps"):
        objective = objective.clone(total_steps=schedule.steps)
    # Blocks, for layer decay.
    depth = getattr(ecg_encoder, "depth", None)
    held = (*(f"^{tower}/" for tower in stage.config["frozen"]), *stage.config["frozen_parameters"])

    def optimizer(params: Any, hyper: Hyper) -> optax.GradientTransformation:
        moving = {name: hyper[name] for name in ("steps", "warmup") if name in hyper}
        rate = optim.schedule(base=hyper["rate"], **{**length, **moving})
        changing = {name: hyper[name] for name in ("weight_decay", "layer_decay") if name in hyper}
        arguments = {**fixed, **changing, "params": params, "schedule": rate}
        return call(optim.optimizer, {**arguments, "frozen": held, "depth": depth}, where)

    return Recipe(objective, views, optimizer, hyper, held, stage.config["accumulate"])


def learning_rate(stage: Stage, schedule: Schedule) -> optim.Schedule:
    """Learning rate by step, for the log. Raises ValueError as `recipe` does."""
    length = _length(stage.config["optimizer"], schedule)
    return optim.schedule(base=_peak(stage, schedule), **length)


def evaluation_batch_size(stage: Stage, objective: Objective, batch: Batch, rows: int) -> int:
    """Rows of a batch of the validation split.

    Those of training where the loss compares rows with each other. Else about 256, or those of
    training where they are more: a batch of fine-tuning is too small to keep an accelerator busy.
    The split is parted evenly, so that little is padding.

    Args:
        batch: any one.
        rows: of the split.
    """
    size = stage.config["batch_size"]
    if objective.weight(batch) is None:
        return size
    return _even(rows, max(size, _EVALUATION_ROWS), math.lcm(_CPU_ROWS, jax.device_count()))


def sweep_evaluation_size(batch_size: int, rows: int) -> int:
    """Rows of the validation split that each member of a sweep evaluates at a time.

    Args:
        rows: of the split.
    """
    return _even(rows, max(batch_size, _SWEEP_ROWS), _CPU_ROWS)


def _even(rows: int, most: int, multiple: int) -> int:
    """Rows of each part where `rows` are parted evenly, into as few as can be."""
    parts = -(-rows // most)
    return -(-rows // (parts * multiple)) * multiple


def _length(settings: Mapping[str, Any], schedule: Schedule) -> dict[str, Any]:
    return {
        "name": settings.get("schedule", "cosine"),
        "steps": schedule.steps,
        "warmup": settings.get("warmup_epochs", 0) * schedule.steps_per_epoch,
        "steps_per_epoch": schedule.steps_per_epoch,
    }


def _peak(stage: Stage, schedule: Schedule) -> float:
    """Highest learning rate."""
    base = stage.config["optimizer"].get("base_rate")
    rate = stage.config["optimizer"].get("rate")
    if (base is None) == (rate is None):
        raise ValueError(
            f"stage {stage.name}: the optimizer takes either `rate`, the learning rate, or "
            "`base_rate`, multiplied by batch size / 4"
        )
    return rate if base is None else optim.scaled_rate(base, schedule.batch_size)


def call(make: Callable, settings: Mapping[str, Any], where: str) -> Any:
    """`make(**settings)`, with lists, as JSON has them, as tuples.

    Raises:
        ValueError: a setting that `make` does not know, naming it and where it stands.
    """
    known = list(inspect.signature(make).parameters)
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"{where} has no field {', '.join(unknown)}; it has {', '.join(known)}")
    return make(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})


def objective_kind(labels: Sequence[Label]) -> str:
    """`binary`, `multiclass`, `multilabel` or `regression`, as the labels of one target are."""
    kinds = {label.kind for label in labels}
    if len(kinds) > 1:
        raise ValueError(
            "one target cannot mix kinds of labels: "
            + ", ".join(f"{label.name} is {label.kind}" for label in labels)
        )
    if kinds == {"binary"}:
        return "binary" if len(labels) == 1 else "multilabel"
    if kinds == {"multiclass"} and len(labels) > 1:
        names = ", ".join(label.name for label in labels)
        raise ValueError(f"one target is one multi-class label, found {names}; name one of them")
    return "multiclass" if kinds == {"multiclass"} else "regression"


def _members(target: str) -> str | tuple[str, ...]:
    """`phenotypes` stands for all 61; anything else is a label or a group of the cohort."""
    return tuple(label.name for label in PHENOTYPES) if target == "phenotypes" else target
