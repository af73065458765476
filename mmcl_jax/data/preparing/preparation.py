"""Writes a cohort: loads the records of a source, admits them, and puts them on disk."""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mmcl_jax.data.cohort_format import FORMAT, INDEX, MARKER, plain, settings_hash
from mmcl_jax.data.preparing.admission import Admission, CohortError
from mmcl_jax.data.preparing.blocks import FOLDER, JOURNALS, Block, Blocks, Shard
from mmcl_jax.data.preparing.loading import (
    Loaded,
    Refused,
    default_workers,
    load_in_order,
    printable,
)
from mmcl_jax.data.preparing.preparation_report import Report
from mmcl_jax.data.preparing.staging import staged_folder
from mmcl_jax.data.records import write_tfds_metadata
from mmcl_jax.data.signals.lead_statistics import LeadSummary
from mmcl_jax.data.subject import SPLITS, Source
from mmcl_jax.data.targets import labels as label_lists
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.progress import Progress


def write(
    source: Source,
    output: str | os.PathLike,
    *,
    workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
    distribute: Callable[[Source, Blocks, Sequence[int]], None] | None = None,
) -> Report:
    """Prepares every record of a source and writes the cohort.

    The files do not depend on the number of workers. The folder gets its name when it is complete.
    Where a process was killed, or stopped by an error that is not one of the data, the next call
    with the same source and output goes on after the last finished block, see `blocks.py`.

    Args:
        source: where the records come from.
        output: folder of the cohort.
        workers: processes that load records; None: one per processor, 0: none, load in this one.
        progress: print how far it has come to stderr.
        overwrite: replace a cohort of this name.
        distribute: writes the blocks of the given numbers elsewhere, in place of `workers`.

    Raises:
        ValueError: the path of the output is not UTF-8.
        FileExistsError: `output` exists already, or another process is writing it.
        CohortError: no record is usable, or a person or an ECG is in two splits.
    """
    workers = default_workers() if workers is None else workers
    output = pathlib.Path(output)
    if printable(os.path.abspath(output)) != os.path.abspath(output):
        raise ValueError(
            f"the path of the output, {printable(os.path.abspath(output))}, is not UTF-8, which "
            "ArrayRecord files need; choose another"
        )
    with staged_folder(output, overwrite=overwrite, marker=MARKER, keep=JOURNALS) as folder:
        blocks = Blocks(folder, source.tasks)
        _claim(blocks, source, output, say=progress)
        finished = blocks.finished()
        if distribute:
            distribute(source, blocks, blocks.without(finished))
            finished = blocks.finished()
            _check_complete(blocks, finished)
        try:
            admitted = _admit_all(source, blocks, finished, workers, progress)
            report = _write_folder(folder, output, source, blocks, admitted)
        except CohortError:
            # The data are wrong: there is nothing to go on with.
            shutil.rmtree(blocks.path)
            raise
    shutil.rmtree(output / FOLDER)
    return report


@dataclasses.dataclass(frozen=True)
class _Admitted:
    """What was decided about all records, the files of each block, and how the leads look."""

    admission: Admission
    shards: Sequence[Mapping[str, Shard]]
    leads: LeadSummary


def _claim(blocks: Blocks, source: Source, output: pathlib.Path, say: bool) -> None:
    differing = blocks.claim(source)
    if not say:
        return
    if differing:
        print(
            f"{output}: an unfinished preparation had other {', '.join(differing)}; "
            "it is removed, starting afresh",
            file=sys.stderr,
        )
    elif finished := blocks.finished():
        records = sum(blocks.length(number) for number in finished)
        print(
            f"{output}: going on with an unfinished preparation, {records:,} of "
            f"{len(source.tasks):,} records are there",
            file=sys.stderr,
        )


def _check_complete(blocks: Blocks, finished: set[int]) -> None:
    if missing := blocks.without(finished):
        raise FileNotFoundError(
            f"{len(missing)} of {len(blocks)} blocks are not in {blocks.path} after the run, the "
            f"first is {missing[0]}; every worker must see this folder under this path"
        )


def _admit_all(
    source: Source, blocks: Blocks, finished: set[int], workers: int, progress: bool
) -> _Admitted:
    """Goes through all tasks in order; blocks that are not finished are loaded and written."""
    result = _Admitted(Admission(), [], LeadSummary())
    missing = blocks.without(finished)
    tasks = itertools.chain.from_iterable(blocks.tasks(number) for number in missing)
    with (
        Progress(len(source.tasks), enabled=progress) as meter,
        contextlib.closing(load_in_order(source, workers if missing else 0, tasks)) as loaded,
    ):
        for number in range(len(blocks)):
            if number in finished:
                block = _admit_again(blocks, number, result)
                meter.skip(len(block.entries))
            else:
                writer = blocks.writer(number)
                for entry in itertools.islice(loaded, blocks.length(number)):
                    writer.add(entry, store=_admit(entry, result))
                    meter.update(
                        result.admission.read, f"{len(result.admission.refused):,} refused"
                    )
                block = writer.close()
            result.shards.append(block.shards)
    return result


def _admit_again(blocks: Blocks, number: int, result: _Admitted) -> Block:
    """Replays a finished block; without `distribute` the outcome is the one of its first time."""
    block = blocks.read(number)
    admitted = [_admit(entry, result) for entry in block.entries]
    if admitted == list(block.stored):
        return block
    return blocks.keep_only(number, block, admitted)


def _admit(entry: Loaded | Refused, result: _Admitted) -> bool:
    loaded = result.admission.judge(entry)
    if loaded is not None and loaded.lead_statistics is not None:
        result.leads.add(loaded.lead_statistics)
    return loaded is not None


def _write_folder(
    folder: pathlib.Path, output: pathlib.Path, source: Source, blocks: Blocks, result: _Admitted
) -> Report:
    admission = result.admission
    if not any(admission.used.values()):
        reasons = "".join(f"\n  {e.file or e.record}: {e.reason}" for e in admission.refused[:5])
        raise CohortError(
            f"source {source.name!r} has no usable record: {admission.read} read, "
            f"{len(admission.refused)} refused{', the first:' if reasons else ''}{reasons}"
        )
    tables = {split: _table(admission.used[split], source.labels) for split in SPLITS}
    has = {
        field: np.concatenate([t[f"has_{field}"] for t in tables.values()])
        for field in ("ecg", "cmr")
    }
    report = Report(
        path=output,
        source=source.name,
        read=admission.read,
        refused=tuple(admission.refused),
        flagged=tuple(admission.flagged),
        splits={split: len(rows) for split, rows in admission.used.items()},
        modalities={
            "ECG": int(has["ecg"].sum()),
            "CMR": int(has["cmr"].sum()),
            "both": int((has["ecg"] & has["cmr"]).sum()),
        },
        labels=tuple(source.labels),
        values={split: table["labels"] for split, table in tables.items()},
    )
    shards = blocks.name_shards(result.shards)
    settings = plain(source.settings)
    content = {
        "format": FORMAT,
        "source": source.name,
        "labels": label_lists.to_json(source.labels),
        "parameters": plain(source.parameters),
        "settings": settings,
        "settings_hash": settings_hash(settings),
        "splits": report.splits,
        "statistics": _statistics(source.labels, tables["train"]["labels"]),
        "leads": result.leads.as_dict(),
        "read": report.read,
        "refused": len(report.refused),
        "flagged": len(report.flagged),
        "shards": shards,
    }
    (folder / MARKER).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    columns = {f"{s}/{name}": array for s, table in tables.items() for name, array in table.items()}
    np.savez(folder / INDEX, **columns)
    report.write_csv(folder)
    write_tfds_metadata(
        folder,
        shards,
        [label.name for label in source.labels],
        description=f"Cohort from source {source.name!r}: ECG, CMR frames, labels.",
        complete=[field for field, present in has.items() if present.all()],
    )
    return report


def _table(rows: Sequence[Loaded], labels: Sequence[Label]) -> dict[str, np.ndarray]:
    values = np.array([row.labels for row in rows], np.float32)
    return {
        "record": np.array([row.record for row in rows], np.str_),
        "subject": np.array([row.subject for row in rows], np.str_),
        "has_ecg": np.array([row.has_ecg for row in rows], bool),
        "has_cmr": np.array([row.has_cmr for row in rows], bool),
        "labels": values.reshape(len(rows), len(labels)),
    }


def _statistics(labels: Sequence[Label], values: np.ndarray) -> dict[str, list[float]]:
    statistics = {}
    for label, column in zip(labels, values.T, strict=True):
        known = column[~np.isnan(column)].astype(np.float64)
        if label.kind == "regression" and len(known):
            statistics[label.name] = [float(known.mean()), float(known.std()) or 1.0]
    return statistics
