"""Bench `collectives`: what the devices send one another in a training step, and what that costs.

Each step is compiled, and not run, for 8, 64 and 256 devices of a CPU in a process of its own. The
partitioner of XLA is the same for all backends; what a backend does later (combining collectives,
running them beside the computation) is not in these numbers.
"""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from typing import Any

from mmcl_jax.bench import tables
from mmcl_jax.bench.options import Options

DEVICES = (8, 64, 256)
# Step, and how its parameters are on the devices.
PROGRAMS = (
    ("mdm", "replicate"), ("mdm", "fsdp"), ("finetune", "replicate"), ("mmcl", "replicate"),
)  # fmt: skip
# Examples per device and step of the prediction: the paper's batches on one device.
PER_DEVICE = {"mdm": 128, "finetune": 32, "mmcl": 256}
# Bytes per second that a device sends, and receives at the same time; seconds to start a
# collective; FLOP/s of a device that computes in bfloat16. From the makers' data sheets:
# NVLink 4 and InfiniBand NDR with H100 SXM (900 GB/s both ways; 400 Gbit/s per GPU; 989 TFLOP/s),
# TPU v5e (1,600 Gbit/s per chip; 197 TFLOP/s). The times are assumptions, not from data sheets.
LINKS = {
    "NVLink 4": (450e9, 15e-6, 989e12),
    "InfiniBand NDR": (50e9, 40e-6, 989e12),
    "ICI of v5e": (100e9, 10e-6, 197e12),
}
# Share of the peak that a step reaches; an assumption.
UTILISATION = 0.3

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4,
          "f64": 8, "s64": 8, "u64": 8}  # fmt: skip
_COLLECTIVE = re.compile(
    r"= (?P<type>\(.*?\)|\S+) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|"
    r"collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


def run(name: str, options: Options) -> list[dict[str, Any]]:
    """One row per program and number of devices; `--batch` sets the examples per device."""
    del name
    tiny = options.size == "tiny"
    rows = []
    for step, parameters in PROGRAMS[:1] if tiny else PROGRAMS:
        for devices in (2,) if tiny else DEVICES:
            per_device = options.batches[0] if options.batches else 2 if tiny else PER_DEVICE[step]
            rows.append(_in_fresh_process(step, parameters, devices, per_device, options.size))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """What was counted as text, and what follows for the links."""
    header = ("program", "devices", "per device", "collectives", "MB", "MB sent", "MB held")
    lines = [
        (
            f"{row['step']} {row['parameters']}",
            row["devices"],
            row["per_device"],
            sum(kind["count"] for kind in row["collectives"].values()),
            f"{sum(kind['bytes'] for kind in row['collectives'].values()) / 1e6:,.2f}",
            f"{row['sent_bytes'] / 1e6:,.2f}",
            f"{row['held_bytes'] / 1e6:,.1f}",
        )
        for row in rows
    ]
    shares = [
        (
            f"{row['step']} {row['parameters']}",
            row["devices"],
            *(f"{100 * row['efficiency'][link]:.1f}" for link in LINKS),
        )
        for row in rows
    ]
    note = (
        "per device and step; sent: by ring algorithms; held: state and batch\n\npredicted "
        "efficiency in %, with nothing of the communication hidden, computing at "
        f"{100 * UTILISATION:.0f} % of the peak"
    )
    predicted = tables.text(("program", "devices", *LINKS), shares)
    return "\n".join([tables.text(header, lines), note, predicted])


def count(hlo: str) -> dict[str, dict[str, int]]:
    """Collectives of a compiled program by kind: `count`, `bytes` of their results, and `sent`.

    Args:
        hlo: text of the optimised program.

    Raises:
        ValueError: one is in a loop, where the text does not tell how often it runs.
    """
    found: dict[str, dict[str, int]] = {}
    entry = False
    for line in hlo.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            entry = line.startswith("ENTRY")
        if (match := _COLLECTIVE.search(line)) is None:
            continue
        if not entry:
            raise ValueError(f"a collective outside the main program: {line.strip()[:120]}")
        size = _size(match["type"])
        group = _group_size(line)
        kind = found.setdefault(match["kind"], {"count": 0, "bytes": 0, "sent": 0})
        kind["count"] += 1
        kind["bytes"] += size
        kind["sent"] += round(size * _sent(match["kind"], group))
    return found


def efficiency(
    flops: float, collectives: dict[str, dict[str, int]], rate: float, start: float, peak: float
) -> float:
    """Share of the time of a step in which a device computes, if it never does both at once."""
    computing = flops / (UTILISATION * peak)
    times = sum(kind["count"] * start + kind["sent"] / rate for kind in collectives.values())
    return computing / (computing + times)


def _sent(kind: str, group: int) -> float:
    """Bytes that a device sends per byte of the result, with ring algorithms."""
    return {
        "all-reduce": 2 * (group - 1) / group,
        "all-gather": (group - 1) / group,
        # The result is one of `group` parts.
        "reduce-scatter": group - 1,
        "all-to-all": (group - 1) / group,
        "collective-permute": 1,
    }[kind]


def _size(text: str) -> int:
    return sum(
        _BYTES[dtype] * math.prod(int(size) for size in shape.split(",") if size)
        for dtype, shape in _ARRAY.findall(text)
    )


def _group_size(line: str) -> int:
    """Devices that take part together, in each of the ways that XLA writes them."""
    if found := re.search(r"replica_groups=mesh\[([^]]*)\] \{([^}]*)\}", line):
        sizes = dict(axis.split("=") for axis in found[1].split(","))
        return math.prod(int(sizes[axis.strip()]) for axis in found[2].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return found[1].count(",") + 1
    if "source_target_pairs=" in line:
        return 2
    raise ValueError(f"a collective without the devices that take part: {line.strip()[:200]}")


def _in_fresh_process(
    step: str, parameters: str, devices: int, per_device: int, size: str
) -> dict[str, Any]:
    # The number of devices is fixed once JAX has been used.
    command = [sys.executable, "-m", "mmcl_jax.bench.collectives", step, parameters]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(
        [*command, str(per_device), size],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError(f"{step} for {devices} devices: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _compiled(step: str, parameters: str, per_device: int, size: str) -> dict[str, Any]:
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from mmcl_jax.bench import steps
    from mmcl_jax.sharding import make_mesh, shardings
    from mmcl_jax.state import make_train_step

    mesh, devices = make_mesh(), jax.device_count()
    built = steps.build(step, per_device * devices, "float32", size)
    built = dataclasses.replace(built, views=dataclasses.replace(built.views, mesh=mesh))
    # On a CPU a batch would be computed in parts otherwise.
    recipe = dataclasses.replace(built.recipe(), accumulate=1)
    state, batch, *rest = built.shapes()
    placed = shardings(state, mesh, parameters)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    state = jax.tree.map(_at, state, placed)
    batch = jax.tree.map(lambda leaf: _at(leaf, rows), batch)
    compiled = make_train_step(recipe, placed).lower(state, batch, *rest).compile()
    collectives = count(compiled.as_text())
    flops = steps.build(step, per_device, "float32", size).work().flops
    return {
        "step": step,
        "parameters": parameters,
        "devices": devices,
        "per_device": per_device,
        "collectives": collectives,
        "held_bytes": compiled.memory_analysis().argument_size_in_bytes,
        "sent_bytes": sum(kind["sent"] for kind in collectives.values()),
        "flops": flops,
        "efficiency": {
            link: efficiency(flops, collectives, *speeds) for link, speeds in LINKS.items()
        },
    }


def _at(leaf, sharding):
    import jax

    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


if __name__ == "__main__":
    print(json.dumps(_compiled(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])))
