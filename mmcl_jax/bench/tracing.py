"""Profiles of a few steps, for TensorBoard, Perfetto and `roofline`."""

import pathlib
from collections.abc import Callable

import jax

STEPS = 2


def trace(run: Callable[[int], None], folder: pathlib.Path, steps: int = STEPS) -> pathlib.Path:
    """Runs some steps under the profiler.

    Args:
        run: `run(n)` does n steps and waits for the device.
        folder: of the trace; `tensorboard --logdir` takes it, and Perfetto the `.trace.json.gz`
            within.

    Returns:
        The newest `.xplane.pb` below `folder`.

    Raises:
        ValueError: the profiler wrote nothing.
    """
    run(1)
    with jax.profiler.trace(str(folder)):
        run(steps)
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise ValueError(f"the profiler wrote no trace to {folder}")
    return files[-1]
