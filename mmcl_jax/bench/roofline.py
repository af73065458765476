"""Bench `roofline`: where the time of a step goes, from a profile of our compiled steps.

Events of the profile carry the names of the compiled program's instructions, whose metadata says
which module they come from and whether they belong to the forward or the backward pass. Beside it
stand the model FLOPs by module.
"""

import collections
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from mmcl_jax.bench import steps, tables, tracing
from mmcl_jax.bench.options import Options
from mmcl_jax.bench.step_rate import batch_sizes
from mmcl_jax.bench.work import merge_numbers

_TOP = 25
_DEFINITION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")
_SOURCE = re.compile(r'op_name="([^"]*)"')
# Their time is that of the instructions within.
_CONTAINERS = ("while", "call", "conditional")
_UNKNOWN = ("not attributed", "other", "kernel", "")
_STEPS = ("mdm", "finetune", "mmcl", "embed")


def run(name: str, options: Options) -> list[dict[str, Any]]:
    """One row per step: `groups` of instructions and `products` of the model, largest first."""
    del name
    names = _STEPS[-1:] if options.size == "tiny" else _STEPS
    return [_profile(step, batch_sizes(step, options)[0], options) for step in names]


def table(rows: list[dict[str, Any]]) -> str:
    """The largest groups and products of every step as text."""
    parts = []
    for row in rows:
        groups, products = row["groups"][:_TOP], row["products"][:_TOP]
        times = [
            (g["module"], g["pass"], g["kind"], g["result"], f"{g['ms']:.2f}")
            + (f"{100 * g['ms'] / row['ms']:.1f} %",)
            for g in groups
        ]
        flops = [
            (p["module"], p["shape"], p["times"], f"{p['gflop']:.2f}")
            + (f"{100 * p['gflop'] / row['gflop']:.1f} %",)
            for p in products
        ]
        shares = ", ".join(
            f"{name} {100 * ms / row['ms']:.0f} %" for name, ms in row["passes"].items()
        )
        parts += [
            f"{row['step']}, batch {row['batch_size']}: {row['ms']:.1f} ms in instructions, "
            f"{shares}; the {len(times)} largest groups",
            tables.text(("module", "pass", "kind", "result", "ms", "share"), times),
            f"model FLOPs: {row['gflop']:.1f} GFLOP, the {len(flops)} largest products",
            tables.text(("module", "forward product", "times", "GFLOP", "share"), flops),
            "",
        ]
    parts.append("instructions that run on several threads or streams at once count several times")
    return "\n".join(parts)


def instructions(program: str) -> dict[str, tuple[str, str, str]]:
    """(kind, result, source) of every instruction of a compiled program's text, by name."""
    found = {}
    for line in program.splitlines():
        if match := _DEFINITION.match(line):
            name, result, kind = match.groups()
            source = _SOURCE.search(line)
            found[name] = (kind, re.sub(r"\{[^}]*\}", "", result), source[1] if source else "")
    return found


def place(source: str) -> tuple[str, str]:
    """(pass, module) of an instruction's source, numbered blocks merged.

    'jit(step)/transpose(jvp(Objective))/ecg_encoder/block_0/mlp/dot_general' is ('backward',
    'ecg_encoder/block_*/mlp').
    """
    direction = "backward" if "transpose(" in source else "forward" if "jvp(" in source else "other"
    hidden = ("while", "body", "checkpoint", "closed_call", "cond", "rematted_computation")
    # The last part is the operation itself.
    parts = [part for part in source.split("/")[:-1] if re.fullmatch(r"[a-z_]\w*", part)]
    module = "/".join(part for part in parts if part not in hidden)
    return direction, merge_numbers(module) or "outside modules"


def _profile(name: str, batch_size: int, options: Options) -> dict[str, Any]:
    step = steps.build(name, batch_size, options.dtype, options.size)
    runner = steps.Runner(step)
    known = instructions(runner.compiled.as_text())
    # The names of kernels have no dots.
    known |= {name.replace(".", "_"): instruction for name, instruction in known.items()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.profile or pathlib.Path(scratch)
        file = tracing.trace(runner.run, folder / f"roofline-{name}-{batch_size}")
        spent: dict[tuple[str, ...], float] = collections.defaultdict(float)
        for instruction, nanoseconds in events(file):
            if group := _group(instruction, known):
                spent[group] += nanoseconds / 1e6 / tracing.STEPS
    if set(spent) <= {_UNKNOWN}:
        raise ValueError(f"{name}: the profile names none of the program's instructions")
    passes: dict[str, float] = collections.defaultdict(float)
    for (_, direction, _, _), ms in spent.items():
        passes[direction] += ms
    work = step.work()
    return {
        "step": name,
        "batch_size": batch_size,
        "ms": sum(spent.values()),
        "passes": dict(passes),
        "gflop": work.flops / 1e9,
        "groups": [
            {"module": module, "pass": direction, "kind": kind, "result": result, "ms": ms}
            for (module, direction, kind, result), ms in sorted(spent.items(), key=lambda x: -x[1])
        ],
        "products": [
            {"module": module, "shape": shape, "times": times, "gflop": flops / 1e9}
            for module, shape, times, flops in work.by_module()
        ],
    }


def events(file: pathlib.Path) -> Iterator[tuple[str, float]]:
    """(instruction, nanoseconds) of every event of a profile that ran on the device."""
    on_cpu = jax.default_backend() == "cpu"
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        if not on_cpu and not plane.name.startswith("/device:"):
            continue
        for line in plane.lines:
            if plane.name.startswith("/device:GPU") and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                name = event.name
                if not on_cpu:
                    # A kernel's own name says nothing; the instruction is among its statistics.
                    name = dict(event.stats).get("hlo_op", name)
                yield str(name), event.duration_ns


def _group(
    instruction: str, known: Mapping[str, tuple[str, str, str]]
) -> tuple[str, str, str, str] | None:
    """(module, pass, kind, result) of an event, None where it is no time of its own."""
    kind, result, source = known.get(instruction, ("", "", ""))
    if not kind or kind in _CONTAINERS:
        # On a GPU an event is a kernel, also one that the profile gives to a graph of kernels. A
        # CPU's profile has events of the host.
        return _UNKNOWN if jax.default_backend() == "gpu" else None
    direction, module = place(source)
    return module, direction, _fusion_kind(instruction) if kind == "fusion" else kind, result


def _fusion_kind(instruction: str) -> str:
    """XLA names a fusion after what is in it: 'multiply_reduce_fusion.3'."""
    return re.sub(r"(\.\d+|\.clone)+$", "", instruction)[:40]
