"""Runs an experiment: `python -m mmcl_jax.main --config=configs/mmcl.py --workdir=runs/mmcl`.

The same command starts, continues and extends a run: stages that the run directory holds are
skipped, an interrupted one goes on from its last checkpoint.
"""

import json
import os
import pathlib
import shlex
import signal
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from mmcl_jax.host_memory import use_huge_pages

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, with an argument after a colon: configs/mmcl.py:demo."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; default runs/<name of the config>.")
STAGES = flags.DEFINE_list("stages", [], "Stages to run, such as mdm,mmcl; all of them by default.")
CACHE = flags.DEFINE_string(
    "compile_cache",
    os.path.join("~", ".cache", "mmcl_jax", "compiled"),
    "Folder that keeps compiled programs; empty for none.",
)


def main(argv: list[str]) -> int:
    # Not above: the program may start again first (see below), and --help needs none of it.
    import jax

    from mmcl_jax.command import errors_in_one_line
    from mmcl_jax.experiment import Experiment
    from mmcl_jax.run_dir import RunDir, describe_environment
    from mmcl_jax.train import Interrupted

    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}; flags start with --")
    # Orbax logs every file that it writes.
    logging.set_verbosity(logging.ERROR)
    if CACHE.value:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(CACHE.value))
    try:
        config = json.loads(CONFIG.value.to_json())
    except OSError as error:
        print(f"error: {_in_one_line(error)}", file=sys.stderr)
        return 1
    if config["data"]["path"]:
        # The run directory is read from other working directories too.
        config["data"]["path"] = str(pathlib.Path(config["data"]["path"]).expanduser().resolve())
    run = RunDir(pathlib.Path(WORKDIR.value or f"runs/{config['name']}"))
    environment = describe_environment()
    print(f"{config['name']} -> {run.path}")
    print(f"jax {environment['packages']['jax']} on {', '.join(environment['devices'])}")
    with errors_in_one_line():
        experiment = Experiment(config, run)
        done = [stage for stage in experiment.stages if experiment.is_done(stage)]
        run.write_config(config)
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


def _parse(argv: list[str]) -> list[str]:
    """Flags as absl parses them; what the configuration does not know ends in one line."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        if os.environ.get("MMCL_JAX_TRACEBACK") == "1":
            raise
        print(f"error: {_in_one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _in_one_line(error: Exception) -> str:
    """What ml_collections and absl say, without quotes, line breaks and the traceback within."""
    text = str(error.args[0] if error.args else error).replace("\\n", " ").replace("\\'", "'")
    text = " ".join(text.split())
    if "Traceback" in text:
        text = text.rpartition("Error: ")[2]
    if isinstance(error, AttributeError | KeyError):
        text = f"the configuration has no field {text.replace(chr(39), '')}"
    return text


def _command() -> str:
    return shlex.join(["python", "-m", "mmcl_jax.main", *sys.argv[1:]])


if __name__ == "__main__":
    use_huge_pages()
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=_parse)
