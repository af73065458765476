"""Kills a training at random moments of all its stages, and compares its end with an undisturbed
one.

    python -m tests.kills --kills 20 --seed 0

The training is a tiny one of the four stages of the method with its evaluation, run as a user runs
it. Every kill is SIGKILL to the whole process. In the end the latest and the best checkpoints, the
optimiser state, the state of early stopping, every line of the metrics, and the predictions and
results of the evaluation have to be the same, bit for bit.
"""

import argparse
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
TRAINED = ("mdm", "image", "mmcl", "finetune/CAD/0")
STAGES = (*TRAINED, "evaluate")
TIMEOUT = 900.0  # seconds of a run
# Of the time of a stage in the undisturbed run, which compiles the programs for all runs.
COMPILED = 0.4


def main_command(
    folder: pathlib.Path, cache: pathlib.Path, cohort: pathlib.Path, *changes: str
) -> list[str]:
    """The command line of a tiny run of MDM, SimCLR of the CMR encoder, MMCL, fine-tuning and the
    evaluation."""
    flags = [
        "config.models.ecg_encoder.width=16", "config.models.ecg_encoder.heads=2",
        "config.models.ecg_encoder.depth=1", "config.models.decoder.width=16",
        "config.models.cmr_encoder.width=8",
        "config.stages.mdm.batch_size=8", "config.stages.mdm.epochs=16",
        "config.stages.image.batch_size=8", "config.stages.image.epochs=12",
        "config.stages.image.cmr_view.size=32",
        "config.stages.mmcl.batch_size=8", "config.stages.mmcl.epochs=12",
        "config.stages.mmcl.cmr_view.size=32",
        "config.stages.finetune.batch_size=8", "config.stages.finetune.epochs=16",
        "config.stages.finetune.patience=-1", "config.stages.finetune.targets=('CAD',)",
        f"config.data.path={cohort}", f"workdir={folder}", f"compile_cache={cache}",
        "stages=mdm,image,mmcl,finetune,evaluate", *changes,
    ]  # fmt: skip
    config = ROOT / "configs" / "mmcl.py"
    command = [sys.executable, "-m", "mmcl_jax.main", f"--config={config}:demo"]
    return [*command, *(f"--{flag}" for flag in flags)]


def make_cohort(folder: pathlib.Path) -> None:
    """80 simulated subjects."""
    from mmcl_jax.data import cohort as cohorts
    from mmcl_jax.data.sources.synthetic import Synthetic

    source = Synthetic(subjects=80, prevalence="demo", phenotyped=1.0)
    cohorts.write(source, folder, workers=0, progress=False)


class Run:
    """A started run whose output is read as it comes."""

    def __init__(self, command: list[str]):
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.output: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self.output.append(line)
            self._lines.put(line)
        self._lines.put(None)

    def begins(self, stage: str) -> bool:
        """Waits until a stage begins; False where the run ends first."""
        while (line := self._lines.get(timeout=TIMEOUT)) is not None:
            if line.startswith(f"stage {stage} ("):
                return True
        return False

    def ends_within(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> bool:
        """Whether it was still running."""
        self._process.send_signal(signal.SIGKILL)
        return self._process.wait() == -signal.SIGKILL

    def succeed(self) -> None:
        if (code := self._process.wait(TIMEOUT)) != 0:
            raise RuntimeError(f"the run ended with {code}:\n{''.join(self.output[-30:])}")


def where(folder: pathlib.Path) -> str:
    """Stage and last checkpoint of a run directory, for the log."""
    for stage in STAGES:
        if not (folder / "stages" / stage / "done.json").exists():
            latest = folder / "stages" / stage / "checkpoints" / "latest"
            names = sorted(path.name for path in latest.glob("*")) if latest.is_dir() else []
            return f"{stage}, checkpoints: {', '.join(names) or 'none'}"
    return "after the last stage"


def kill_and_finish(
    whole: pathlib.Path,
    folder: pathlib.Path,
    make_command: Callable[[pathlib.Path], list[str]],
    kills: int,
    seed: int,
) -> int:
    """Kills runs in `folder` up to `kills` times, spread over the stages, then lets one finish.

    Returns:
        Kills that hit a run: a stage may be done before all of its kills were due.
    """
    generator, hits = np.random.default_rng(seed), 0
    for number in range(kills):
        stage = STAGES[number * len(STAGES) // kills]
        if (folder / "stages" / stage / "done.json").exists():
            continue
        seconds = json.loads((whole / "stages" / stage / "done.json").read_text())["seconds"]
        delay = generator.uniform(0, COMPILED * seconds)
        run = Run(make_command(folder))
        if run.begins(stage) and not run.ends_within(delay) and run.kill():
            hits += 1
            print(f"kill {hits}: {delay:.1f} s into {stage}; then in {where(folder)}", flush=True)
        else:
            run.succeed()
    Run(make_command(folder)).succeed()
    return hits


def differences(whole: pathlib.Path, killed: pathlib.Path) -> list[str]:
    """What differs between the ends of two runs, apart from times and random names."""
    found = []
    for stage in TRAINED:
        ours, theirs = _state(killed / "stages" / stage), _state(whole / "stages" / stage)
        names = ours.keys() ^ theirs.keys()
        names |= {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
        found += [f"{stage}: {name}" for name in sorted(names)]
    if _lines(whole) != _lines(killed):
        found.append("metrics.jsonl")
    ours, theirs = _results(killed), _results(whole)
    names = ours.keys() | theirs.keys()
    return found + [f"evaluate: {x}" for x in sorted(names) if ours.get(x) != theirs.get(x)]


def _state(stage: pathlib.Path) -> dict[str, object]:
    """Bytes of every array of the checkpoints, and what is JSON."""
    import jax

    from mmcl_jax.checkpoints import load, read_tree

    found: dict[str, object] = {}
    for which in ("latest", "best"):
        params, extra, step = load(stage, which)
        folder = stage / "checkpoints" / which / str(step)
        trees = {"params": params, "extra": extra}
        if which == "latest":
            trees["optimizer_state"] = read_tree(folder / "optimizer_state")
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
            found[f"{which}{jax.tree_util.keystr(path)}"] = np.asarray(leaf).tobytes()
        found[f"{which} step"] = step
        found[f"{which} progress"] = json.loads((folder / "progress" / "metadata").read_text())
    done = json.loads((stage / "done.json").read_text())
    found["done"] = {k: v for k, v in done.items() if k not in ("id", "seconds", "inputs")}
    return found


def _results(run: pathlib.Path) -> dict[str, bytes]:
    """Every file that the evaluation wrote."""
    files = (path for path in (run / "evaluate").rglob("*") if path.is_file())
    return {str(file.relative_to(run / "evaluate")): file.read_bytes() for file in files}


def _lines(run: pathlib.Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Kills trainings at random moments and compares their ends."
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_cohort(folder / "cohort")

        def command(workdir: pathlib.Path) -> list[str]:
            return main_command(workdir, folder / "cache", folder / "cohort")

        Run(command(folder / "whole")).succeed()
        print(f"undisturbed run: {time.monotonic() - begun:.0f} s", flush=True)
        hits, rounds = 0, 0
        while hits < options.kills:
            killed = folder / f"killed{rounds}"
            hits += kill_and_finish(
                folder / "whole", killed, command, options.kills - hits, options.seed + rounds
            )
            rounds += 1
            if found := differences(folder / "whole", killed):
                print(f"DIFFERENT after {hits} kills: {', '.join(found)}")
                return 1
        print(
            f"{hits} kills in {rounds} runs over {', '.join(STAGES)}: all ended bit for bit as the "
            f"undisturbed run ({time.monotonic() - begun:.0f} s, {os.cpu_count()} cores)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
