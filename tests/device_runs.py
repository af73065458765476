"""A short training and an evaluation of every objective, on whatever devices there are.

    python tests/device_runs.py FILE HOST:PORT PROCESSES PROCESS PARAMETERS OBJECTIVE...

is one of several processes with 4 CPU devices each; the first one writes what `run` gives to FILE.
Checkpoints of the end are in the folder of FILE.
"""

import dataclasses
import functools
import json
import pathlib
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from mmcl_jax import distributed, train
from mmcl_jax.checkpoints import Checkpoints
from mmcl_jax.recipe import Recipe
from mmcl_jax.sharding import make_mesh, place, replicate, shard_batch, shardings
from mmcl_jax.state import State, initialise, make_eval_step, make_train_step

BATCH, STEPS = 8, 20
# Higher rates let rounding grow.
RATE = 1e-5
# Adam divides a gradient by its own size. With the usual 1e-8, one that is nothing but rounding
# becomes a step of the full rate in a direction that rounding chose; here it stays small.
EPSILON = 1e-3
# Not a multiple of the batch, the last part of which is mostly padding.
SPLIT = 11


def smooth_relu(x: jax.Array) -> jax.Array:
    """Of the models compared: at the kink of a ReLU rounding decides whether a unit learns.

    One such unit in the last layers of these small models changes gradients by a hundredth.
    """
    return jax.nn.softplus(8 * x) / 8


def run(
    name: str,
    devices: list[jax.Device],
    parameters: str = "replicate",
    folder: pathlib.Path | None = None,
) -> dict:
    """Losses of `STEPS` training steps, then the metrics of a split, computed on `devices`.

    Args:
        folder: of checkpoints of the end, which the evaluation then reads.
    """
    with mock.patch("flax.linen.relu", smooth_relu):
        return _run(name, make_mesh(devices), parameters, folder)


def _run(name, mesh, parameters, folder):
    objective, views, step, state, key = _build(name, mesh, parameters)
    losses = []
    for number in range(STEPS):
        batch = shard_batch(_mine(batch_of(number)), mesh)
        state, metrics = step(state, batch, key, {}, {})
        losses.append(float(metrics["loss"]))
    if folder:
        with Checkpoints(folder) as checkpoints:
            checkpoints.save_best(state)
            checkpoints.save_latest(state, {"of": name})
            checkpoints.wait()
            state, progress = checkpoints.restore_latest(jax.tree.map(jnp.zeros_like, state))
        assert progress == {"of": name}
    evaluate = functools.partial(
        train.evaluate, objective, make_eval_step(objective, views), state, mesh=mesh, resident={}
    )
    # A signal to the first process breaks off the evaluation of all.
    shared, received = distributed.SharedNumber(mesh), int(distributed.is_first())
    assert evaluate(batches=_split(), stop=lambda: shared(received)) == {}
    return {"losses": losses, "metrics": evaluate(batches=_split())}


def states(name: str) -> tuple[list[State], list[float]]:
    """State before each of `STEPS` steps on one device and loss of the step, ReLUs as they are."""
    mesh = make_mesh(jax.devices()[:1])
    *_, step, state, key = _build(name, mesh, "replicate")
    before, losses = [], []
    for number in range(STEPS):
        before.append(jax.device_get(state))
        state, metrics = step(state, shard_batch(batch_of(number), mesh), key, {}, {})
        losses.append(float(metrics["loss"]))
    return before, losses


def losses_from(
    before: list[State], name: str, devices: list[jax.Device], parameters: str
) -> list[float]:
    """Loss of the step on `devices` from each of these states, ReLUs as they are."""
    mesh = make_mesh(devices)
    *_, step, first, key = _build(name, mesh, parameters)
    placed = jax.tree.map(lambda leaf: leaf.sharding, first)
    losses = []
    for number, state in enumerate(before):
        batch = shard_batch(batch_of(number), mesh)
        losses.append(float(step(place(state, placed), batch, key, {}, {})[1]["loss"]))
    return losses


def _build(name, mesh, parameters):
    objective, views = tiny.objective(name)
    views = dataclasses.replace(views, mesh=mesh)
    params, extra = initialise(objective, views, tiny.batch(2), jax.random.key(0))
    optimizer = optax.adamw(RATE, eps=EPSILON)
    recipe = Recipe(objective, views, lambda params, hyper: optimizer)
    state = State(np.zeros((), np.int32), params, extra, optimizer.init(params))
    placed = shardings(state, mesh, parameters)
    step, state = make_train_step(recipe, placed), place(state, placed)
    return objective, views, step, state, replicate(jax.random.key(1), mesh)


def batch_of(number: int) -> dict[str, np.ndarray]:
    """Records that differ from one another.

    White noise is alike to an encoder: normalising what little it sees different, over a batch of
    eight, makes rounding large.
    """
    rows, generator = tiny.batch(BATCH, number), np.random.default_rng(number)
    patches = generator.integers(0, 255, (BATCH, 7, 7, 3), np.uint8)
    waves = generator.standard_normal((BATCH, 12, 20), np.float32)
    rows["cmr"] = patches.repeat(30, axis=1).repeat(30, axis=2)
    rows["ecg"] = rows["ecg"] / 4 + waves.repeat(50, axis=2)
    return rows


def _split():
    for start in range(0, SPLIT, BATCH):
        rows = batch_of(100 + start)
        index = rows["index"] + start
        padding = index >= SPLIT
        rows |= {"index": np.where(padding, -1, index).astype(np.int32)}
        rows |= {"valid": (~padding).astype(np.float32)}
        yield _mine(rows)


def _mine(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    size = BATCH // jax.process_count()
    start = jax.process_index() * size
    return {name: values[start : start + size] for name, values in rows.items()}


def _main() -> None:
    file, coordinator, processes, process, parameters, *names = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    distributed.start(coordinator, int(processes), int(process))
    file = pathlib.Path(file)
    found = {name: run(name, jax.devices(), parameters, file.parent / name) for name in names}
    if distributed.is_first():
        file.write_text(json.dumps(found))


if __name__ == "__main__":
    _main()
