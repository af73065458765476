"""What the commands share: bad input ends in one line, and a verb needs only the run directory."""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Iterator

from absl import logging

from mmcl_jax import distributed
from mmcl_jax.data.preparing.loading import printable
from mmcl_jax.device_memory import OutOfDeviceMemory
from mmcl_jax.experiment import Experiment
from mmcl_jax.train import NonFiniteLoss


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Prints what is wrong with the input and exits with 1.

    With MMCL_JAX_TRACEBACK=1 in the environment the traceback is printed too.
    """
    try:
        yield
    except (ValueError, OSError, OutOfDeviceMemory, NonFiniteLoss) as error:
        if os.environ.get("MMCL_JAX_TRACEBACK") == "1":
            raise
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(1)


def run_verb(verb: str, description: str) -> None:
    """Command line of `evaluate` and `interpret`: runs it again for a run directory."""
    parser = argparse.ArgumentParser(
        prog=f"python -m mmcl_jax.{verb}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="run directory, the --workdir of mmcl_jax.main")
    distributed.add_arguments(parser)
    parsed = parser.parse_args()
    with errors_in_one_line(), distributed.ending_together():
        distributed.start(parsed.coordinator, parsed.processes, parsed.process)
        repeat_verb(verb, parsed.run)


def repeat_verb(verb: str, path: str, otherwise: str = "") -> None:
    """Runs a verb again for a run directory, with the settings of its configuration.

    Args:
        otherwise: what to do where the run has no such stage.

    Raises:
        ValueError: it has none.
        RunInUse: another program writes to the run directory.
    """
    # Orbax logs every file that it reads.
    logging.set_verbosity(logging.ERROR)
    experiment = Experiment.open(path)
    settings = {stage.group: stage.config for stage in experiment.stages}
    if verb not in settings:
        raise ValueError(f"the configuration of {path} has no stage {verb!r}{otherwise}")
    with experiment.run.lock():
        summary = importlib.import_module(f"mmcl_jax.{verb}").run(experiment, **settings[verb])
    print(", ".join(f"{name} {value}" for name, value in summary.items()))
