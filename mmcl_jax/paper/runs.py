"""Runs what a plan holds, one experiment after the other."""

import gc
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any


def run_all(plan, selected=(), *, force: bool = False) -> dict[str, str]:
    """Runs what is not done yet, in order, and writes the report that compares the runs.

    Args:
        plan: a `Plan`.
        selected: names of runs; empty for all.
        force: go on with stages that were begun with other settings.

    Returns:
        Why a run failed, or the report of all of them, by name.

    Raises:
        ValueError: there is no such run.
        Interrupted: after a signal; what had been done is kept.
    """
    import jax

    from mmcl_jax.device_memory import OutOfDeviceMemory
    from mmcl_jax.report import write_paper_report
    from mmcl_jax.train import NonFiniteLoss

    plan.prepare_cohort()
    failed: dict[str, str] = {}
    for run in plan.steps(selected):
        try:
            _run(run.path, run.config, run.title, force)
        except (
            ValueError, OSError, OutOfDeviceMemory, jax.errors.JaxRuntimeError, NonFiniteLoss
        ) as error:  # fmt: skip
            if os.environ.get("MMCL_JAX_TRACEBACK") == "1":
                raise
            why = str(error)
            if isinstance(error, OutOfDeviceMemory):
                why += f". Here stages and models are those of runs.{run.name}.changes in --config"
            print(f"    failed: {why}", file=sys.stderr, flush=True)
            if isinstance(error, NonFiniteLoss) and run.is_candidate:
                plan.note_divergence(run)
            else:
                failed[run.name] = why
    try:
        print(f"report: {write_paper_report([plan.folder])}", flush=True)
    except (ValueError, OSError) as error:
        failed["report"] = str(error)
    return failed | plan.blocked


def _run(path: pathlib.Path, config: Mapping[str, Any], title: str, force: bool) -> None:
    """Runs what is left of an experiment in its directory."""
    import jax

    from mmcl_jax.experiment import Experiment
    from mmcl_jax.run_dir import RunDir

    directory = RunDir(path)
    started = time.time()
    try:
        with directory.lock():
            experiment = Experiment(config, directory, force=force)
            if all(experiment.is_done(stage) for stage in experiment.stages):
                print(f"=== {title}: done", flush=True)
                return
            print(f"=== {title}", flush=True)
            directory.write_config(config)
            experiment.run_all()
    finally:
        # The recordings and programs of this run are of no use to the next.
        experiment = None
        jax.clear_caches()
        gc.collect()
    print(f"    {(time.time() - started) / 60:.1f} min", flush=True)
