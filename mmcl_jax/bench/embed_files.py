"""Bench `embed_files`: embeddings of ECGs in files, with reading and preprocessing.

What `mmcl_jax.embed` does, without its output: worker processes read WFDB files of simulated ECGs,
which the system holds in memory, and preprocess them, while the device computes. Beside it the
device and the reading by themselves: where they have cores of their own, files are embedded as fast
as the slower of the two.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from mmcl_jax.bench import steps, tables, timing
from mmcl_jax.bench.options import Options
from mmcl_jax.bench.step_rate import batch_sizes

_FILES = 32
_RATE = 500  # samples per second


def run(name: str, options: Options) -> list[dict[str, Any]]:
    """Rows for the device, for reading, and for both at once."""
    import jax

    from mmcl_jax.data.preparing.loading import default_workers

    del name
    program = _program(options)
    batch_size = batch_sizes("embed", options)[0]
    batch_size += -batch_size % program.multiple
    workers = default_workers() if options.size == "full" else 1
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        _write_files(folder)
        with _reader(folder, workers) as one, _reader(folder, workers) as other:
            competitors = [
                timing.Competitor("device", _device(program, batch_size)),
                timing.Competitor("reading", _reading(one, batch_size)),
                timing.Competitor("both", _both(program, other, batch_size)),
            ]
            samples = timing.alternate(competitors, options.rounds, options.seconds)
    found = {what: batch_size / timing.summary(taken)["median"] for what, taken in samples.items()}
    shared = jax.default_backend() == "cpu"
    return [
        {
            "what": what,
            "batch_size": batch_size,
            "workers": 0 if what == "device" else workers,
            "batch_s": timing.summary(taken),
            "records_per_s": found[what],
            "shared_cores": shared,
            "possible": _possible(found["device"], found["reading"], shared),
        }
        for what, taken in samples.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """What was measured as text."""
    names = {
        "device": "device alone, preprocessed ECGs",
        "reading": "reading and preprocessing alone",
        "both": "from files to embeddings",
    }
    lines = [
        (
            names[row["what"]],
            row["batch_size"],
            row["workers"] or "",
            f"{row['records_per_s']:.1f}",
            f"{100 * row['records_per_s'] / row['possible']:.0f} %"
            if row["what"] == "both"
            else "",
        )
        for row in rows
    ]
    note = "possible: the rate of the slower of the two"
    if rows[0]["shared_cores"]:
        note = "possible: both one after the other, since they share the cores"
    header = ("what", "batch", "processes", "records/s", "of possible")
    return "\n".join([tables.text(header, lines), note])


def _possible(device: float, reading: float, shared: bool) -> float:
    return 1 / (1 / device + 1 / reading) if shared else min(device, reading)


def _program(options: Options):
    """What inference runs, with random parameters."""
    import jax

    from mmcl_jax.data.signals.ecg import EcgSettings
    from mmcl_jax.inference import Program, embed_batch
    from mmcl_jax.inference.models import Group, Trained
    from mmcl_jax.sharding import make_mesh
    from mmcl_jax.stages import Stage

    step = steps.build("embed", 8, options.dtype, options.size)
    params = {"ecg_encoder": jax.device_get(step.arguments()[0])}
    # The other steps run on one device.
    views = dataclasses.replace(step.views, mesh=make_mesh())
    trained = Trained(
        Stage("embed", "bench", {}, 0), "", step.objective, views, params, {}, (), {},
        EcgSettings().as_dict(),
    )  # fmt: skip
    return Program([Group((trained,), ())], embed_batch, crops=1)


def _write_files(folder: pathlib.Path) -> None:
    from mmcl_jax.bench import wfdb_files
    from mmcl_jax.data.sources.synthetic import Synthetic

    source = Synthetic(subjects=_FILES, imaged=0.0)
    signals = [source.simulate(task).ecg for task in source.tasks]
    wfdb_files.write(folder, signals, _RATE)


@contextlib.contextmanager
def _reader(folder: pathlib.Path, workers: int) -> Iterator[Iterator[Any]]:
    """The records of the folder over and over."""
    from mmcl_jax.data.formats.ecg_files import EcgFiles
    from mmcl_jax.data.tasks.row_task import RowTasks
    from mmcl_jax.inference.input import FileRows

    source = EcgFiles(folder)
    tasks = source.tasks
    source.tasks = RowTasks(2**40, lambda number: tasks[number % len(tasks)])
    with contextlib.closing(FileRows(source).read(0, workers)) as rows:
        # Processes take a second to start.
        next(rows)
        yield rows


def _device(program, batch_size: int) -> Callable[[int], None]:
    import numpy as np

    from mmcl_jax.data.signals.leads import LEADS

    shape = (batch_size, len(LEADS), program.settings.samples)
    ecg = np.random.default_rng(0).standard_normal(shape, np.float32)

    def run(count: int) -> None:
        for _ in range(count):
            outputs = program.dispatch(ecg)
        program.collect(outputs, batch_size)

    return run


def _reading(rows: Iterator[Any], batch_size: int) -> Callable[[int], None]:
    def run(count: int) -> None:
        for _ in itertools.islice(rows, count * batch_size):
            pass

    return run


def _both(program, rows: Iterator[Any], batch_size: int) -> Callable[[int], None]:
    from mmcl_jax.inference.run import Part

    def run(count: int) -> None:
        part = Part(program, count * batch_size, batch_size)
        for position, row in enumerate(itertools.islice(rows, part.size)):
            part.add(position, row)
        part.close()

    return run
