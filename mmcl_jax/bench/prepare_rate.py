"""Bench `prepare`: records per second of preprocessing, in one process and one thread.

The rates of the first rows are per core: preparation gives every core a process of its own. They
read WFDB files of simulated ECGs, which the system holds in memory, and write to the disk.
"""

import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from mmcl_jax.bench import tables, timing
from mmcl_jax.bench.options import Options

_RATE = 400  # samples per second of the raw recordings, so that they have to be resampled
_SEED_RECORDS = 8


def run(name: str, options: Options) -> list[dict[str, Any]]:
    """One row per part of the preprocessing, over a few simulated subjects."""
    del name
    from threadpoolctl import threadpool_limits

    with tempfile.TemporaryDirectory() as scratch, threadpool_limits(1):
        parts = _parts(pathlib.Path(scratch))
        competitors = [timing.Competitor(part, _repeat(work)) for part, work in parts.items()]
        samples = timing.alternate(competitors, options.rounds, options.seconds)
    return [
        {
            "part": part,
            "record_s": timing.summary(taken),
            "records_per_s": 1 / timing.summary(taken)["median"],
        }
        for part, taken in samples.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """What was measured as text."""
    lines = [
        (
            row["part"],
            f"{row['records_per_s']:.1f}",
            f"{1e3 * row['record_s']['median']:.2f}",
            f"{1e3 * row['record_s']['q1']:.2f}-{1e3 * row['record_s']['q3']:.2f}",
        )
        for row in rows
    ]
    return tables.text(("part", "records/s", "ms", "quartiles"), lines)


def _parts(folder: pathlib.Path) -> dict[str, Callable[[int], Any]]:
    """Parts by name; each does its work for the record of a number."""
    import numpy as np

    from mmcl_jax.data import records
    from mmcl_jax.data.images import cmr
    from mmcl_jax.data.preparing.loading import load_in_order
    from mmcl_jax.data.signals import ecg
    from mmcl_jax.data.signals.leads import LEADS
    from mmcl_jax.data.sources.synthetic import Synthetic

    source = Synthetic(subjects=_SEED_RECORDS, phenotyped=1.0)
    subjects = [source.simulate(i) for i in source.tasks]
    raw = [ecg.resample(subject.ecg, 500, _RATE) for subject in subjects]
    recordings = [
        ecg.Recording(signal, tuple(LEADS), ("mV",) * len(LEADS), _RATE) for signal in raw
    ]
    loaded = [source.load(i) for i in source.tasks]
    labels = np.zeros(len(source.labels), np.float32)
    payloads = [records.encode(subject, labels) for subject in loaded]
    writer = records.ShardWriter(folder / "shard")
    at_500 = [ecg.resample(signal, _RATE, 500)[:, :5000] for signal in raw]

    def image(i: int):
        pictures = subjects[i].slice
        return cmr.stack_frames(*pictures.frames), cmr.box_around_mask(pictures.heart[-1])

    def from_file_to_shard(rate: int) -> Callable[[int], None]:
        source = _WfdbRecords(folder, raw if rate == _RATE else at_500, rate)
        shard = records.ShardWriter(folder / f"shard{rate}")

        def work(i: int) -> None:
            (entry,) = load_in_order(source, 0, source.tasks[i : i + 1])
            shard.write(entry.payload)

        return work

    return {
        "ECG from file to shard, 500 Hz": from_file_to_shard(500),
        f"ECG from file to shard, {_RATE} Hz": from_file_to_shard(_RATE),
        "ECG without reading and writing": lambda i: ecg.prepare("record", recordings[i]),
        f"  resampling from {_RATE} Hz": lambda i: ecg.resample(raw[i], _RATE, 500),
        "  clipping, baseline, z-score": lambda i: ecg.preprocess(at_500[i]),
        "CMR frames and box": image,
        "encoding": lambda i: records.encode(loaded[i], labels),
        "writing": lambda i: writer.write(payloads[i]),
        "simulating": source.simulate,
    }


class _WfdbRecords:
    """A source of ECGs in WFDB files, which it writes."""

    name, labels, settings, parameters = "bench", (), {}, {}

    def __init__(self, folder: pathlib.Path, signals: Sequence[Any], rate: int):
        from mmcl_jax.bench import wfdb_files
        from mmcl_jax.data.tasks.ecg_task import EcgTask

        headers = wfdb_files.write(folder, signals, rate)
        self.tasks = tuple(EcgTask(file.stem, file.stem, "train", file) for file in headers)

    def load(self, task: Any) -> Any:
        from mmcl_jax.data.signals.ecg import DEFAULT
        from mmcl_jax.data.tasks.ecg_task import read_wfdb

        return task.subject_with(read_wfdb(task, DEFAULT), DEFAULT)


def _repeat(work: Callable[[int], Any]) -> Callable[[int], None]:
    def run(count: int) -> None:
        for i in range(count):
            work(i % _SEED_RECORDS)

    return run
