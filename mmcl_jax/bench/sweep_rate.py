"""Bench `sweep`: fine-tuning members side by side in one program, against one after another."""

from typing import Any

import jax
import jax.numpy as jnp

from mmcl_jax.bench import steps, tables, timing
from mmcl_jax.bench.options import Options
from mmcl_jax.bench.timing import Competitor
from mmcl_jax.state import train_step

TOGETHER, ALONE = "side by side", "one after another"
# A CPU is busy with one member; an accelerator is not.
_MEMBERS = {"cpu": 4}
_BATCHES = (8,)


def run(name: str, options: Options) -> list[dict[str, Any]]:
    """One row per batch size: seconds of a step of all members, both ways."""
    del name
    return [_measure(size, options) for size in options.batches or _BATCHES]


def table(rows: list[dict[str, Any]]) -> str:
    """What was measured as text."""
    lines = [
        (
            f"{row['members']} members, batch {row['batch_size']}, {row['dtype']}",
            *(f"{row['member_steps_per_s'][way]:.2f}" for way in (TOGETHER, ALONE)),
            f"{row['times_faster']['median']:.2f}x "
            f"[{row['times_faster']['q1']:.2f}, {row['times_faster']['q3']:.2f}]",
        )
        for row in rows
    ]
    header = ("fine-tuning step", "member steps/s together", "alone", "together is")
    return tables.text(header, lines)


def _measure(batch_size: int, options: Options) -> dict[str, Any]:
    members = _MEMBERS.get(jax.default_backend(), 24)
    step = steps.build("finetune", batch_size, options.dtype, options.size)
    alone = steps.Runner(step)
    state, batch, key, hyper, resident = step.arguments()
    one = train_step(step.recipe(mesh=False))
    # One batch for all members: what it holds does not change the time.
    together = jax.jit(jax.vmap(one, in_axes=(0, None, 0, 0, None)), donate_argnums=0)
    held = [jax.tree.map(lambda leaf: jnp.stack([leaf] * members), state)]
    keys = jax.random.split(key, members)
    numbers = jax.tree.map(lambda leaf: jnp.stack([leaf] * members), hyper)

    def run_together(count: int) -> None:
        for _ in range(count):
            held[0], metrics = together(held[0], batch, keys, numbers, resident)
        jax.block_until_ready((held[0], metrics))

    ways = [
        Competitor(TOGETHER, run_together),
        Competitor(ALONE, lambda count: alone.run(count * members)),
    ]
    samples = timing.alternate(ways, options.rounds, options.seconds)
    taken = {way: timing.summary(values) for way, values in samples.items()}
    return {
        "members": members,
        "batch_size": batch_size,
        "dtype": options.dtype,
        "all_members_s": taken,
        "member_steps_per_s": {way: members / found["median"] for way, found in taken.items()},
        "times_faster": timing.ratio(samples, ALONE, TOGETHER),
    }
