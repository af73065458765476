"""Measures the steps of the method on this machine.

    python -m mmcl_jax.bench mdm finetune mmcl embed --peer eager --json bench.json

Names: mdm, finetune, mmcl, embed (rate of a step, beside the peak of the machine), embed_files
(from files, with reading and preprocessing), input (reading and augmentation), prepare
(preprocessing), compile, memory, roofline (where the time goes), sweep (fine-tuning members side by
side), collectives (what 8, 64 and 256 devices would send one another), all.
"""

import argparse
import importlib
import json
import os
import pathlib
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from mmcl_jax.host_memory import take_most_of_gpus, use_huge_pages

# Name -> module with `run(name, options) -> rows` and `table(rows) -> text`; 'all' runs them in
# this order.
BENCHES = {
    "mdm": "step_rate",
    "finetune": "step_rate",
    "mmcl": "step_rate",
    "embed": "step_rate",
    "embed_files": "embed_files",
    "input": "input_rate",
    "prepare": "prepare_rate",
    "compile": "compile_time",
    "memory": "memory",
    "roofline": "roofline",
    "sweep": "sweep_rate",
    "collectives": "collectives",
}
_ERRORS = (ValueError, OSError, ImportError, RuntimeError)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "timm", "torchvision")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benches named, prints their tables, and writes what was measured as JSON."""
    parsed = _parser().parse_args(arguments)
    # PyTorch and the fresh processes of `compile` use the same device and need memory of their own.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    take_most_of_gpus()
    try:
        failed = _run(parsed)
    except _ERRORS as error:
        print(f"error: {_why(error)}", file=sys.stderr)
        return 1
    for name, why in failed.items():
        print(f"error: {name}: {why}", file=sys.stderr)
    return 1 if failed else 0


def _why(error: Exception) -> str:
    """In one line. With MMCL_JAX_TRACEBACK=1 the error is raised again."""
    if os.environ.get("MMCL_JAX_TRACEBACK") == "1":
        raise error
    return " ".join(str(error).split())


def _run(parsed: argparse.Namespace) -> dict[str, str]:
    """Why benches failed, by name: one may need a package, or memory, that others do not."""
    import jax

    from mmcl_jax.bench.options import Options

    names = _names(parsed.names)
    on_cpu = jax.default_backend() == "cpu"
    modes = {"eager": ("eager",), "compiled": ("compiled",), "both": ("eager", "compiled")}
    chosen = parsed.peer
    if chosen == "default":
        chosen = "eager" if on_cpu else "both"
    options = Options(
        batches=parsed.batch,
        dtype=parsed.dtype or ("float32" if on_cpu else "bfloat16"),
        rounds=parsed.rounds,
        peer=modes.get(chosen, ()),
        profile=parsed.profile,
        size=parsed.size,
        **({"seconds": 0.0} if parsed.size == "tiny" else {}),
    )
    machine = _machine()
    print(f"{machine['device']} ({machine['platform']}), {machine['cores']} CPU cores")
    print(", ".join(f"{name} {version}" for name, version in machine["packages"].items()))
    result: dict[str, Any] = {"format": 1, "machine": machine, "benches": {}}
    result["options"] = {
        "names": names, "batches": options.batches, "dtype": options.dtype,
        "rounds": options.rounds, "peer": options.peer, "size": options.size,
    }  # fmt: skip
    result["failed"] = failed = {}
    for name in names:
        try:
            bench = importlib.import_module(f"mmcl_jax.bench.{BENCHES[name]}")
            rows = bench.run(name, options)
        except _ERRORS as error:
            failed[name] = _why(error)
            print(f"\n{name} failed", flush=True)
        else:
            print(f"\n{name}\n{bench.table(rows)}", flush=True)
            result["benches"][name] = rows
        if parsed.json:
            # After every bench: what was measured stays when a later one fails.
            parsed.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return failed


def _names(wanted: Sequence[str]) -> list[str]:
    if unknown := sorted(set(wanted) - {*BENCHES, "all"}):
        raise ValueError(f"no bench named {', '.join(unknown)}; known: {', '.join(BENCHES)}, all")
    return list(BENCHES) if "all" in wanted else list(dict.fromkeys(wanted))


def _machine() -> dict[str, Any]:
    import jax

    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "host": platform.machine(),
        "python": platform.python_version(),
        "packages": packages,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mmcl_jax.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help=", ".join([*BENCHES, "all"]))
    parser.add_argument(
        "--batch", type=_sizes, default=(), help="batch sizes, such as 8,32 (default: by device)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, else bfloat16"
    )
    parser.add_argument("--rounds", type=_positive, default=5, help="measurements of each (5)")
    parser.add_argument(
        "--peer", nargs="?", const="default", choices=("default", "eager", "compiled", "both"),
        help="run the same model in PyTorch too (default: eager on a CPU, else both ways)",
    )  # fmt: skip
    parser.add_argument("--profile", type=pathlib.Path, metavar="DIR", help="keep traces there")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all samples there")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny: for tests")
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


if __name__ == "__main__":
    # As in training.
    use_huge_pages()
    sys.exit(main())
