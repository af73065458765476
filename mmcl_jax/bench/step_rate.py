"""Benches `mdm`, `finetune`, `mmcl` and `embed`: how fast a step is, and how fast it could be."""

from typing import Any

import jax

from mmcl_jax.bench import ceilings, settings, steps, tables, timing, tracing
from mmcl_jax.bench.options import Options
from mmcl_jax.bench.timing import Competitor

OURS = "ours"


def run(name: str, options: Options) -> list[dict[str, Any]]:
    """One row per batch size; see `measure`."""
    return [measure(name, size, options) for size in batch_sizes(name, options)]


def batch_sizes(name: str, options: Options) -> tuple[int, ...]:
    """Those asked for, or those that the step is usually run with on this kind of device."""
    kind = "cpu" if jax.default_backend() == "cpu" else "accelerator"
    return options.batches or ((4,) if options.size == "tiny" else settings.BATCHES[name][kind])


def measure(name: str, batch_size: int, options: Options) -> dict[str, Any]:
    """Our step, its ceilings, and PyTorch's step if asked for, in alternating rounds.

    Returns:
        A row of plain numbers: seconds, FLOPs, bytes; every measured number has its samples.
    """
    step = steps.build(name, batch_size, options.dtype, options.size)
    work = step.work()
    ours = steps.Runner(step)
    limits = [
        ceilings.matmul(options.dtype, options.size),
        ceilings.bandwidth(options.size),
    ]
    competitors = [Competitor(OURS, ours.run), *(limit.competitor for limit in limits)]
    peers, failures = _peers(step, options)
    competitors += [Competitor(mode, peer.run) for mode, peer in peers.items()]

    samples = timing.alternate(competitors, options.rounds, options.seconds)
    for peer in peers.values():
        peer.close()
    if options.profile:
        tracing.trace(ours.run, options.profile / f"{name}-{batch_size}")
    row = {
        "name": name,
        "batch_size": batch_size,
        "dtype": options.dtype,
        **_rate(samples[OURS], batch_size, work.flops),
        **_shares(samples, limits, work),
        "memory": memory(ours.compiled),
        "compile": {"lower_s": ours.lower_seconds, "compile_s": ours.compile_seconds},
        "peers": {mode: {"error": reason} for mode, reason in failures.items()},
    }
    for mode, peer in peers.items():
        row["peers"][mode] = {
            **_rate(samples[mode], batch_size, work.flops),
            "times_faster_we_are": timing.ratio(samples, mode, OURS),
            "peak_bytes": peer.peak_bytes,
        }
    return row


def memory(compiled) -> dict[str, int]:
    """Bytes of a compiled program by kind, and on an accelerator the peak of the process so far."""
    analysis = compiled.memory_analysis()
    kinds = {
        "argument": "argument_size_in_bytes",
        "output": "output_size_in_bytes",
        "alias": "alias_size_in_bytes",
        "temp": "temp_size_in_bytes",
        "peak": "peak_memory_in_bytes",
    }
    found = {kind: int(getattr(analysis, field, 0)) for kind, field in kinds.items()}
    # What all of it takes together where buffers are not shared.
    found["total"] = found["argument"] + found["output"] + found["temp"] - found["alias"]
    device = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in device:
        found["process_peak"] = int(device["peak_bytes_in_use"])
    return found


def peak(found: dict[str, int]) -> int:
    """Bytes that a program needs at most, of what `memory` found."""
    return max(found["peak"], found["total"])


def table(rows: list[dict[str, Any]]) -> str:
    """What was measured as text."""
    header = (
        "step", "batch", "dtype", "examples/s", "ms", "quartiles", "GFLOP/s", "of matmul",
        "of roofline", "bound", "peak MB", "compile s", "we are",
    )  # fmt: skip
    lines, remarks = [], []
    for row in rows:
        share = row["roofline"]["share"]["median"]
        lines.append(
            (
                row["name"],
                row["batch_size"],
                row["dtype"],
                *_cells(row),
                f"{100 * row['share_of_matmul']['median']:.0f} %",
                f"{100 * share:.0f} %",
                row["roofline"]["bound"],
                f"{peak(row['memory']) / 1e6:.0f}",
                f"{row['compile']['lower_s'] + row['compile']['compile_s']:.1f}",
                "",
            )
        )
        for mode, peer in row["peers"].items():
            if "error" in peer:
                remarks.append(f"PyTorch {mode} did not run: {peer['error']}")
                continue
            faster = peer["times_faster_we_are"]
            held = "" if peer["peak_bytes"] is None else f"{peer['peak_bytes'] / 1e6:.0f}"
            lines.append(
                (f"  PyTorch {mode}", "", "", *_cells(peer), "", "", "", held, "")
                + (f"{faster['median']:.2f}x [{faster['q1']:.2f}, {faster['q3']:.2f}]",)
            )
        matmul, bandwidth = row["matmul_flop_per_s"], row["bandwidth_bytes_per_s"]
        remarks.append(
            f"{row['name']} {row['batch_size']}: "
            f"{row['model_flop_per_example'] / 1e9:.2f} GFLOP/example, "
            f"{row['minimal_bytes'] / 1e6:.0f} MB/step at least; matmul peak in the same rounds "
            f"{matmul['median'] / 1e9:.0f} GFLOP/s, bandwidth {bandwidth['median'] / 1e9:.1f} GB/s"
        )
    if any(row["peers"] for row in rows):
        remarks.append(
            "PyTorch runs in a process of its own. "
            "Ours crops, and in training augments, within the step; PyTorch gets finished inputs"
        )
    return "\n".join([tables.text(header, lines), *remarks])


def _rate(seconds: list[float], batch_size: int, flops: float) -> dict[str, Any]:
    step = timing.summary(seconds)
    return {
        "step_s": step,
        "examples_per_s": batch_size / step["median"],
        "model_flop_per_s": flops / step["median"],
        "model_flop_per_example": flops / batch_size,
    }


def _shares(samples, limits, work) -> dict[str, Any]:
    matmul, bandwidth = (
        [limit.work / taken for taken in samples[limit.competitor.name]] for limit in limits
    )
    # Seconds that the step could not beat, by the ceilings of the same round.
    by_flops = [work.flops / peak for peak in matmul]
    by_bytes = [work.bytes / rate for rate in bandwidth]
    least = [max(pair) for pair in zip(by_flops, by_bytes, strict=True)]
    of = {"least": least, "flops": by_flops, OURS: samples[OURS]}
    times = {name: timing.summary(x) for name, x in (("flops_s", by_flops), ("bytes_s", by_bytes))}
    bound = "FLOPs" if times["flops_s"]["median"] >= times["bytes_s"]["median"] else "bytes"
    return {
        "minimal_bytes": work.bytes,
        "matmul_flop_per_s": timing.summary(matmul),
        "bandwidth_bytes_per_s": timing.summary(bandwidth),
        "share_of_matmul": timing.ratio(of, "flops", OURS),
        "roofline": {**times, "share": timing.ratio(of, "least", OURS), "bound": bound},
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    step = row["step_s"]
    return (
        f"{row['examples_per_s']:.1f}",
        f"{1e3 * step['median']:.2f}",
        f"{1e3 * step['q1']:.2f}-{1e3 * step['q3']:.2f}",
        f"{row['model_flop_per_s'] / 1e9:.0f}",
    )


def _peers(step: steps.Step, options: Options) -> tuple[dict[str, Any], dict[str, str]]:
    """PyTorch's steps by mode, and why a mode does not run."""
    if not options.peer:
        return {}, {}
    from mmcl_jax.bench.peer_process import Peer

    running, failures = {}, {}
    for mode in options.peer:
        try:
            running[mode] = Peer(step.name, step.spec, step.batch_size, mode, step.dtype)
        except RuntimeError as error:
            failures[mode] = str(error)
    return running, failures
