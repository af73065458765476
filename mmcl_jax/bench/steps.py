"""Our steps with synthetic inputs: the training steps of the stages, and the ECG embedding.

A training step is the production one: augmentation on the device, donated state, the stage's
optimiser. It runs on one device.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmcl_jax import models, objectives, optim
from mmcl_jax.augment.cmr import CmrAugmentation
from mmcl_jax.augment.ecg import EcgAugmentation
from mmcl_jax.augment.views import Views
from mmcl_jax.bench import settings, work
from mmcl_jax.recipe import Recipe
from mmcl_jax.sharding import make_mesh, replicate, shard_batch
from mmcl_jax.state import State, initialise, make_predict_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Step:
    """One step that can be compiled; nothing is allocated before `arguments` is called.

    Attributes:
        name: one of `settings.STEPS`.
        batch_size: examples in a step.
        dtype: of the computation.
        size: 'full' or 'tiny'.
        spec: its settings, as in `settings.FULL`.
        objective: model and loss.
        views: what makes the model's input from a batch.
    """

    name: str
    batch_size: int
    dtype: str
    size: str
    spec: dict[str, Any]
    objective: objectives.Objective
    views: Views

    @property
    def training(self) -> bool:
        return self.name != "embed"

    def function(self) -> Callable:
        """The jitted step of `arguments`."""
        if not self.training:
            return _embedding(self.objective, self.views)
        return make_train_step(self.recipe())

    def arguments(self) -> tuple:
        """Fresh arguments on the device, the same ones every time.

        The first one is the state that a training step replaces, or the parameters.
        """
        batch = example_batch(self.name, self.batch_size, self.spec, self.size)
        mesh = self.views.mesh
        state = jax.jit(self._state)({name: rows[:2] for name, rows in batch.items()})
        state, batch = replicate(state, mesh), shard_batch(batch, mesh)
        if not self.training:
            return state, batch
        # The last one: no recordings stay on the device, each batch brings its own.
        return state, batch, *replicate((jax.random.key(1), self._hyper()), mesh), {}

    def shapes(self) -> tuple:
        """Shapes and dtypes of the arguments."""
        rows = example_batch(self.name, 2, self.spec, self.size)
        batch = {
            name: jax.ShapeDtypeStruct((self.batch_size, *array.shape[1:]), array.dtype)
            for name, array in rows.items()
        }
        state = jax.eval_shape(self._state, rows)
        if not self.training:
            return state, batch
        return state, batch, *jax.eval_shape(lambda: (jax.random.key(1), self._hyper())), {}

    def work(self) -> work.Work:
        """FLOPs and bytes of a step."""
        plain = build(self.name, self.batch_size, "float32", self.size)
        state, batch = plain.shapes()[:2]
        views = dataclasses.replace(plain.views, mesh=None)
        seen = jax.eval_shape(
            lambda rows: views(jax.random.key(0), rows, train=self.training), batch
        )
        if not self.training:
            encoder = plain.objective.ecg_encoder
            forward, arguments = encoder.apply, ({"params": state}, seen["ecg"])
        else:
            forward, arguments = plain._loss, (state.params, state.extra, seen)
        return work.of_step(
            forward, arguments, state=state, batch=batch, dtype=self.dtype, training=self.training
        )

    def _loss(self, params, extra, batch):
        streams = {name: jax.random.key(0) for name in ("mask", "drop_path", "dropout")}
        return self.objective.apply(
            {"params": params, **extra}, batch, train=True, rngs=streams, mutable=list(extra)
        )

    def _state(self, batch):
        params, extra = initialise(self.objective, self.views, batch, jax.random.key(0))
        if not self.training:
            return params["ecg_encoder"]
        recipe = self.recipe()
        return State(
            step=jnp.zeros((), jnp.int32),
            params=params,
            extra=extra,
            optimizer_state=recipe.optimizer(params, recipe.hyper).init(params),
        )

    def _hyper(self):
        return {name: jnp.float32(value) for name, value in self.recipe().hyper.items()}

    def recipe(self, *, mesh: bool = True) -> Recipe:
        """What `stages.recipe` makes of these settings, without a cohort.

        Args:
            mesh: whether the views know their device; not where members are mapped over.
        """
        fixed = dict(self.spec["optimizer"])
        for field in ("rate", "base_rate", "schedule", "warmup_epochs"):
            fixed.pop(field, None)
        # How high and how long does not change what a step costs.
        hyper = {"rate": 1e-4, "steps": 100_000, "warmup": 100}
        changing = [name for name in ("weight_decay", "layer_decay") if name in fixed]
        hyper |= {name: fixed.pop(name) for name in changing}
        if smoothing := self.spec["settings"].get("label_smoothing"):
            hyper["label_smoothing"] = smoothing
        if drop_path := self.objective.ecg_encoder.drop_path:
            hyper["drop_path"] = drop_path
        frozen = self.spec["frozen_parameters"]
        depth = self.objective.ecg_encoder.depth

        def optimizer(params, hyper):
            rate = optim.schedule(base=hyper["rate"], steps=hyper["steps"], warmup=hyper["warmup"])
            moving = {name: hyper[name] for name in changing}
            return optim.optimizer(
                params, schedule=rate, depth=depth, frozen=frozen, **fixed, **moving
            )

        views = self.views if mesh else dataclasses.replace(self.views, mesh=None)
        return Recipe(self.objective, views, optimizer, hyper, frozen)


class Runner:
    """A compiled step with its arguments; `run` does steps in a row, as training does."""

    def __init__(self, step: Step):
        function, arguments = step.function(), step.arguments()
        start = time.perf_counter()
        lowered = function.trace(*arguments).lower()
        lowered_at = time.perf_counter()
        self.compiled = lowered.compile()
        self.lower_seconds = lowered_at - start  # tracing and lowering
        self.compile_seconds = time.perf_counter() - lowered_at
        self._training = step.training
        self._state, *self._rest = arguments

    def run(self, count: int) -> None:
        """Does `count` steps and waits for the last one."""
        for _ in range(count):
            output = self.compiled(self._state, *self._rest)
            if self._training:
                self._state = output[0]
        jax.block_until_ready(output)


def build(name: str, batch_size: int, dtype: str, size: str = "full", **changes: Any) -> Step:
    """A step of `settings.STEPS`.

    Args:
        changes: fields of towers, such as cmr_encoder={'rematerialise': True}.

    Raises:
        ValueError: there is no such step.
    """
    if name not in settings.STEPS:
        raise ValueError(f"no step named {name!r}; known: {', '.join(settings.STEPS)}")
    spec = settings.spec(name, size, dtype)
    towers = {tower: fields | changes.get(tower, {}) for tower, fields in spec["towers"].items()}
    chosen = dict(spec["settings"])
    if spec["objective"] == "supervised":
        towers["head"] |= {"outputs": 2}
        chosen["kind"] = "binary"
    spec = {**spec, "towers": towers}
    built = {tower: models.build(fields) for tower, fields in towers.items()}
    cmr = "cmr" in spec["fields"] and name != "embed"
    views = Views(
        ecg=EcgAugmentation(**spec["ecg_view"]),
        cmr=CmrAugmentation(**spec["cmr_view"]) if cmr else None,
        mesh=make_mesh(jax.devices()[:1]),
    )
    if name == "embed":
        objective = _OneTower(ecg_encoder=built["ecg_encoder"])
    else:
        objective = objectives.build(spec["objective"], {**chosen, **built})
    return Step(name, batch_size, dtype, size, spec, objective, views)


def example_batch(
    name: str, batch_size: int, spec: dict[str, Any], size: str
) -> dict[str, np.ndarray]:
    """Random rows as the pipeline would hand them over, the same ones for the same arguments."""
    generator = np.random.default_rng(0)
    shapes = settings.RECORD[size]
    batch = {
        "ecg": generator.standard_normal((batch_size, *shapes["ecg"]), np.float32),
        "index": np.arange(batch_size, dtype=np.int32),
        "valid": np.ones(batch_size, np.float32),
    }
    if name == "embed":
        return batch
    if "cmr" in spec["fields"]:
        batch["cmr"] = generator.integers(0, 255, (batch_size, *shapes["cmr"]), np.uint8)
        batch["cmr_box"] = np.tile(np.array([settings.BOX[size]], np.int32), (batch_size, 1))
    if spec["objective"] == "supervised":
        batch["labels"] = (batch["index"] % 2).astype(np.float32)[:, None]
        batch["label_valid"] = np.ones((batch_size, 1), np.float32)
    return batch


class _OneTower(objectives.Objective):
    """The ECG encoder alone, so that nothing else is initialised."""

    ecg_encoder: Any = None

    def __call__(self, batch, *, train):
        features = self.ecg_encoder(batch["ecg"], train=False)["features"]
        return features.mean(), {}

    def predict(self, batch):
        return {"features": self.ecg_encoder(batch["ecg"], train=False)["features"]}


def _embedding(objective, views) -> Callable:
    predict = make_predict_step(objective, views)
    return jax.jit(lambda params, batch: predict({"ecg_encoder": params}, {}, batch)["features"])
