"""Which stages of a run do inference, and what their outputs are called."""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mmcl_jax import checkpoints, models, objectives, stages
from mmcl_jax.augment.ecg import EcgAugmentation
from mmcl_jax.augment.views import Views
from mmcl_jax.data.signals.ecg import EcgSettings
from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.data.targets import labels as label_lists
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.experiment import Experiment
from mmcl_jax.port import ported
from mmcl_jax.sharding import make_mesh
from mmcl_jax.stages import Stage


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished stage with the parameters that it hands on.

    Attributes:
        stage, id: which stage, and which training of it.
        objective, views: as trained.
        params, extra: host arrays.
        labels: what it predicts, in order.
        statistics: mean and standard deviation of its regression labels in training.
        settings: of the ECG preprocessing of its training records, as JSON.
    """

    stage: Stage
    id: str
    objective: objectives.Objective
    views: Views
    params: Any
    extra: Any
    labels: tuple[Label, ...]
    statistics: Mapping[str, tuple[float, float]]
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of numbers in the output.

    Attributes:
        name: `CAD_probability`, `LVEDV_mL`, `LVEDV_mL_sd`, `e0`.
        kind: 'embedding', 'probability' or 'value'.
        statistic: 'mean' or 'sd' over seeds; '' where there is one model.
        label: of the cohort; '' of an embedding.
        unit: of the value; '' for a probability and for a pure number.
        description: one line.
        stages: that it comes from.
    """

    name: str
    kind: str
    statistic: str
    label: str
    unit: str
    description: str
    stages: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """Stages of one target with different seeds; one encoder where there are no `labels`."""

    members: tuple[Trained, ...]
    labels: tuple[Label, ...]

    def combine(self, outputs: Float[np.ndarray, "S n K"]) -> Float[np.ndarray, "n C"]:
        """The columns of this group, in units of the labels, from the outputs of every member."""
        if not self.labels:
            return outputs[0]
        values = np.array(outputs)
        for member, rows in zip(self.members, values, strict=True):
            for position, label in enumerate(self.labels):
                if label.kind == "regression":
                    mean, deviation = member.statistics[label.name]
                    rows[:, position] = rows[:, position] * deviation + mean
        if len(values) == 1:
            return values[0]
        both = np.stack([values.mean(axis=0), values.std(axis=0, ddof=1)], axis=2)
        return both.reshape(values.shape[1], -1)


def encoder(experiment: Experiment, name: str = "") -> Trained:
    """The ECG encoder of the named stage; of the contrastive stage, else masked data modelling.

    Raises:
        ValueError: no such stage is finished, or it has no ECG encoder.
    """
    finished = _finished(experiment)
    with_encoder = [stage for stage in finished if "ecg_encoder" in stage.config["towers"]]
    if name:
        chosen = [stage for stage in finished if stage.name == name]
    else:
        order = ("clip", "masked_modelling")
        chosen = [s for kind in order for s in with_encoder if s.config["objective"] == kind]
        chosen = chosen or [stage for stage in with_encoder if not stage.target]
    if not chosen or chosen[0] not in with_encoder:
        what = f"stage {name!r}" if name else "stage of pre-training"
        raise ValueError(
            f"{experiment.run.path} has no finished {what} with an ECG encoder; "
            f"--stage takes {_names(with_encoder)}"
        )
    return _load(experiment, chosen[0])


def ported_encoder(folder: str | os.PathLike) -> Trained:
    """The ECG encoder of a folder that `mmcl_jax.port` wrote, for ECGs preprocessed as usual.

    Weights without the norm behind the mean over the tokens get one that only normalises.

    Raises:
        ValueError: there is no ECG encoder in it.
    """
    found = ported.read(folder)
    if "ecg_encoder" not in found.models:
        raise ValueError(f"{folder} has no ecg_encoder; it has {', '.join(found.models)}")
    spec, params = dict(found.models["ecg_encoder"]), dict(found.params["ecg_encoder"])
    if "fc_norm" not in params and "norm" in params:
        spec["pool"] = "none"
    elif "fc_norm" not in params:
        width = np.shape(params["cls_token"])[-1]
        params["fc_norm"] = {"scale": np.ones(width, "f4"), "bias": np.zeros(width, "f4")}
    network = models.build(spec)
    # Of this objective only the encoder is used.
    objective = objectives.build("simclr", {"ecg_encoder": network})
    return Trained(
        stage=Stage("ecg_encoder", "ported", {}, seed=0),
        id=str(pathlib.Path(folder, "towers.json").stat().st_mtime_ns),
        objective=objective,
        views=Views(ecg=EcgAugmentation(length=network.samples), cmr=None, mesh=make_mesh()),
        params={"ecg_encoder": params},
        extra={},
        labels=(),
        statistics={},
        settings=EcgSettings().as_dict(),
    )


def able_to_predict(experiment: Experiment, name: str = "") -> list[Stage]:
    """The finished stages that predict labels from an ECG; `name` as for `predictors`."""
    below = f"{name.rstrip('/')}/"
    return [
        stage
        for stage in _finished(experiment)
        # Boosted trees read a table, not the ECG.
        if stage.target
        and stage.config["objective"] != "tabular"
        and tuple(stage.config["fields"]) == ("ecg",)
        and (not name or f"{stage.name}/".startswith(below))
    ]


def predictors(experiment: Experiment, name: str = "") -> list[Group]:
    """The finished stages that predict labels from an ECG, by target.

    Args:
        name: a stage, or the first parts of the names of several, such as `finetune/CAD`.

    Raises:
        ValueError: there is none.
    """
    chosen = able_to_predict(experiment, name)
    if not chosen:
        what = f"stage {name!r}" if name else "stage"
        raise ValueError(
            f"{experiment.run.path} has no finished {what} that predicts labels from an ECG; "
            f"--stage takes {_names(able_to_predict(experiment))}"
        )
    groups: dict[tuple[str, str], list[Trained]] = {}
    for stage in chosen:
        groups.setdefault((stage.group, stage.target), []).append(_load(experiment, stage))
    return [Group(tuple(members), members[0].labels) for members in groups.values()]


def columns(groups: Sequence[Group]) -> tuple[Column, ...]:
    """What the outputs of the groups are called, in order.

    A label that several targets predict has the stage and target in front of its name.
    """
    found = [(group, column) for group in groups for column in _columns(group)]
    counts = collections.Counter(column.name for _, column in found)
    named = []
    for group, column in found:
        if counts[column.name] > 1:
            stage = group.members[0].stage
            column = dataclasses.replace(column, name=f"{stage.group}/{stage.target}/{column.name}")
        named.append(column)
    return tuple(named)


def common_settings(groups: Iterable[Group]) -> EcgSettings:
    """The ECG preprocessing that all stages were trained with.

    Raises:
        ValueError: it is not the same for all, or one that this version does not have.
    """
    trained = [member for group in groups for member in group.members]
    first = trained[0]
    for other in trained[1:]:
        if other.settings != first.settings:
            raise ValueError(
                f"stages {first.stage.name} and {other.stage.name} were trained on ECGs that were "
                "preprocessed in different ways; choose one with --stage"
            )
    # Recordings that came preprocessed say so; new ones are preprocessed here, in the same way.
    settings = {k: v for k, v in first.settings.items() if k != "preprocessed"}
    fields = {field.name for field in dataclasses.fields(EcgSettings)}
    if settings.pop("leads", None) != list(LEADS) or set(settings) != fields:
        raise ValueError(
            f"stage {first.stage.name} was trained on ECGs with preprocessing settings that this "
            f"version does not have: {json.dumps(first.settings)}"
        )
    groups_of_leads = tuple(tuple(group) for group in settings.pop("groups"))
    return EcgSettings(**settings, groups=groups_of_leads)


def _columns(group: Group) -> list[Column]:
    names = tuple(member.stage.name for member in group.members)
    if not group.labels:
        width = group.members[0].objective.ecg_encoder.width
        return [Column(f"e{k}", "embedding", "", "", "", "", names) for k in range(width)]
    found = []
    for label in group.labels:
        for output in label.outputs:
            kind = "value" if label.kind == "regression" else "probability"
            suffix = _in_a_name(label.unit) if kind == "value" else kind
            column = Column(
                name=f"{output}_{suffix}" if suffix else output,
                kind=kind,
                statistic="" if len(names) == 1 else "mean",
                label=label.name,
                unit=label.unit,
                description=label.description,
                stages=names,
            )
            found.append(column)
            if len(names) > 1:
                found.append(dataclasses.replace(column, name=f"{column.name}_sd", statistic="sd"))
    return found


def _in_a_name(unit: str) -> str:
    """A unit without characters that queries and file formats take for something else."""
    return unit.replace("%", "percent").replace("/", "_per_").replace(" ", "_")


def _finished(experiment: Experiment) -> list[Stage]:
    return [stage for stage in experiment.training_stages() if experiment.run.done(stage.name)]


def _names(found: Sequence[Stage]) -> str:
    return ", ".join(stage.name for stage in found) or "nothing: no such stage is finished"


def _load(experiment: Experiment, stage: Stage) -> Trained:
    """A stage by what stands in its folder; the cohort is opened where an older run needs it."""
    done = experiment.run.done(stage.name)
    folder = experiment.run.stage(stage.name)
    params, extra, _ = checkpoints.load(folder, done["hand_on"])
    labels, statistics = (), {}
    if stage.target and "labels" in done:
        labels, statistics = label_lists.from_json(done["labels"]), done["statistics"]
    elif stage.target:
        labels = stages.target_labels(stage, experiment.cohort)
        statistics = experiment.cohort.statistics
    objective, views = stages.assemble(stage, experiment.config["models"], labels)
    settings = json.loads((folder / "stage.json").read_text())["data"]["preprocessing"]
    return Trained(
        stage, done["id"], objective, views, params, extra, labels, statistics, settings["ecg"]
    )
