"""Every run that the paper compares, with one command.

    python -m mmcl_jax.paper --config=configs/paper.py --workdir=runs/paper

Each run has a directory of its own below the workdir, as `mmcl_jax.main` fills it, and
`report/index.html` there compares them. The same command goes on where an earlier one was stopped.
What several runs pre-train in the same way is trained once (`paper/plan.py`). A run that fails is
reported at the end; those that do not need it go on.
"""

import json
import os
import pathlib
import signal
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from mmcl_jax.flag_errors import config_line, parse
from mmcl_jax.host_memory import take_most_of_gpus, use_huge_pages

FOLDER = pathlib.Path("runs", "paper")


def main(argv: list[str]) -> int:
    import jax

    from mmcl_jax.command import errors_in_one_line
    from mmcl_jax.interruption import end_on_sigterm
    from mmcl_jax.paper.plan import Plan
    from mmcl_jax.paper.runs import run_all
    from mmcl_jax.train import Interrupted

    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}; flags start with --")
    end_on_sigterm()
    take_most_of_gpus()
    # Orbax logs every file that it writes.
    logging.set_verbosity(logging.ERROR)
    values = flags.FLAGS
    if values.compile_cache:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(values.compile_cache))
    folder = pathlib.Path(values.workdir or FOLDER).expanduser().resolve()
    configs = pathlib.Path(config_flags.get_config_filename(values["config"])).resolve().parent
    with errors_in_one_line():
        print(config_line())
        plan = Plan(json.loads(values.config.to_json()), configs, folder)
        if values.plan:
            print(plan.describe())
            return 0
        try:
            failed = run_all(plan, values.runs, force=values.force_config)
        except (Interrupted, KeyboardInterrupt) as stopped:
            print(
                f"{stopped or 'interrupted'}. The same command goes on from here", file=sys.stderr
            )
            return 128 + getattr(stopped, "signal_number", signal.SIGINT)
    for name, reason in failed.items():
        print(f"run {name} failed: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _define_flags() -> None:
    config_flags.DEFINE_config_file(
        "config", None, "Configuration file, with an argument after a colon: configs/paper.py:demo."
    )
    flags.DEFINE_string("workdir", None, f"Folder of the runs; default {FOLDER}.")
    flags.DEFINE_list("runs", [], "Runs to do, such as mae,mmcl; all of them by default.")
    flags.DEFINE_bool(
        "force_config", False, "Go on with stages that were begun with other settings."
    )
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
