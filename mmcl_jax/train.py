"""The training loop: one for every objective.

Order within the loop: step, fetch the next batch, log, and at the end of an evaluation period
evaluate, save the best, save the latest. The batch of step k and its random draws are functions of
k, so nothing but the state has to be restored to continue.
"""

import contextlib
import dataclasses
import math
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mmcl_jax.checkpoints import Checkpoints
from mmcl_jax.objectives.base import Objective
from mmcl_jax.progress import Progress
from mmcl_jax.recipe import Recipe
from mmcl_jax.run_dir import MetricsWriter, RunDir
from mmcl_jax.sharding import check_batch_size, make_mesh, replicate, shard_batch, to_host
from mmcl_jax.state import Resident, State, make_eval_step, make_train_step


class NonFiniteLoss(RuntimeError):
    """The loss or the gradient is no number any more."""


class Interrupted(RuntimeError):
    """SIGINT or SIGTERM came; the state is saved."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a stage trains and when it looks up.

    Attributes:
        steps: optimiser steps of the whole stage.
        steps_per_epoch: to tell epochs from steps.
        batch_size: examples per step, over all devices.
        evaluate_every: steps between evaluations on the validation split; 0 for the end only.
        log_every: steps between lines in metrics.jsonl.
        select: metric that decides which parameters are best, such as `val/loss` (lowest) or
            `val/auroc`, `val/r` (highest).
        patience: evaluations without coming within `band` of the best before stopping; -1 for
            never.
        band: how far below the best a value may be and still count as no decline.
    """

    steps: int
    steps_per_epoch: int
    batch_size: int
    evaluate_every: int
    log_every: int
    select: str = "val/loss"
    patience: int = -1
    band: float = 0.0

    def __post_init__(self):
        for name in ("steps", "steps_per_epoch", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")


@dataclasses.dataclass
class EarlyStopping:
    """Best value so far and how many evaluations ago (facts, section 7)."""

    sign: int
    patience: int
    band: float
    best: float = -math.inf
    best_step: int = 0
    waited: int = 0

    def update(self, step: int, value: float) -> bool:
        """Takes the value of an evaluation; True where it is the best so far."""
        score = self.sign * value
        self.waited = 0 if score >= self.best - self.band else self.waited + 1
        if score > self.best:
            self.best, self.best_step = score, step
            return True
        return False

    @property
    def stop(self) -> bool:
        return self.patience >= 0 and self.waited > self.patience

    def to_json(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}


def train(
    run: RunDir,
    stage: str,
    recipe: Recipe,
    state: State,
    checkpoints: Checkpoints,
    *,
    learning_rate: Callable[[int], float],
    schedule: Schedule,
    train_batches: Callable[[int], Iterator[Mapping[str, np.ndarray]]],
    eval_batches: Callable[[], Iterable[Mapping[str, np.ndarray]]],
    seed: int,
    train_resident: Resident | None = None,
    eval_resident: Resident | None = None,
    writers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains to the end of `schedule` or an early stop, from the latest checkpoint on.

    Args:
        recipe: what a step does.
        state: fresh state at step 0.
        checkpoints: of this stage; closing them, also after an error, is the caller's business.
        learning_rate: rate at a step, for the log.
        train_batches: endless batches from a given step on.
        eval_batches: the validation split, once through.
        seed: root of every random draw of the step.
        train_resident, eval_resident: recordings that are on every device already; the batches
            then bring only labels and `index`.
        writers: further arguments of `MetricsWriter`.

    Returns:
        JSON summary: steps taken, best step and value, last metrics.

    Raises:
        NonFiniteLoss: naming stage and step.
        Interrupted: after a signal, once the state is saved.
    """
    # --- restore -------------------------------------------------------------------------------
    mesh = make_mesh()
    check_batch_size(schedule.batch_size, mesh, f"stage {stage}", parts=recipe.accumulate or 1)
    sign = -1 if schedule.select.endswith("loss") else 1
    stopping = EarlyStopping(sign, schedule.patience, schedule.band)
    last_metrics: dict[str, float] = {}
    state = replicate(state, mesh)
    if restored := checkpoints.restore_latest(state):
        state, progress = restored
        stopping = dataclasses.replace(stopping, **progress["stopping"])
        last_metrics = progress["metrics"]
    step = int(state.step)
    writer = MetricsWriter(run, stage, resume_step=step, **(writers or {}))
    bar = Progress(
        schedule.steps,
        title=stage,
        unit="steps",
        per_item=schedule.batch_size,
        rate_unit="examples",
        enabled=jax.process_index() == 0,
    )

    # --- compiled functions --------------------------------------------------------------------
    train_step = make_train_step(recipe)
    eval_step = make_eval_step(recipe.objective, recipe.views)
    root_key = replicate(jax.random.key(seed), mesh)
    hyper = replicate({name: np.float32(value) for name, value in recipe.hyper.items()}, mesh)
    train_resident, eval_resident = train_resident or {}, eval_resident or {}
    batches = train_batches(step)
    pending: deque[tuple[int, dict[str, jax.Array]]] = deque()

    def log() -> None:
        fetched = [(at, to_host(values)) for at, values in pending]
        pending.clear()
        for at, values in fetched:
            check_finite(stage, at, values)
        at = fetched[-1][0]
        means = {name: float(np.mean([v[name] for _, v in fetched])) for name in fetched[-1][1]}
        values = {f"train/{name}": value for name, value in means.items()}
        values["train/learning_rate"] = float(learning_rate(at - 1))
        writer.write(at, at / schedule.steps_per_epoch, values)

    def save(metrics: Mapping[str, float]) -> None:
        progress = {"stopping": stopping.to_json(), "metrics": dict(metrics)}
        checkpoints.save_latest(state, progress)

    # --- loop ----------------------------------------------------------------------------------
    closing = contextlib.closing
    with SignalWatch() as signals, bar, closing(batches), closing(writer):
        training = step < schedule.steps and not stopping.stop
        batch = shard_batch(next(batches), mesh) if training else None
        while step < schedule.steps and not stopping.stop:
            state, metrics = train_step(state, batch, root_key, hyper, train_resident)
            step += 1
            if pending:
                # At most one step waits on the device while the host prepares the next.
                jax.block_until_ready(pending[-1][1]["loss"])
            pending.append((step, metrics))
            bar.update(step)

            finished = step == schedule.steps
            evaluate_now = finished or (
                schedule.evaluate_every and step % schedule.evaluate_every == 0
            )
            stop = signals.received
            if not (finished or stop):
                # On its way to the device while that is busy with the step.
                batch = shard_batch(next(batches), mesh)
            if evaluate_now or step % schedule.log_every == 0 or stop:
                log()
            if evaluate_now:
                last_metrics = evaluate(
                    recipe.objective, eval_step, state, eval_batches(), mesh, eval_resident
                )
                writer.write(step, step / schedule.steps_per_epoch, last_metrics)
                value = selected(last_metrics, schedule.select, stage)
                if not math.isfinite(value):
                    raise NonFiniteLoss(f"stage {stage}, step {step}: {schedule.select} is {value}")
                if stopping.update(step, value):
                    checkpoints.save_best(state)
                save(last_metrics)
            elif stop:
                save(last_metrics)
            if stop:
                raise Interrupted(
                    f"stage {stage} stopped by {signals.name} and saved at step {step} of "
                    f"{schedule.steps}",
                    stop,
                )
    return {
        "steps": step,
        "epochs": step / schedule.steps_per_epoch,
        "best_step": stopping.best_step,
        "select": schedule.select,
        "best": sign * stopping.best,
        "stopped_early": stopping.stop,
        "metrics": last_metrics,
    }


def evaluate(
    objective: Objective,
    eval_step: Callable,
    state: State,
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: jax.sharding.Mesh,
    resident: Resident,
) -> dict[str, float]:
    """Metrics of a whole split: batch means weighted by their valid rows, and `summarise`."""
    totals: dict[str, float] = {}
    count = 0.0
    gathered: list[tuple[dict, dict]] = []
    for batch in batches:
        on_device = shard_batch(batch, mesh)
        metrics, outputs = eval_step(state.params, state.extra, on_device, resident)
        known = ("labels", "label_valid", "valid", "index")
        labels = {name: on_device[name] for name in known if name in batch}
        metrics, outputs, labels = to_host((metrics, outputs, labels))
        valid = labels["valid"] > 0
        gathered.append(
            ({k: v[valid] for k, v in outputs.items()}, {k: v[valid] for k, v in labels.items()})
        )
        count += float(valid.sum())
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + float(value) * float(valid.sum())
    outputs, labels = (
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*gathered, strict=True)
    )
    means = {name: total / count for name, total in totals.items()}
    summary = {**means, **objective.summarise(outputs, labels)}
    return {f"val/{name}": value for name, value in summary.items()}


def check_finite(stage: str, step: int, values: Mapping[str, np.ndarray]) -> None:
    """Raises NonFiniteLoss where the loss or the gradient norm of a step is NaN or infinite."""
    for name in ("loss", "gradient_norm"):
        if not np.isfinite(values[name]):
            raise NonFiniteLoss(
                f"stage {stage}, step {step}: {name} is {float(values[name])}. The last checkpoint "
                "is from before this step; lower the learning rate or look at the records of "
                "this batch"
            )


def selected(metrics: Mapping[str, float], name: str, stage: str) -> float:
    """The metric that decides which parameters are best. Raises ValueError where there is none."""
    if name not in metrics:
        raise ValueError(
            f"stage {stage} selects by {name}, which its validation split does not give; it gives "
            f"{', '.join(sorted(metrics))} (a metric such as AUROC needs both classes in the split)"
        )
    return metrics[name]


class SignalWatch:
    """Remembers SIGINT and SIGTERM until the loop has finished its step; a second one kills."""

    def __init__(self):
        self.received = 0

    @property
    def name(self) -> str:
        return signal.Signals(self.received).name

    def __enter__(self):
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        del frame
        self.received = number
        signal.signal(number, self._old[number])
