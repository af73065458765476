"""The training loop: one for every objective.

Order within the loop: step, fetch the next batch, log, and at the end of an evaluation period
evaluate, save the best, save the latest. The batch of step k and its random draws are functions of
k, so nothing but the state has to be restored to continue.
"""

import contextlib
import dataclasses
import math
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mmcl_jax import distributed
from mmcl_jax.checkpoints import Checkpoints
from mmcl_jax.early_stopping import EarlyStopping, find_best, selected
from mmcl_jax.interruption import Interrupted, SignalWatch
from mmcl_jax.non_finite import (
    Describe,
    NonFiniteLoss,
    NonFiniteOutputs,
    NonFiniteReport,
    is_finite,
)
from mmcl_jax.objectives.base import Objective
from mmcl_jax.progress import Progress
from mmcl_jax.recipe import Recipe
from mmcl_jax.run_dir import MetricsWriter, RunDir
from mmcl_jax.sharding import (
    check_batch_size,
    make_mesh,
    place,
    replicate,
    shard_batch,
    shardings,
    to_host,
    whole,
)
from mmcl_jax.state import Resident, State, make_eval_step, make_train_step

__all__ = [
    "EarlyStopping",
    "Interrupted",
    "NonFiniteLoss",
    "Schedule",
    "SignalWatch",
    "evaluate",
    "selected",
    "train",
]


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
        patience: evaluations in a row that may stay more than `band` below the best; the one
            after them ends the training. -1 for never.
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
    parameters: str = "replicate",
    describe: Describe | None = None,
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
        parameters: how they are on the devices, see `sharding.shardings`.
        describe: looks at the records of a batch whose loss is no number.

    Returns:
        JSON summary: steps taken, best step and value, last metrics.

    Raises:
        NonFiniteLoss: naming stage and step, and the file that lists the records.
        Interrupted: after a signal, once the state is saved.
        DamagedCheckpoint, OSError: of `checkpoints`.
    """
    # --- restore -------------------------------------------------------------------------------
    mesh = make_mesh()
    check_batch_size(schedule.batch_size, mesh, f"stage {stage}", parts=recipe.accumulate or 1)
    sign = -1 if schedule.select.endswith("loss") else 1
    stopping = EarlyStopping(sign, schedule.patience, schedule.band)
    last_metrics: dict[str, float] = {}
    evaluation_due = False
    distributed.check_same(state.params, f"initial parameters of stage {stage}")
    placed = shardings(state, mesh, parameters)
    state = place(state, placed)
    if restored := checkpoints.restore_latest(state):
        state, progress = restored
        stopping = dataclasses.replace(stopping, **progress["stopping"])
        last_metrics = progress["metrics"]
        evaluation_due = progress.get("evaluation_due", False)
        find_best(checkpoints, state, stopping)
    step = int(state.step)
    writer = MetricsWriter(
        run, stage, resume_step=step, evaluation_due=evaluation_due, **(writers or {})
    )
    bar = Progress(
        schedule.steps,
        title=stage,
        unit="steps",
        per_item=schedule.batch_size,
        rate_unit="examples",
        enabled=jax.process_index() == 0,
    )

    # --- compiled functions --------------------------------------------------------------------
    train_step = make_train_step(recipe, placed)
    stopped_by = distributed.SharedNumber(mesh)
    eval_step = make_eval_step(recipe.objective, recipe.views)
    root_key = replicate(jax.random.key(seed), mesh)
    hyper = replicate({name: np.float32(value) for name, value in recipe.hyper.items()}, mesh)
    train_resident, eval_resident = train_resident or {}, eval_resident or {}
    batches = train_batches(step)
    # Step, its metrics on the device, records that were left out of its batch.
    pending: deque[tuple[int, dict[str, jax.Array], int]] = deque()
    not_finite = NonFiniteReport(run, stage, describe)

    def fetch() -> tuple[dict[str, jax.Array], int]:
        rows = next(batches)
        return shard_batch(rows, mesh), left_out(rows)

    def log() -> None:
        fetched = [(at, to_host(values)) for at, values, _ in pending]
        missing = distributed.total(sum(number for _, _, number in pending))
        pending.clear()
        for at, values in fetched:
            if not is_finite(values):
                raise not_finite.of_step(at, values, _rows_of(train_batches, at, mesh))
        at = fetched[-1][0]
        means = {name: float(np.mean([v[name] for _, v in fetched])) for name in fetched[-1][1]}
        values = {f"train/{name}": value for name, value in means.items()}
        values["train/learning_rate"] = float(learning_rate(at - 1))
        if missing:
            values["train/records_left_out"] = missing
        writer.write(at, at / schedule.steps_per_epoch, values)

    def save(metrics: Mapping[str, float], *, wait: bool, evaluation_due: bool = False) -> None:
        progress = {"stopping": stopping.to_json(), "metrics": dict(metrics)}
        due = {"evaluation_due": True} if evaluation_due else {}
        checkpoints.save_latest(state, {**progress, **due}, wait=wait)

    def evaluate_and_save(stop: int) -> dict[str, float]:
        try:
            found = {} if stop else evaluate(
                recipe.objective, eval_step, state, eval_batches(), mesh, eval_resident,
                stop=lambda: stopped_by(signals.received),
            )  # fmt: skip
        except NonFiniteOutputs as error:
            raise not_finite.of_validation(step, error.rows) from error
        if not found:
            save(last_metrics, wait=True, evaluation_due=True)
            raise interrupted(stop or stopped_by(signals.received, wait=True))
        writer.write(step, step / schedule.steps_per_epoch, found)
        value = selected(found, schedule.select, stage)
        if not math.isfinite(value):
            raise NonFiniteLoss(f"stage {stage}, step {step}: {schedule.select} is {value}")
        if stopping.update(step, value):
            checkpoints.save_best(state, stopping.best)
        save(found, wait=stopping.stop or step == schedule.steps)
        return found

    def interrupted(number: int) -> Interrupted:
        return Interrupted(
            f"stage {stage} stopped by {signal.Signals(number).name} and saved at step {step} of "
            f"{schedule.steps}",
            number,
        )

    # --- loop ----------------------------------------------------------------------------------
    closing = contextlib.closing
    with SignalWatch() as signals, bar, closing(batches), closing(writer):
        if evaluation_due:
            last_metrics = evaluate_and_save(0)
        training = step < schedule.steps and not stopping.stop
        batch, missing = fetch() if training else (None, 0)
        while step < schedule.steps and not stopping.stop:
            state, metrics = train_step(state, batch, root_key, hyper, train_resident)
            step += 1
            if pending:
                # At most one step waits on the device while the host prepares the next.
                jax.block_until_ready(pending[-1][1]["loss"])
            pending.append((step, metrics, missing))
            bar.update(step)

            finished = step == schedule.steps
            evaluate_now = finished or (
                schedule.evaluate_every and step % schedule.evaluate_every == 0
            )
            stop = stopped_by(signals.received, wait=bool(evaluate_now))
            if not (finished or stop):
                # On its way to the device while that is busy with the step.
                batch, missing = fetch()
            if evaluate_now or step % schedule.log_every == 0 or stop:
                log()
            if evaluate_now:
                last_metrics = evaluate_and_save(stop)
            elif stop:
                save(last_metrics, wait=True)
            if stop:
                raise interrupted(stop)
        # One that came with the last evaluation.
        if stop := stopped_by(signals.received, wait=True):
            raise interrupted(stop)
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
    *,
    stop: Callable[[], int] = lambda: 0,
) -> dict[str, float]:
    """Metrics of a whole split: batch means weighted by their valid rows, and `summarise`.

    Damaged records that were left out of the batches are counted as `val/records_left_out`.

    Args:
        stop: asked before each batch; where it says so nothing is returned. Several processes must
            get the same answer.

    Raises:
        NonFiniteOutputs: naming the rows.
    """
    missing = 0
    totals: dict[str, float] = {}
    count = 0.0
    gathered: list[tuple[dict, dict]] = []
    params, extra = whole((state.params, state.extra))

    def collect(found: tuple[dict, dict, dict]) -> None:
        nonlocal count
        metrics, outputs, labels = to_host(found)
        valid = labels["valid"] > 0
        gathered.append(
            ({k: v[valid] for k, v in outputs.items()}, {k: v[valid] for k, v in labels.items()})
        )
        count += float(valid.sum())
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + float(value) * float(valid.sum())

    # A batch is on the device while the host waits for the one before.
    waiting: list[tuple[dict, dict, dict]] = []
    for batch in batches:
        if stop():
            return {}
        missing += left_out(batch)
        on_device = shard_batch(batch, mesh)
        metrics, outputs = eval_step(params, extra, on_device, resident)
        known = ("labels", "label_valid", "valid", "index")
        labels = {name: on_device[name] for name in known if name in batch}
        waiting.append((metrics, outputs, labels))
        if len(waiting) > 1:
            collect(waiting.pop(0))
    collect(waiting.pop())
    outputs, labels = (
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*gathered, strict=True)
    )
    if len(rows := _not_finite(outputs)):
        raise NonFiniteOutputs(labels["index"][rows])
    means = {name: total / count for name, total in totals.items()}
    summary = {**means, **objective.summarise(outputs, labels)}
    if missing := distributed.total(missing):
        summary["records_left_out"] = missing
    return {f"val/{name}": value for name, value in summary.items()}


def left_out(batch: Mapping[str, np.ndarray]) -> int:
    """Damaged records of a batch on the host; padding is none."""
    return int(((batch["index"] >= 0) & (batch["valid"] == 0)).sum())


def _rows_of(
    train_batches: Callable[[int], Iterator[Mapping[str, np.ndarray]]],
    step: int,
    mesh: jax.sharding.Mesh,
) -> np.ndarray:
    """Rows of the batch that `step` was taken with, over all processes."""
    with contextlib.closing(train_batches(step - 1)) as batches:
        rows = {"index": next(batches)["index"]}
    return to_host(shard_batch(rows, mesh))["index"]


def _not_finite(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Positions [n] of the records that have an output that is no number."""
    finite = [np.isfinite(v).reshape(len(v), -1).all(axis=1) for v in outputs.values()]
    return np.flatnonzero(~np.all(finite, axis=0))
