"""Bench `compile`: how long a step takes to compile, and to the first step of a fresh process.

Each step is started in two fresh processes that share an empty cache of compiled programs: the
first one fills it (cold), the second one reads it (warm).
"""

import json
import subprocess
import sys
import tempfile
import time
from typing import Any

from mmcl_jax.bench import tables
from mmcl_jax.bench.options import Options
from mmcl_jax.bench.step_rate import batch_sizes

_STEPS = ("mdm", "finetune", "mmcl")


def run(name: str, options: Options) -> list[dict[str, Any]]:
    """A cold and a warm row for each training step."""
    del name
    rows = []
    for step in _STEPS[:1] if options.size == "tiny" else _STEPS:
        batch_size = batch_sizes(step, options)[0]
        with tempfile.TemporaryDirectory() as cache:
            rows += [_start(step, batch_size, options, cache, kind) for kind in ("cold", "warm")]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """What was measured as text, in seconds."""
    header = ("step", "batch", "cache", "import", "initialise", "trace", "lower", "compile",
              "first step", "from start")  # fmt: skip
    names = ("import_s", "initialise_s", "trace_s", "lower_s", "compile_s", "first_step_s")
    lines = [
        (row["step"], row["batch_size"], row["cache"], *(f"{row[n]:.2f}" for n in names))
        + (f"{row['from_start_s']:.2f}",)
        for row in rows
    ]
    note = "seconds in a fresh process; 'from start': from its launch to the end of its first step"
    return "\n".join([tables.text(header, lines), note])


def _start(step: str, batch_size: int, options: Options, cache: str, kind: str) -> dict[str, Any]:
    module = "mmcl_jax.bench.first_step"
    command = [sys.executable, "-m", module, step, str(batch_size), options.dtype, options.size]
    start = time.time()
    done = subprocess.run([*command, cache], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} {step} failed: {done.stderr.strip().splitlines()[-1:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    found["from_start_s"] = found.pop("ended_at") - start
    return {"step": step, "batch_size": batch_size, "cache": kind, **found}
