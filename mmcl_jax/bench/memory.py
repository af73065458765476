"""Bench `memory`: what a compiled step needs, by batch size and dtype. Nothing is allocated.

The numbers are those of the program that this machine's backend compiles. They do not carry over
to another one: a GPU has other kernels with other scratch space, and XLA on a CPU undoes
rematerialisation.
"""

from typing import Any

import jax

from mmcl_jax.bench import steps, tables
from mmcl_jax.bench.options import Options
from mmcl_jax.bench.step_rate import memory, peak

# Step, batch size, dtype and changed towers.
_REMATERIALISED = {"cmr_encoder": {"rematerialise": True}}
PROGRAMS = (
    ("mdm", 128, "float32", {}),
    ("mdm", 128, "bfloat16", {}),
    ("finetune", 32, "float32", {}),
    ("mmcl", 16, "float32", {}),
    ("mmcl", 256, "bfloat16", {}),
    ("mmcl", 256, "bfloat16", _REMATERIALISED),
    ("embed", 128, "float32", {}),
)


def run(name: str, options: Options) -> list[dict[str, Any]]:
    """One row per program; `--batch` replaces all batch sizes."""
    del name
    tiny = (("embed", 4, "float32", {}),)
    programs = tiny if options.size == "tiny" else PROGRAMS
    wanted = {
        (step, batch, dtype, bool(changes)): changes
        for step, size, dtype, changes in programs
        for batch in options.batches or (size,)
    }
    return [_row(*key[:3], changes, options.size) for key, changes in wanted.items()]


def table(rows: list[dict[str, Any]]) -> str:
    """What was found as text, in megabytes."""
    header = ("program", "batch", "dtype", "state + batch", "temporary", "in all")
    lines = [
        (
            row["step"] + (" rematerialised" if row["changes"] else ""),
            row["batch_size"],
            row["dtype"],
            *(f"{row[kind] / 1e6:,.0f}" for kind in ("argument", "temp", "peak_or_total")),
        )
        for row in rows
    ]
    note = f"MB, as compiled for {rows[0]['backend']}; other backends need other amounts"
    return "\n".join([tables.text(header, lines), note])


def _row(name: str, batch_size: int, dtype: str, changes: dict, size: str) -> dict[str, Any]:
    step = steps.build(name, batch_size, dtype, size, **changes)
    found = memory(step.function().lower(*step.shapes()).compile())
    return {
        "step": name,
        "batch_size": batch_size,
        "dtype": dtype,
        "changes": changes,
        "backend": jax.default_backend(),
        **found,
        "peak_or_total": peak(found),
    }
