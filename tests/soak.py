"""Trains a tiny model for many steps and watches memory, file handles, threads and step time.

    python -m tests.soak --steps 20000 --runs 3

The loop is the real one: records are read from files for every batch, metrics are written, the
validation split is evaluated and checkpoints are saved on the way. What grows with the number of
steps would end a run of days. Exits with 1 where something does.

Memory may grow beyond its bound in none of the runs, each in a process of its own, and open files
and threads not at all. For the step time the median of the runs counts: what grows does so in every
run, and other work on the machine comes and goes.

glibc keeps freed memory: in up to 8 arenas per core, over which the threads that save spread in a
hundred saves or so, and, once a large block was freed, in the heap. That looks like growth and ends
by itself, so the processes have one arena and give blocks beyond 1 MiB back. These settings of
malloc in the environment overrule that.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, os.path.dirname(__file__))

import tiny
from tiny_source import TinySource

from mmcl_jax import train
from mmcl_jax.checkpoints import Checkpoints
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data import pipeline
from mmcl_jax.recipe import Recipe
from mmcl_jax.run_dir import RunDir
from mmcl_jax.state import State, initialise

BATCH = 8
WARM_UP = 0.2  # share of the steps before anything is compared
PERIOD = 0.5  # seconds between two looks at the process
MOST_GROWTH = 0.01  # of memory, from the first to the last fifth after the warm-up
MOST_SLOWDOWN = 0.1  # of the median step time; other work on the machine counts too
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


@dataclasses.dataclass(frozen=True)
class Growth:
    """Medians of the first and of the last fifth after the warm-up."""

    memory: tuple[float, float]  # resident, in bytes
    files: tuple[float, float]
    threads: tuple[float, float]
    step: tuple[float, float]  # seconds


class Watch:
    """Samples of this process: seconds since 1970, resident bytes, open files, threads."""

    def __init__(self):
        self.samples: list[tuple[float, int, int, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stop.wait(PERIOD):
            resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * page
            files = len(os.listdir("/proc/self/fd"))
            self.samples.append((time.time(), resident, files, threading.active_count()))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._stop.set()
        self._thread.join()


def soak(folder: pathlib.Path, steps: int) -> list[tuple[float, int, int, int]]:
    """Trains `steps` steps in `folder` and returns the samples."""
    cohorts.write(TinySource(count=60), folder / "cohort", workers=0, progress=False)
    cohort = cohorts.open_cohort(folder / "cohort")
    rows = {split: pipeline.select(cohort, split) for split in ("train", "val")}
    common = {"fields": ("ecg",), "labels": "CAD", "batch_size": BATCH}
    objective, views = tiny.objective("supervised")
    example = next(pipeline.eval_batches(cohort, "val", rows["val"], **common))
    params, extra = initialise(objective, views, example, jax.random.key(0))
    recipe = Recipe(
        objective, views, lambda params, hyper: optax.adamw(hyper["rate"]), {"rate": 1e-4}
    )
    optimizer_state = recipe.optimizer(params, recipe.hyper).init(params)
    state = State(jnp.zeros((), jnp.int32), params, extra, optimizer_state)
    schedule = train.Schedule(
        steps=steps,
        steps_per_epoch=pipeline.steps_per_epoch(cohort, "train", rows["train"], BATCH),
        batch_size=BATCH,
        evaluate_every=max(steps // 40, 1),
        log_every=max(steps // 400, 1),
    )
    with Checkpoints(folder / "stages" / "soak") as checkpoints, Watch() as watch:
        train.train(
            RunDir(folder), "soak", recipe, state, checkpoints,
            learning_rate=lambda step: 1e-4, schedule=schedule, seed=0,
            train_batches=lambda start: pipeline.train_batches(
                cohort, "train", rows["train"], seed=0, start_step=start, **common
            ),
            eval_batches=lambda: pipeline.eval_batches(cohort, "val", rows["val"], **common),
        )  # fmt: skip
    return watch.samples


def step_times(file: pathlib.Path) -> list[tuple[float, float]]:
    """(seconds since 1970, seconds per step) of the stretches that no evaluation lies in."""
    found, before = [], None
    for line in map(json.loads, file.read_text().splitlines()):
        if "train/loss" in line and before is not None:
            found.append(
                (line["time"], (line["time"] - before["time"]) / (line["step"] - before["step"]))
            )
        before = line if "train/loss" in line else None
    return found


def fifths(values: list[float]) -> tuple[float, float]:
    """Medians of the first and of the last fifth after the warm-up."""
    values = values[int(WARM_UP * len(values)) :]
    size = max(len(values) // 5, 1)
    return statistics.median(values[:size]), statistics.median(values[-size:])


def measure(steps: int) -> Growth:
    """Trains `steps` steps in this process, in a folder that is removed."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        _, memory, files, threads = zip(*soak(folder, steps), strict=True)
        times = [seconds for _, seconds in step_times(folder / "metrics.jsonl")]
    return Growth(fifths(memory), fifths(files), fifths(threads), fifths(times))


def relative(values: tuple[float, float]) -> float:
    return values[1] / values[0] - 1


def what_grows(runs: Sequence[Growth]) -> list[str]:
    """Names of what grows beyond what is allowed."""
    found = [
        name
        for name in ("files", "threads")
        if any(last > first for first, last in (getattr(run, name) for run in runs))
    ]
    if max(relative(run.memory) for run in runs) > MOST_GROWTH:
        found.append("memory")
    if statistics.median(relative(run.step) for run in runs) > MOST_SLOWDOWN:
        found.append("step time")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Trains many steps and watches the process.")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    # Read by glibc when a process starts, so by those of the runs.
    os.environ.update({name: os.environ.get(name, value) for name, value in MALLOC.items()})
    print(" ".join(f"{name}={os.environ[name]}" for name in MALLOC))
    print(f"{options.steps} steps; median of the first and of the last fifth after the warm-up:")
    runs = []
    with concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        for run in pool.map(measure, [options.steps] * options.runs):
            runs.append(run)
            first, last = (value / 1e6 for value in run.memory)
            print(
                f"resident memory {first:.1f} -> {last:.1f} MB ({relative(run.memory):+.2%}), "
                f"open files {run.files[0]:.0f} -> {run.files[1]:.0f}, "
                f"threads {run.threads[0]:.0f} -> {run.threads[1]:.0f}, "
                f"step {1e3 * run.step[0]:.2f} -> {1e3 * run.step[1]:.2f} ms "
                f"({relative(run.step):+.1%})",
                flush=True,
            )
    memory = max(relative(run.memory) for run in runs)
    step = statistics.median(relative(run.step) for run in runs)
    print(f"of {len(runs)} runs: memory at most {memory:+.2%}, step {step:+.1%} in the median")
    found = what_grows(runs)
    print(f"GROWS: {', '.join(found)}" if found else "nothing grows")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
