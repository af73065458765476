"""Runs an experiment: `python -m mmcl_jax.main --config=configs/mmcl.py --workdir=runs/mmcl`.

The same command starts, continues and extends a run: stages that the run directory holds are
skipped, an interrupted one goes on from its last checkpoint.

On several machines the same command is started on each of them, see `launch/`. The processes learn
of one another from SLURM, the TPU slice or Kubernetes, or from --coordinator, --processes and
--process.
"""

import collections
import contextlib
import json
import os
import pathlib
import shlex
import signal
import sys
from collections.abc import Mapping
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from mmcl_jax.flag_errors import config_line, in_one_line, parse
from mmcl_jax.host_memory import take_most_of_gpus, use_huge_pages

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, with an argument after a colon: configs/mmcl.py:demo."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; default runs/<name of the config>.")
STAGES = flags.DEFINE_list("stages", [], "Stages to run, such as mdm,image; all by default.")
FORCE = flags.DEFINE_bool(
    "force_config", False, "Go on with stages that were begun with other settings."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of the first of several processes; found by itself in a cluster."
)
PROCESSES = flags.DEFINE_integer(
    "processes", 0, "How many processes run together; 1 for a single one, even in a cluster."
)
PROCESS = flags.DEFINE_integer("process", -1, "Number of this one of --processes, from 0.")
CACHE = flags.DEFINE_string(
    "compile_cache",
    os.path.join("~", ".cache", "mmcl_jax", "compiled"),
    "Folder that keeps compiled programs; empty for none.",
)


def main(argv: list[str]) -> int:
    # Not above: the program may start again first (see below), and --help needs none of it.
    import jax

    from mmcl_jax import distributed
    from mmcl_jax.command import errors_in_one_line
    from mmcl_jax.experiment import Experiment
    from mmcl_jax.interruption import end_on_sigterm
    from mmcl_jax.run_dir import RunDir, describe_environment
    from mmcl_jax.train import Interrupted

    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}; flags start with --")
    end_on_sigterm()
    take_most_of_gpus()
    # Orbax logs every file that it writes, and errors that are raised as well.
    logging.set_verbosity(logging.FATAL)
    if CACHE.value:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(CACHE.value))
    try:
        config = json.loads(CONFIG.value.to_json())
    except OSError as error:
        print(f"error: {in_one_line(error)}", file=sys.stderr)
        return 1
    if config["data"]["path"]:
        # The run directory is read from other working directories too.
        config["data"]["path"] = str(pathlib.Path(config["data"]["path"]).expanduser().resolve())
    run = RunDir(pathlib.Path(WORKDIR.value or f"runs/{config['name']}"))
    with errors_in_one_line(), contextlib.ExitStack() as held:
        distributed.start(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        held.enter_context(distributed.ending_together())
        environment = describe_environment()
        print(config_line())
        print(f"{config['name']} -> {run.path}")
        print(f"jax {environment['packages']['jax']} on {_devices(environment)}")
        same = {"config": config, "packages": environment["packages"], "stages": STAGES.value}
        distributed.check_same(same, "versions, configuration or --stages")
        distributed.on_first(lambda: held.enter_context(run.lock()), "run directory")
        experiment = Experiment(config, run, force=FORCE.value)
        done = [stage for stage in experiment.stages if experiment.is_done(stage)]
        distributed.on_first(lambda: run.write_config(config), "config.json")
        try:
            ran = experiment.run_all(STAGES.value)
        except Interrupted as stopped:
            print(f"{stopped}. To continue, run it again:\n  {_command()}", file=sys.stderr)
            return 128 + stopped.signal_number
        except KeyboardInterrupt:
            # Outside the loop: while a cohort is prepared, or in evaluation.
            print(f"interrupted. To continue, run it again:\n  {_command()}", file=sys.stderr)
            return 128 + signal.SIGINT
    if not ran:
        print(f"all {len(done)} stages are done; nothing to do")
    report = run.path / "report" / "index.html"
    if report.is_file():
        print(f"report: {report}")
    return 0


def _devices(environment: Mapping[str, Any]) -> str:
    counts = collections.Counter(environment["devices"])
    devices = ", ".join(f"{name} x {n}" if n > 1 else name for name, n in counts.items())
    processes = environment["processes"]
    return f"{devices}, {processes} processes" if processes > 1 else devices


def _command() -> str:
    return shlex.join(["python", "-m", "mmcl_jax.main", *sys.argv[1:]])


if __name__ == "__main__":
    use_huge_pages()
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
