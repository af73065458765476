"""The compiled part of a sweep: members side by side in slots, one program for all of them.

A slot holds one member at a time. What tells members apart (parameters, step, random key, numbers
of `Recipe.hyper`, rows of the batch) is an argument with a leading axis of slots, which is split
over the devices; recordings are on every device once. So another member in a slot is no new
program, and a member computes what it would compute alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from mmcl_jax.recipe import Recipe
from mmcl_jax.sharding import replicate, to_host
from mmcl_jax.state import Resident, State, make_eval_step, train_step

_MEMBERS, _STEPS_MEMBERS = PartitionSpec("data"), PartitionSpec(None, "data")
_WHOLE = PartitionSpec()


class Slots(flax.struct.PyTreeNode):
    """Members, every leaf [M, ...].

    Attributes:
        state: of training.
        best_params, best_extra: of the evaluation that `Program.keep` was last told of.
    """

    state: State
    best_params: Any
    best_extra: Any


class Program:
    """The compiled functions of members with one batch size.

    Memory: a slot holds its parameters four times (parameters, both moments of Adam, the best
    parameters), while it trains a fifth time (gradient), and the activations of one batch. With
    the paper's encoder (6.1 million parameters of 4 bytes) the four are 97 MB, the gradient 24 MB.
    Recordings take 240 kB each, once per device.

    Args:
        recipe: of a step; its `hyper` says which numbers a member brings.
        initial: (params, extra) to start from, one for each seed.
        mesh: devices; the number of slots must be a multiple of them.
        train_resident, eval_resident: recordings and labels of the two splits.
        eval_rows: rows [C, E] of the validation split in parts of E, padded with -1.
    """

    def __init__(
        self,
        recipe: Recipe,
        initial: Sequence[tuple[Any, Any]],
        mesh: Mesh,
        train_resident: Resident,
        eval_resident: Resident,
        eval_rows: Int[np.ndarray, "C E"],
    ):
        self._mesh = mesh
        self._initial = replicate(jax.tree.map(lambda *leaves: np.stack(leaves), *initial), mesh)
        self._train_resident = replicate(dict(train_resident), mesh)
        self._eval_resident = replicate(dict(eval_resident), mesh)
        self._eval_rows = replicate(np.asarray(eval_rows, np.int32), mesh)
        by_member = NamedSharding(mesh, _MEMBERS)
        self._fresh = fresh = _fresh(recipe)
        self._begin = jax.jit(fresh, out_shardings=by_member)
        self._train = _over_devices(
            _train(recipe),
            mesh,
            (_MEMBERS, _MEMBERS, _MEMBERS, _MEMBERS, _STEPS_MEMBERS, _WHOLE, _WHOLE),
            (_MEMBERS, _STEPS_MEMBERS),
            donate=True,
        )
        self._evaluate = _over_devices(
            _evaluate(recipe),
            mesh,
            (_MEMBERS, _MEMBERS, _WHOLE, _WHOLE),
            _STEPS_MEMBERS,
        )
        self._keep = jax.jit(_keep, donate_argnums=0, out_shardings=by_member)
        self._refill = jax.jit(
            lambda slots, chosen, *rest: _where(chosen, fresh(*rest), slots),
            donate_argnums=0,
            out_shardings=by_member,
        )
        self._take = jax.jit(
            lambda slots, positions: jax.tree.map(lambda leaf: leaf[positions], slots),
            out_shardings=by_member,
        )

    def begin(self, which: Int[np.ndarray, " M"], hyper: Mapping[str, np.ndarray]) -> Slots:
        """Slots at step 0; `which` of the initial parameters each starts from."""
        return self._begin(*self._place((which, dict(hyper))), self._initial)

    def shapes(self, which: Int[np.ndarray, " M"], hyper: Mapping[str, np.ndarray]) -> Slots:
        """Shape, type and sharding of what `begin` returns; any number of slots will do."""
        split = len(which) % self._mesh.devices.size == 0
        sharding = NamedSharding(self._mesh, _MEMBERS if split else _WHOLE)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(self._fresh, which, dict(hyper), self._initial),
        )

    def refill(
        self,
        slots: Slots,
        chosen: Bool[np.ndarray, " M"],
        which: Int[np.ndarray, " M"],
        hyper: Mapping[str, np.ndarray],
    ) -> Slots:
        """The slots of `chosen` at step 0 again, the others as they are. `slots` is donated."""
        return self._refill(slots, *self._place((chosen, which, dict(hyper))), self._initial)

    def train(
        self,
        slots: Slots,
        keys: Key[Array, " M"],
        hyper: Mapping[str, Float[np.ndarray, " M"]],
        active: Bool[np.ndarray, " M"],
        rows: Int[np.ndarray, "P M B"],
        steps: int,
    ) -> tuple[Slots, dict[str, np.ndarray]]:
        """The first `steps` of P steps; a slot that is not `active` stays as it is.

        The same program takes any number of them, so where a training is divided into calls does
        not change its results.

        Args:
            slots: are donated.
            keys: root key of each member.
            rows: of the training split, for every step.

        Returns:
            Slots, and by step and slot [steps, M]: `loss`, `finite` (False where loss or gradient
            was no number). They mean nothing for slots that are not active.
        """
        indices = jax.device_put(rows, NamedSharding(self._mesh, _STEPS_MEMBERS))
        placed = self._place((keys, dict(hyper), active))
        count = replicate(np.int32(steps), self._mesh)
        state, log = self._train(slots.state, *placed, indices, count, self._train_resident)
        return slots.replace(state=state), {k: v[:steps] for k, v in to_host(log).items()}

    def evaluate(
        self, slots: Slots
    ) -> tuple[dict[str, Float[np.ndarray, "C M"]], dict[str, Float[np.ndarray, "M C*E ..."]]]:
        """Metrics of each part of the validation split, and what is predicted for its rows."""
        metrics, outputs = to_host(
            self._evaluate(
                slots.state.params, slots.state.extra, self._eval_rows, self._eval_resident
            )
        )
        return metrics, {
            name: values.swapaxes(0, 1).reshape(values.shape[1], -1, *values.shape[3:])
            for name, values in outputs.items()
        }

    def keep(self, slots: Slots, improved: Bool[np.ndarray, " M"]) -> Slots:
        """Slots whose best parameters are the present ones where `improved`; donates `slots`."""
        return self._keep(slots, *self._place((improved,)))

    def take(self, slots: Slots, positions: Int[np.ndarray, " N"]) -> Slots:
        """Fewer slots, or more: those at `positions`, in this order."""
        return self._take(slots, replicate(positions, self._mesh))

    def best(self, slots: Slots, position: int) -> tuple[Any, Any]:
        """Best (params, extra) of one slot, on the host."""
        kept = (slots.best_params, slots.best_extra)
        return to_host(jax.tree.map(lambda leaf: leaf[position], kept))

    def _place(self, trees):
        return jax.device_put(trees, NamedSharding(self._mesh, _MEMBERS))


def _fresh(recipe: Recipe) -> Callable[..., Slots]:
    def fresh(which, hyper, initial):
        def one(which, hyper):
            params, extra = jax.tree.map(lambda leaf: leaf[which], initial)
            optimizer_state = recipe.optimizer(params, hyper).init(params)
            state = State(jnp.zeros((), jnp.int32), params, extra, optimizer_state)
            return Slots(state, params, extra)

        return jax.vmap(one)(which, hyper)

    return fresh


def _train(recipe: Recipe) -> Callable:
    step = train_step(recipe)

    def several(state, keys, hyper, active, indices, steps, resident):
        def one(state, key, hyper, active, rows):
            after, metrics = step(state, {"index": rows}, key, hyper, resident)
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
            log = {"loss": metrics["loss"], "finite": finite}
            return jax.tree.map(lambda a, b: jnp.where(active, a, b), after, state), log

        def all_members(number, carry):
            state, log = carry
            state, found = jax.vmap(one)(state, keys, hyper, active, indices[number])
            return state, jax.tree.map(lambda old, new: old.at[number].set(new), log, found)

        shape = indices.shape[:2]
        log = {"loss": jnp.zeros(shape), "finite": jnp.zeros(shape, bool)}
        return jax.lax.fori_loop(0, steps, all_members, (state, log))

    return several


def _evaluate(recipe: Recipe) -> Callable:
    step = make_eval_step(recipe.objective, recipe.views)

    def evaluate(params, extra, rows, resident):
        def part(rows):
            # The batch has no axis of members, so its clean views are made once for all of them.
            batch = {"index": rows, "valid": (rows >= 0).astype(jnp.float32)}
            return jax.vmap(step, in_axes=(0, 0, None, None))(params, extra, batch, resident)

        return jax.lax.map(part, rows)

    return evaluate


def _keep(slots: Slots, improved: Bool[Array, " M"]) -> Slots:
    present = slots.replace(best_params=slots.state.params, best_extra=slots.state.extra)
    return _where(improved, present, slots)


def _where(chosen: Bool[Array, " M"], new: Slots, old: Slots) -> Slots:
    choose = jax.vmap(lambda chosen, a, b: jax.tree.map(lambda a, b: jnp.where(chosen, a, b), a, b))
    return choose(chosen, new, old)


def _over_devices(function: Callable, mesh: Mesh, inputs, outputs, donate: bool = False):
    # Members never exchange anything. Compiled for the whole mesh at once, the Fourier transforms
    # of the views would be gathered on every device.
    mapped = jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
    return jax.jit(mapped, donate_argnums=0 if donate else ())
