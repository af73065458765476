"""Bench `prepare`: records per second of preprocessing, in one process."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from mmcl_jax.bench import tables, timing
from mmcl_jax.bench.options import Options

_RATE = 400  # samples per second of the raw recordings, so that they have to be resampled
_SEED_RECORDS = 8


def run(name: str, options: Options) -> list[dict[str, Any]]:
    """One row per part of the preprocessing, over a few simulated subjects."""
    del name
    with tempfile.TemporaryDirectory() as scratch:
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

    from mmcl_jax.data import cmr, ecg, records
    from mmcl_jax.data.leads import LEADS
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
    writer = records.ShardWriter(folder, "train")
    at_500 = [ecg.resample(signal, _RATE, 500)[:, :5000] for signal in raw]

    def image(i: int):
        pictures = subjects[i].slice
        return cmr.stack_frames(*pictures.frames), cmr.box_around_mask(pictures.heart[-1])

    return {
        "ECG, all": lambda i: ecg.prepare("record", recordings[i]),
        f"  resampling from {_RATE} Hz": lambda i: ecg.resample(raw[i], _RATE, 500),
        "  clipping, baseline, z-score": lambda i: ecg.preprocess(at_500[i]),
        "CMR frames and box": image,
        "encoding": lambda i: records.encode(loaded[i], labels),
        "writing": lambda i: writer.write(payloads[i]),
        "simulating": source.simulate,
    }


def _repeat(work: Callable[[int], Any]) -> Callable[[int], None]:
    def run(count: int) -> None:
        for i in range(count):
            work(i % _SEED_RECORDS)

    return run
