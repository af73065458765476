"""A trained run in memory: its stages by name, and the compiled programs that apply them."""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from mmcl_jax.augment.views import Views
from mmcl_jax.data.formats.ecg_files import EcgFiles
from mmcl_jax.data.signals.ecg import EcgSettings
from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.data.subject import RefusedRecord
from mmcl_jax.data.tasks.row_task import RowTask, signals
from mmcl_jax.evaluate import window_starts
from mmcl_jax.experiment import Experiment
from mmcl_jax.inference import models as inference_models
from mmcl_jax.inference.models import Column, Group, Trained
from mmcl_jax.objectives.base import Batch, Objective
from mmcl_jax.port import ported
from mmcl_jax.sharding import make_mesh, replicate, shard_batch, to_host
from mmcl_jax.state import make_predict_step

BATCH_SIZE = 256


def load(run_dir: str | os.PathLike, stage: str = "") -> "TrainedRun":
    """A trained run, ready for ECGs; see `mmcl_jax.load`."""
    if ported.is_ported(run_dir):
        return PortedEncoder(run_dir, stage)
    return TrainedRun(Experiment.open(pathlib.Path(run_dir)), stage)


class TrainedRun:
    """What `mmcl_jax.load` returns. Weights are read when they are first needed.

    Args:
        experiment: the run.
        stage: name of the stage to use; '' for the choice of `embedder` and `predictor`.
    """

    def __init__(self, experiment: Experiment, stage: str = ""):
        self._experiment, self._stage = experiment, stage

    @functools.cached_property
    def embedder(self) -> "Program":
        """The encoder of the contrastive stage; without one that of masked data modelling."""
        trained = inference_models.encoder(self._experiment, self._stage)
        return Program([Group((trained,), ())], embed_batch, _crops(self._experiment))

    @functools.cached_property
    def predictor(self) -> "Program":
        """All finished stages that predict something from an ECG."""
        groups = inference_models.predictors(self._experiment, self._stage)
        return Program(groups, "predict", _crops(self._experiment))

    @property
    def predicts(self) -> bool:
        """Whether the run, or its chosen stage, has anything that predicts labels from an ECG."""
        return bool(inference_models.able_to_predict(self._experiment, self._stage))

    def embed(
        self,
        ecg: Float[np.ndarray, "N 12 T"] | Float[np.ndarray, "12 T"] | str | os.PathLike,
        *,
        rate: float = 500.0,
        unit: str = "mV",
        leads: Sequence[str] = LEADS,
        shortest: float = 10.0,
    ) -> Float32[np.ndarray, "N D"] | Float32[np.ndarray, " D"]:
        """Embeddings of ECGs, preprocessed here as for the training.

        Args:
            ecg: [N, 12, T] or [12, T] as measured, in `unit`; T / rate is at least `shortest`, and
                what follows the first 10 s is left out. Or the path of a file (WFDB, CardioSoft
                XML, .npy, .npz, HDF5, .pt), for which the other arguments are those of an array.
            rate: samples per second.
            unit: mV, uV, nV or V.
            leads: names of the rows of an ECG, in any order; III, aVR, aVL and aVF are derived
                where they are not among them.
            shortest: least length in seconds; zeros follow an ECG of less than 10 s.

        Returns:
            [N, D] float32, or [D] for one ECG; D is the width of the encoder, 384 in the paper.

        Raises:
            ValueError: an ECG cannot be used, or the run has no finished encoder.
        """
        program = self.embedder
        signals, single = _prepared(program.settings, ecg, rate, unit, leads, shortest)
        values = program(signals).astype(np.float32)
        return values[0] if single else values

    def predict(
        self,
        ecg: Float[np.ndarray, "N 12 T"] | Float[np.ndarray, "12 T"] | str | os.PathLike,
        *,
        rate: float = 500.0,
        unit: str = "mV",
        leads: Sequence[str] = LEADS,
        shortest: float = 10.0,
    ) -> dict[str, Float[np.ndarray, " N"]] | dict[str, float]:
        """Predictions for ECGs by all fine-tuned stages of the run. Arguments as for `embed`.

        Returns:
            Float64 [N] by column name, or a number for one ECG: `CAD_probability` in [0, 1],
            `LVEDV_mL` in that unit, `rhythm: AF_probability` for the classes of a label. Where
            several seeds were trained this is their mean, and `..._sd` their sample standard
            deviation.

        Raises:
            ValueError: an ECG cannot be used, or the run has no finished stage of that kind.
        """
        program = self.predictor
        signals, single = _prepared(program.settings, ecg, rate, unit, leads, shortest)
        values = program(signals)
        found = {column.name: values[:, k] for k, column in enumerate(program.columns)}
        return {name: float(rows[0]) for name, rows in found.items()} if single else found


class PortedEncoder(TrainedRun):
    """The ECG encoder of a folder that `mmcl_jax.port` wrote: it embeds, and predicts nothing."""

    def __init__(self, folder: str | os.PathLike, stage: str = ""):
        if stage:
            raise ValueError(f"{folder} holds ported weights and no stages; leave out --stage")
        self._folder = folder

    @functools.cached_property
    def embedder(self) -> "Program":
        return Program(
            [Group((inference_models.ported_encoder(self._folder),), ())], embed_batch, 1
        )

    @property
    def predicts(self) -> bool:
        return False

    @property
    def predictor(self) -> "Program":
        raise ValueError(
            f"{self._folder} holds ported weights and no stage that predicts; fine-tune them first"
        )


class Program:
    """Compiled stages, on all devices, with what they put out.

    Args:
        groups: stages that differ in nothing but their seed, and their labels.
        method: of the objective, or a function of it, that gives one array [B, K].
        crops: windows of a record whose outputs are averaged.

    Attributes:
        columns: of the output.
        crops: see above.
        settings: of the preprocessing that the stages were trained with.
        multiple: batch sizes are multiples of it.
    """

    def __init__(self, groups: Sequence[Group], method: str | Callable, crops: int):
        self.groups = tuple(groups)
        self.crops, self._mesh = crops, make_mesh()
        # Inference in parts of 8 rows is the fastest on a CPU, see `state.py`.
        self.multiple = math.lcm(8, self._mesh.devices.size)
        self.settings = inference_models.common_settings(self.groups)
        self.columns: tuple[Column, ...] = inference_models.columns(self.groups)
        steps: dict[Any, Callable] = {}
        self._members = [
            [self._place(trained, method, steps) for trained in group.members]
            for group in self.groups
        ]

    def __call__(self, ecg: Float32[np.ndarray, "N 12 T"]) -> Float[np.ndarray, "N C"]:
        """The columns for preprocessed ECGs, any number of them."""
        # Few sizes, because each is compiled.
        size = self.multiple
        while size < min(len(ecg), BATCH_SIZE):
            size *= 2
        parts = []
        for start in range(0, len(ecg), size):
            rows = ecg[start : start + size]
            batch = np.zeros((size, *rows.shape[1:]), np.float32)
            batch[: len(rows)] = rows
            parts.append(self.collect(self.dispatch(batch), len(rows)))
        return np.concatenate(parts) if parts else np.zeros((0, len(self.columns)))

    def dispatch(self, ecg: Float32[np.ndarray, "B 12 T"]) -> list[list[Array]]:
        """Starts the computation; B is a multiple of `multiple`. `ecg` must stay as it is."""
        batch = {"ecg": ecg, "index": np.arange(len(ecg), dtype=np.int32)}
        on_device = shard_batch({**batch, "valid": np.ones(len(ecg), np.float32)}, self._mesh)
        return [[run(batch, on_device) for run in members] for members in self._members]

    def collect(self, outputs: list[list[Array]], count: int) -> Float[np.ndarray, "n C"]:
        """The columns of the first `count` rows of what `dispatch` returned."""
        found = [
            group.combine(np.stack([np.asarray(x[:count], np.float64) for x in members]))
            for group, members in zip(self.groups, to_host(outputs), strict=True)
        ]
        return np.concatenate(found, axis=1)

    def _place(
        self, trained: Trained, method: str | Callable, steps: dict[Any, Callable]
    ) -> Callable[[Mapping[str, np.ndarray], Batch], Array]:
        views = dataclasses.replace(trained.views, cmr=None, count=1, halves=False)
        params, extra = replicate((trained.params, trained.extra), self._mesh)
        # Seeds of a target share one program.
        key = (trained.objective, views)
        step = steps.setdefault(key, make_predict_step(trained.objective, views, method))
        return functools.partial(_mean_over_windows, step, params, extra, views, self.crops)


def _mean_over_windows(
    step: Callable,
    params: Any,
    extra: Any,
    views: Views,
    crops: int,
    batch: Mapping[str, np.ndarray],
    on_device: Batch,
) -> Array:
    found = [
        jax.tree.leaves(step(params, extra, on_device, start))[0]
        for start in window_starts(views, batch, crops)
    ]
    return sum(found) / len(found)


def embed_batch(objective: Objective, batch: Batch) -> dict[str, Array]:
    """The pooled features; for an encoder that does not pool, the mean of its patch tokens."""
    found = objective.ecg_encoder(batch["ecg"], train=False)
    if "features" in found:
        return {"embedding": found["features"].astype(jnp.float32)}
    return {"embedding": found["latent"][:, 1:].astype(jnp.float32).mean(axis=1)}


def _crops(experiment: Experiment) -> int:
    """Windows per record, as the evaluation of the run averages them."""
    return experiment.config["stages"].get("evaluate", {}).get("crops", 1)


def _prepared(
    settings: EcgSettings,
    ecg: Any,
    rate: float,
    unit: str,
    leads: Sequence[str],
    shortest: float,
) -> tuple[Float32[np.ndarray, "N 12 T"], bool]:
    """Preprocessed ECGs, and whether it is one that was given. Raises ValueError."""
    names = ",".join(leads)
    if isinstance(ecg, str | os.PathLike):
        source = EcgFiles(
            ecg, rate=rate, unit=unit, leads=names, shortest=shortest, settings=settings
        )
        try:
            found = [source.load(task).ecg for task in source.tasks]
        except RefusedRecord as error:
            raise ValueError(str(error)) from error
        return np.stack(found), source.tasks[0].row < 0
    array = np.asarray(ecg)
    if array.ndim not in (2, 3):
        raise ValueError(f"ecg: shape is {array.shape}, expected [N, 12, T] or [12, T]")
    declared = signals(names, rate, unit, False, shortest, settings)
    found = []
    for row, signal in enumerate(array[None] if array.ndim == 2 else array):
        where = "ecg" if array.ndim == 2 else f"ecg[{row}]"
        task = RowTask(where, where, "test", pathlib.Path(where))
        try:
            subject = declared.subject(task, functools.partial(declared.recording, signal))
        except RefusedRecord as error:
            raise ValueError(str(error)) from error
        found.append(subject.ecg)
    if not found:
        return np.zeros((0, len(LEADS), settings.samples), np.float32), False
    return np.stack(found), array.ndim == 2
