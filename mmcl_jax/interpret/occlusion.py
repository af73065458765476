"""What a model makes of an ECG when a stretch of one lead is hidden from it.

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, Section 4.2.
"""

import numpy as np
from jaxtyping import Float, Float32, Int

from mmcl_jax.inference import Program
from mmcl_jax.progress import Progress

_BATCH = 64


def occlude(
    program: Program,
    ecg: Float32[np.ndarray, "L T"],
    window: int,
    extent: int,
    *,
    progress: bool = False,
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, "L W C"], Int[np.ndarray, " W"]]:
    """Outputs of a program for an ECG as it is, and with each window of each lead hidden.

    Hidden samples become the median of their lead, which lies on its isoelectric line: an ECG is
    there most of the time. All variants go through one compiled program, in batches.

    Args:
        ecg: preprocessed.
        window: samples that are hidden at a time.
        extent: samples, from the first on, that are hidden in turn.
        progress: show how far it has come.

    Returns:
        Columns of the unchanged ECG, columns by lead and window, first sample of each window.
    """
    starts = np.arange(0, extent, window)
    baseline = np.median(ecg[:, :extent], axis=1)
    total = 1 + len(ecg) * len(starts)
    size = -(-_BATCH // program.multiple) * program.multiple
    values = np.empty((total, len(program.columns)))
    running = range(0), None
    with Progress(total, title="interpret", unit="variants", enabled=progress) as shown:
        for first in range(0, total, size):
            numbers = range(first, min(first + size, total))
            # A new array for each batch: on a CPU the device reads it in place.
            batch = np.repeat(ecg[None], size, axis=0)
            for row, number in enumerate(numbers):
                if number:
                    lead, at = divmod(number - 1, len(starts))
                    batch[row, lead, starts[at] : min(starts[at] + window, extent)] = baseline[lead]
            started = numbers, program.dispatch(batch)
            _collect(program, values, *running)
            shown.update(first)
            running = started
        _collect(program, values, *running)
        shown.update(total)
    return values[0], values[1:].reshape(len(ecg), len(starts), -1), starts


def cosine_distance(
    one: Float[np.ndarray, "... D"], other: Float[np.ndarray, " D"]
) -> Float[np.ndarray, "..."]:
    """1 - cosine: 0 for the same direction, at most 2."""
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other)
    return 1 - one @ other / lengths


def _collect(program: Program, values: np.ndarray, numbers: range, outputs) -> None:
    if len(numbers):
        values[numbers.start : numbers.stop] = program.collect(outputs, len(numbers))
