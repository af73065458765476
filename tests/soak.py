"""Trains a tiny model for many steps and watches memory, file handles, threads and step time.

    python -m tests.soak --steps 20000

The loop is the real one: records are read from files for every batch, metrics are written, the
validation split is evaluated and checkpoints are saved on the way. What grows with the number of
steps would end a run of days. Exits with 1 where something does.

glibc keeps freed memory in arenas, by default up to 8 per core, and saving a checkpoint starts
threads that find their way into all of them only after a hundred saves or so. That looks like
growth and ends by itself, so the process uses one arena here. MALLOC_ARENA_MAX in the environment
overrules that.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
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
_ARENAS = "MALLOC_ARENA_MAX"


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


def use_one_arena() -> None:
    """Starts this process again where it has more; glibc reads the setting at its start."""
    if _ARENAS not in os.environ:
        os.environ[_ARENAS] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> int:
    parser = argparse.ArgumentParser(description="Trains many steps and watches the process.")
    parser.add_argument("--steps", type=int, default=20000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        samples = soak(folder, steps)
        times = step_times(folder / "metrics.jsonl")
    _, memory, files, threads = zip(*samples, strict=True)
    slope = np.polyfit(range(len(times)), [seconds for _, seconds in times], 1)[0] * len(times)
    growth = {"memory": fifths(memory), "files": fifths(files), "threads": fifths(threads)}
    first, last = fifths([seconds for _, seconds in times])
    print(
        f"{steps} steps in {samples[-1][0] - samples[0][0]:.0f} s, {len(samples)} samples, "
        f"{_ARENAS}={os.environ[_ARENAS]}"
    )
    print("median of the first and of the last fifth after the warm-up:")
    print(
        f"  resident memory  {growth['memory'][0] / 1e6:.1f} -> {growth['memory'][1] / 1e6:.1f} MB"
    )
    print(f"  open files       {growth['files'][0]:.0f} -> {growth['files'][1]:.0f}")
    print(f"  threads          {growth['threads'][0]:.0f} -> {growth['threads'][1]:.0f}")
    print(f"  step             {1e3 * first:.2f} -> {1e3 * last:.2f} ms")
    print(f"  step, linear fit over the run: {1e3 * slope:+.2f} ms")
    failed = [name for name in ("files", "threads") if growth[name][1] > growth[name][0]]
    if growth["memory"][1] > growth["memory"][0] * (1 + MOST_GROWTH):
        failed.append("memory")
    if last > first * (1 + MOST_SLOWDOWN):
        failed.append("step time")
    print(f"GROWS: {', '.join(failed)}" if failed else "nothing grows")
    return bool(failed)


if __name__ == "__main__":
    use_one_arena()
    sys.exit(main())
