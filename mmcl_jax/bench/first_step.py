"""What a fresh process spends until its first step has ended; `compile_time.py` runs it.

    python -m mmcl_jax.bench.first_step STEP BATCH DTYPE SIZE CACHE

The cache of compiled programs is used as `mmcl_jax.main` uses it.
"""

import json
import sys
import time


def main(name: str, batch_size: str, dtype: str, size: str, cache: str) -> None:
    """Prints one line of JSON: seconds by phase, and the time of day at the end."""
    times = [time.perf_counter()]
    import jax

    from mmcl_jax.bench import steps

    jax.config.update("jax_compilation_cache_dir", cache)
    times.append(time.perf_counter())
    step = steps.build(name, int(batch_size), dtype, size)
    function, arguments = step.function(), step.arguments()
    jax.block_until_ready(arguments)
    times.append(time.perf_counter())
    traced = function.trace(*arguments)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    compiled = lowered.compile()
    times.append(time.perf_counter())
    jax.block_until_ready(compiled(*arguments))
    times.append(time.perf_counter())
    phases = ("import_s", "initialise_s", "trace_s", "lower_s", "compile_s", "first_step_s")
    found = {phase: times[i + 1] - times[i] for i, phase in enumerate(phases)}
    print(json.dumps({**found, "ended_at": time.time()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
