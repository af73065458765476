"""Every run that the paper compares, with one command.

    python -m mmcl_jax.paper --config=configs/paper.py --workdir=runs/paper

Each run has a directory of its own below the workdir, as `mmcl_jax.main` fills it, and
`report/index.html` there compares them. The same command goes on where an earlier one was stopped.
What several runs pre-train in the same way is trained once (`paper_plan.py`). A run that fails is
reported at the end; those that do not need it go on.
"""

import gc
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from mmcl_jax.flag_errors import parse
from mmcl_jax.host_memory import use_huge_pages

FOLDER = pathlib.Path("runs", "paper")


def main(argv: list[str]) -> int:
    import jax

    from mmcl_jax.command import errors_in_one_line
    from mmcl_jax.paper_plan import Plan
    from mmcl_jax.train import Interrupted

    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}; flags start with --")
    # Orbax logs every file that it writes.
    logging.set_verbosity(logging.ERROR)
    values = flags.FLAGS
    if values.compile_cache:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(values.compile_cache))
    folder = pathlib.Path(values.workdir or FOLDER).expanduser().resolve()
    configs = pathlib.Path(config_flags.get_config_filename(values["config"])).resolve().parent
    with errors_in_one_line():
        plan = Plan(json.loads(values.config.to_json()), configs, folder)
        if values.plan:
            print(plan.describe())
            return 0
        try:
            failed = run_all(plan, values.runs)
        except (Interrupted, KeyboardInterrupt) as stopped:
            print(
                f"{stopped or 'interrupted'}. The same command goes on from here", file=sys.stderr
            )
            return 128 + getattr(stopped, "signal_number", signal.SIGINT)
    for name, reason in failed.items():
        print(f"run {name} failed: {reason}", file=sys.stderr)
    return 1 if failed else 0


def run_all(plan, selected=()) -> dict[str, str]:
    """Runs what is not done yet, in order, and writes the report that compares the runs.

    Args:
        plan: a `paper_plan.Plan`.
        selected: names of runs; empty for all.

    Returns:
        Why a run failed, by name.

    Raises:
        ValueError: there is no such run.
        Interrupted: after a signal; what had been done is kept.
    """
    from mmcl_jax.report import write_paper_report
    from mmcl_jax.train import NonFiniteLoss

    plan.prepare_cohort()
    failed: dict[str, str] = {}
    for run in plan.steps(selected):
        try:
            _run(run.path, run.config, run.title)
        except (ValueError, OSError, NonFiniteLoss) as error:
            if os.environ.get("MMCL_JAX_TRACEBACK") == "1":
                raise
            print(f"    failed: {error}", file=sys.stderr, flush=True)
            if isinstance(error, NonFiniteLoss) and run.is_candidate:
                plan.note_divergence(run)
            else:
                failed[run.name] = str(error)
    print(f"report: {write_paper_report([plan.folder])}", flush=True)
    return failed | plan.blocked


def _run(path: pathlib.Path, config: Mapping[str, Any], title: str) -> None:
    """Runs what is left of an experiment in its directory."""
    import jax

    from mmcl_jax.experiment import Experiment
    from mmcl_jax.run_dir import RunDir

    directory = RunDir(path)
    started = time.time()
    try:
        with directory.lock():
            experiment = Experiment(config, directory)
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


def _define_flags() -> None:
    config_flags.DEFINE_config_file(
        "config", None, "Configuration file, with an argument after a colon: configs/paper.py:demo."
    )
    flags.DEFINE_string("workdir", None, f"Folder of the runs; default {FOLDER}.")
    flags.DEFINE_list("runs", [], "Runs to do, such as mae,mmcl; all of them by default.")
    flags.DEFINE_bool("plan", False, "Prints what would be run, and what is taken from where.")
    flags.DEFINE_string(
        "compile_cache",
        os.path.join("~", ".cache", "mmcl_jax", "compiled"),
        "Folder that keeps compiled programs; empty for none.",
    )
    flags.mark_flag_as_required("config")


if __name__ == "__main__":
    use_huge_pages()
    _define_flags()
    app.run(main, flags_parser=parse)
