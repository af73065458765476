"""What training changes, and the two compiled functions that change or read it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from mmcl_jax.augment.views import Views
from mmcl_jax.objectives.base import Batch, Objective

# One stream per purpose, in this order; a new one is appended, so that the others keep their draws.
RNG_STREAMS = ("views", "mask", "drop_path", "dropout")


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
        batch = views(streams.pop("views"), _with_valid(batch), train=True)
        return objective.init(streams, batch, train=True)

    variables = dict(init(key, batch))
    return variables.pop("params"), variables


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, views: Views
) -> Callable[[State, Batch, Array], tuple[State, dict[str, Array]]]:
    """The compiled step `(state, batch, root_key) -> (state, metrics)`; `state` is donated.

    Every random draw is a function of (root_key, state.step), so a run that continues from a
    checkpoint draws what the uninterrupted run would have drawn.
    """

    def step(state: State, batch: Batch, root_key: Array):
        keys = jax.random.split(jax.random.fold_in(root_key, state.step), len(RNG_STREAMS))
        streams = dict(zip(RNG_STREAMS, keys, strict=True))
        batch = views(streams.pop("views"), _with_valid(batch), train=True)

        def loss_of(params):
            variables = {"params": params, **state.extra}
            (loss, metrics), extra = objective.apply(
                variables, batch, train=True, rngs=streams, mutable=list(state.extra)
            )
            return loss, (metrics, extra)

        (loss, (metrics, extra)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = State(
            step=state.step + 1,
            params=params,
            extra=objective.update_extra(params, dict(extra)),
            optimizer_state=optimizer_state,
        )
        return state, {"loss": loss, "gradient_norm": optax.tree.norm(gradient), **metrics}

    return jax.jit(step, donate_argnums=0)


def make_eval_step(
    objective: Objective, views: Views
) -> Callable[[Any, Any, Batch], tuple[dict[str, Array], dict[str, Array]]]:
    """The compiled `(params, extra, batch) -> (metrics, outputs)` on clean views."""

    @jax.jit
    def step(params, extra, batch):
        variables = {"params": params, **extra}
        batch = views(jax.random.key(0), _with_valid(batch), train=False)
        loss, metrics = objective.apply(variables, batch, train=False)
        return {"loss": loss, **metrics}, objective.apply(variables, batch, method="predict")

    return step


def make_predict_step(
    objective: Objective, views: Views, method: str = "predict"
) -> Callable[[Any, Any, Batch], dict[str, Array]]:
    """The compiled `(params, extra, batch) -> outputs` of one method of the objective."""

    @jax.jit
    def step(params, extra, batch, start=0):
        batch = views(jax.random.key(0), _with_valid(batch), train=False, start=start)
        return objective.apply({"params": params, **extra}, batch, method=method)

    return step


def _with_valid(batch: Batch) -> dict[str, Array]:
    return {"valid": jnp.ones(batch["index"].shape[0]), **batch}
