"""How fast the views of a batch are made on the device."""

import time
from typing import Any

import jax

from mmcl_jax.bench import steps, timing
from mmcl_jax.bench.options import Options


def measure(name: str, batch_size: int, options: Options) -> dict[str, Any]:
    """Rate of the augmentation that the step `name` contains, by itself.

    Returns:
        'examples_per_s' and, on a CPU, 'examples_per_s_per_core': examples per second that any
        core was busy with it.
    """
    step = steps.build(name, batch_size, options.dtype, options.size)
    _, batch, key, *_ = step.arguments()
    views = jax.jit(lambda key, batch: step.views(key, batch, train=True))
    cores = []

    def run(count: int) -> None:
        before = time.process_time(), time.perf_counter()
        for _ in range(count):
            made = views(key, batch)
        jax.block_until_ready(made)
        cores.append((time.process_time() - before[0]) / (time.perf_counter() - before[1]))

    competitor = timing.Competitor(name, run)
    samples = timing.alternate([competitor], options.rounds, options.seconds)[name]
    batch_s = timing.summary(samples)
    row = {
        "what": f"augmentation of {name}",
        "batch_size": batch_size,
        "batch_s": batch_s,
        "examples_per_s": batch_size / batch_s["median"],
    }
    if jax.default_backend() == "cpu":
        # The first calls compiled and were calibration.
        busy = timing.summary(cores[-options.rounds :])
        row["cores"] = busy
        row["examples_per_s_per_core"] = row["examples_per_s"] / busy["median"]
    return row
