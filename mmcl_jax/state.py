"""What training changes, and the compiled functions that change or read it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from mmcl_jax import optim
from mmcl_jax.augment.views import Views
from mmcl_jax.objectives.base import Batch, Objective
from mmcl_jax.recipe import Hyper, Recipe

# One stream per purpose, in this order; a new one is appended, so that the others keep their draws.
RNG_STREAMS = ("views", "mask", "drop_path", "dropout")

# Recordings that stay on the device: fields [n, ...] of the chosen rows of a split, and 'place'
# [rows of the split], where to find a row among them. Empty where batches bring the recordings.
Resident = Mapping[str, Array]


class State(flax.struct.PyTreeNode):
    """Attributes:
    step: optimiser steps taken.
    params: trained parameters, one sub-tree per tower.
    extra: collections that no gradient touches, such as `batch_stats`.
    optimizer_state: of optax.
    """

    step: Int[Array, ""]
    params: Any
    extra: Any
    optimizer_state: Any


def initialise(
    objective: Objective, views: Views, batch: Batch, key: Array
) -> tuple[Any, dict[str, Any]]:
    """Fresh parameters and extra collections, in shapes that `batch` decides.

    The batch need not be large enough for all devices.
    """
    views = dataclasses.replace(views, mesh=None)

    @jax.jit
    def init(key, batch):
        names = ("params", *RNG_STREAMS)
        streams = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        batch = views(streams.pop("views"), _complete(batch, {}), train=True)
        return objective.init(streams, batch, train=True)

    variables = dict(init(key, batch))
    return variables.pop("params"), variables


def train_step(
    recipe: Recipe, gather: Callable[[Any], Any] = lambda tree: tree
) -> Callable[..., tuple[State, dict[str, Array]]]:
    """The step `(state, batch, root_key, hyper, resident) -> (state, metrics)`, not compiled.

    `gather` makes whole arrays of those in `state`, where each device has a part of them.

    Every random draw is a function of (root_key, state.step), so a run that continues from a
    checkpoint draws what the uninterrupted run would have drawn. The parts of a batch
    (`recipe.accumulate`) have draws of their own.
    """

    def step(state: State, batch: Batch, root_key: Array, hyper: Hyper, resident: Resident):
        objective = recipe.objective_with(hyper)
        keys = jax.random.split(jax.random.fold_in(root_key, state.step), len(RNG_STREAMS))
        streams = dict(zip(RNG_STREAMS, keys, strict=True))
        batch = recipe.views(streams.pop("views"), _complete(batch, resident), train=True)

        def loss_of(params, extra, batch, streams):
            variables = {"params": optim.hold(gather(params), recipe.frozen), **gather(extra)}
            (loss, metrics), extra = objective.apply(
                variables, batch, train=True, rngs=streams, mutable=list(extra)
            )
            return loss, (metrics, dict(extra))

        gradients = jax.value_and_grad(loss_of, has_aux=True)
        if (parts := recipe.accumulate or _suitable_parts(objective, state, batch)) > 1:
            gradients = _accumulated(gradients, objective, parts)
        (loss, (metrics, extra)), gradient = gradients(state.params, state.extra, batch, streams)
        optimizer = recipe.optimizer(state.params, hyper)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = State(
            step=state.step + 1,
            params=params,
            extra=objective.update_extra(params, extra),
            optimizer_state=optimizer_state,
        )
        return state, {"loss": loss, "gradient_norm": optax.tree.norm(gradient), **metrics}

    return step


def make_train_step(
    recipe: Recipe, placed: State | None = None
) -> Callable[..., tuple[State, dict[str, Array]]]:
    """The compiled `train_step`; `state` is donated.

    Args:
        placed: shardings of the state (see `sharding.shardings`), which it keeps; None where it is
            whole on every device.
    """
    if placed is None:
        return jax.jit(train_step(recipe), donate_argnums=0)
    whole = NamedSharding(placed.step.mesh, PartitionSpec())
    step = train_step(recipe, lambda tree: jax.lax.with_sharding_constraint(tree, whole))
    return jax.jit(step, donate_argnums=0, out_shardings=(placed, None))


def make_eval_step(objective: Objective, views: Views) -> Callable:
    """The compiled `(params, extra, batch, resident) -> (metrics, outputs)` on clean views."""

    @jax.jit
    def step(params, extra, batch, resident):
        variables = {"params": params, **extra}
        batch = views(jax.random.key(0), _complete(batch, resident), train=False)

        def evaluate(batch):
            loss, metrics, outputs = objective.apply(variables, batch, method="evaluate")
            return {"loss": loss, **metrics}, outputs

        if (total := objective.weight(batch)) is None:
            return evaluate(batch)

        def evaluate_part(part):
            metrics, outputs = evaluate(part)
            share = objective.weight(part) / jnp.maximum(total, 1)
            return jax.tree.map(lambda value: share * value, metrics), outputs

        metrics, outputs = _in_parts(evaluate_part, batch)
        return jax.tree.map(jnp.sum, metrics), jax.tree.map(_joined, outputs)

    return step


def make_predict_step(
    objective: Objective, views: Views, method: str = "predict"
) -> Callable[[Any, Any, Batch], dict[str, Array]]:
    """The compiled `(params, extra, batch) -> outputs` of one method of the objective."""

    @jax.jit
    def step(params, extra, batch, start=0):
        batch = views(jax.random.key(0), _complete(batch, {}), train=False, start=start)
        predict = functools.partial(objective.apply, {"params": params, **extra}, method=method)
        # The outputs of a row depend on that row alone.
        return jax.tree.map(_joined, _in_parts(predict, batch))

    return step


def _complete(batch: Batch, resident: Resident) -> dict[str, Array]:
    """The batch with all its fields: `valid`, and the recordings that stay on the device."""
    batch = {"valid": jnp.ones(batch["index"].shape[0]), **batch}
    if not resident:
        return batch
    # Padding rows (index -1) read some recording; their `valid` is 0.
    place = resident["place"][batch["index"]]
    return batch | {name: rows[place] for name, rows in resident.items() if name != "place"}


def _suitable_parts(objective: Objective, state: State, batch: Batch) -> int:
    # Batch statistics (`extra`) would be those of a part.
    whole = objective.weight(batch) is None or jax.tree.leaves(state.extra)
    return 1 if whole else _fast_parts(batch)


def _fast_parts(batch: Batch) -> int:
    """Parts of 8 rows on a CPU, where arrays of that size are reused within a step; else 1."""
    size = batch["index"].shape[0]
    return 1 if jax.default_backend() != "cpu" or size % 8 else size // 8


def _split(rows: Array, parts: int) -> Array:
    """[parts, B / parts, ...]; every part takes rows from all over the batch, from every device."""
    return rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)


def _in_parts(function: Callable, batch: Batch):
    """`function` of every part of a batch, stacked [parts, ...]."""
    parts = _fast_parts(batch)
    split = jax.tree.map(lambda rows: _split(rows, parts), dict(batch))
    if parts == 1:
        first = jax.tree.map(lambda rows: rows[0], split)
        return jax.tree.map(lambda x: x[None], function(first))
    return jax.lax.map(function, split)


def _joined(rows: Array) -> Array:
    """Undoes `_split`: [parts, B / parts, ...] to [B, ...]."""
    return rows.swapaxes(0, 1).reshape(-1, *rows.shape[2:])


def _accumulated(gradients: Callable, objective: Objective, parts: int) -> Callable:
    """`gradients` of a batch as the weighted mean over its parts, one after another."""

    def accumulated(params, extra, batch, streams):
        if (total := objective.weight(batch)) is None:
            raise ValueError(
                f"accumulate is {parts}, but the loss compares the records of a batch with each "
                "other and cannot be computed in parts; use accumulate=1 and, to save memory, "
                "rematerialise=True of the CMR encoder, bfloat16 or a smaller batch"
            )

        def add(carry, part):
            extra, sums = carry
            number, rows = part
            draws = {name: jax.random.fold_in(key, number) for name, key in streams.items()}
            (loss, (metrics, extra)), gradient = gradients(params, extra, rows, draws)
            share = objective.weight(rows) / jnp.maximum(total, 1)
            sums = jax.tree.map(lambda a, b: a + share * b, sums, (loss, metrics, gradient))
            return (extra, sums), None

        rows = jax.tree.map(lambda rows: _split(rows, parts), dict(batch))
        first = jax.tree.map(lambda leaf: leaf[0], rows)
        shapes = jax.eval_shape(gradients, params, extra, first, streams)
        (loss, (metrics, _)), gradient = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes
        )
        start = (extra, (loss, metrics, gradient))
        (extra, (loss, metrics, gradient)), _ = jax.lax.scan(add, start, (jnp.arange(parts), rows))
        return (loss, (metrics, extra)), gradient

    return accumulated
