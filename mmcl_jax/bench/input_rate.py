"""Bench `input`: can reading and augmentation feed the step?

Reads a small simulated cohort with the production loader, in threads and in worker processes, and
compares with what the step takes in the same run. Of the augmentation, which is part of the step,
it says how many examples a core makes per second and which share of the step it takes.
"""

import contextlib
import itertools
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from mmcl_jax.bench import augmentation, steps, tables, timing
from mmcl_jax.bench.options import Options
from mmcl_jax.bench.step_rate import batch_sizes

_SUBJECTS = {"full": 400, "tiny": 24}
_WORKERS = (0, 2)


def run(name: str, options: Options) -> list[dict[str, Any]]:
    """Rows for step, augmentation and loader, of MDM (ECG) and of MMCL (ECG and CMR)."""
    del name
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        cohort = _cohort(pathlib.Path(scratch) / "cohort", _SUBJECTS[options.size])
        chosen = (("mdm", ("ecg",)), ("mmcl", ("ecg", "cmr")))
        for step, fields in chosen[:1] if options.size == "tiny" else chosen:
            batch_size = batch_sizes(step, options)[0]
            eaten = _step(step, batch_size, options)
            made = augmentation.measure(step, batch_size, options)
            rows += [eaten, made]
            rows += [_loader(cohort, fields, batch_size, n, options) for n in _WORKERS]
            for row in rows[-3:]:
                row["times_the_step"] = row["examples_per_s"] / eaten["examples_per_s"]
            made["share_of_step"] = made["batch_s"]["median"] / eaten["batch_s"]["median"]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """What was measured as text."""
    header = ("what", "batch", "examples/s", "per core", "times the step", "share of step")
    lines = []
    for row in rows:
        core = row.get("examples_per_s_per_core")
        times, share = row.get("times_the_step"), row.get("share_of_step")
        lines.append(
            (
                row["what"],
                row["batch_size"],
                f"{row['examples_per_s']:.0f}",
                "" if core is None else f"{core:.0f}",
                "" if times is None else f"{times:.1f}",
                "" if share is None else f"{100 * share:.1f} %",
            )
        )
    return "\n".join([tables.text(header, lines), "the loader reads a warm file cache"])


def _cohort(folder: pathlib.Path, subjects: int):
    from mmcl_jax.data import cohort
    from mmcl_jax.data.sources.synthetic import Synthetic

    cohort.write(Synthetic(subjects=subjects, phenotyped=1.0), folder, workers=0, progress=False)
    return cohort.open_cohort(folder)


def _step(name: str, batch_size: int, options: Options) -> dict[str, Any]:
    runner = steps.Runner(steps.build(name, batch_size, options.dtype, options.size))
    competitor = timing.Competitor(name, runner.run)
    taken = timing.alternate([competitor], options.rounds, options.seconds)[name]
    return _rate(f"step of {name}", batch_size, taken)


def _loader(cohort, fields, batch_size: int, workers: int, options: Options) -> dict[str, Any]:
    with _batches(cohort, fields, batch_size, workers) as batches:

        def run(count: int) -> None:
            for _ in itertools.islice(batches, count):
                pass

        # Until what was read ahead before the first measurement is used up.
        run(8)
        competitor = timing.Competitor("loader", run)
        taken = timing.alternate([competitor], options.rounds, options.seconds)["loader"]
    how = f"{workers} processes" if workers else "threads"
    return _rate(f"loader of {' + '.join(fields)}, {how}", batch_size, taken)


@contextlib.contextmanager
def _batches(cohort, fields, batch_size: int, workers: int) -> Iterator[Iterator[Any]]:
    from mmcl_jax.data import pipeline

    rows = pipeline.select(cohort, "train", fields=fields)
    batches = pipeline.train_batches(
        cohort, "train", rows, fields=fields, batch_size=batch_size, seed=0, workers=workers
    )
    try:
        yield batches
    finally:
        batches.close()


def _rate(what: str, batch_size: int, taken: list[float]) -> dict[str, Any]:
    batch_s = timing.summary(taken)
    rate = batch_size / batch_s["median"]
    return {"what": what, "batch_size": batch_size, "batch_s": batch_s, "examples_per_s": rate}
