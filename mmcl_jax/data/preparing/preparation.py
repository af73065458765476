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
from jaxtyping import Float32

from mmcl_jax.data.cohort_format import FORMAT, INDEX, MARKER, plain, settings_hash
from mmcl_jax.data.preparing.admission import Admission, CohortError
from mmcl_jax.data.preparing.blocks import FOLDER, JOURNALS, Block, Blocks, Shard
from mmcl_jax.data.preparing.hashed_ids import HashedIds, HashedSource
from mmcl_jax.data.preparing.loading import (
    Loaded,
    Refused,
    default_workers,
    load_in_order,
    printable,
)
from mmcl_jax.data.preparing.preparation_report import Report
from mmcl_jax.data.preparing.private_lists import without_names
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
    ids: HashedIds | None = None,
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
        ids: gives the records and people other names, see `hashed_ids.py`. What the source calls
            them, and the files, are then neither in the cohort nor in the report, but in its lists.

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
    origin = source
    if ids:
        source = HashedSource(origin, ids)
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
            report = _report(output, source, admitted.admission)
            if ids:
                ids.lists.write(origin, report, admitted.admission, ids)
                report = without_names(report, ids)
            _write_folder(folder, source, blocks, admitted, report, ids)
        except CohortError:
            # The data are wrong: there is nothing to go on with.
            shutil.rmtree(blocks.path)
            raise
        if ids:
            # The journals have the names of the source: not for a moment in a finished cohort.
            shutil.rmtree(blocks.path)
    if not ids:
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


def _report(output: pathlib.Path, source: Source, admission: Admission) -> Report:
    """What became of the records, under the names of the source."""
    if not any(admission.used.values()):
        reasons = "".join(f"\n  {e.file or e.record}: {e.reason}" for e in admission.refused[:5])
        raise CohortError(
            f"source {source.name!r} has no usable record: {admission.read} read, "
            f"{len(admission.refused)} refused{', the first:' if reasons else ''}{reasons}"
        )
    rows = [row for split in SPLITS for row in admission.used[split]]
    return Report(
        path=output,
        source=source.name,
        read=admission.read,
        refused=tuple(admission.refused),
        flagged=tuple(admission.flagged),
        splits={split: len(used) for split, used in admission.used.items()},
        modalities={
            "ECG": sum(row.has_ecg for row in rows),
            "CMR": sum(row.has_cmr for row in rows),
            "both": sum(row.has_ecg and row.has_cmr for row in rows),
        },
        labels=tuple(source.labels),
        values={split: _values(admission.used[split], source.labels) for split in SPLITS},
    )


def _write_folder(
    folder: pathlib.Path,
    source: Source,
    blocks: Blocks,
    result: _Admitted,
    report: Report,
    ids: HashedIds | None,
) -> None:
    tables = {
        split: _table(result.admission.used[split], report.values[split], ids) for split in SPLITS
    }
    if ids:
        order = {split: np.argsort(table["record"]) for split, table in tables.items()}
        tables = {s: {k: v[order[s]] for k, v in table.items()} for s, table in tables.items()}
        shards = blocks.name_shards_in(order, result.shards)
    else:
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
    has = {"ecg": report.modalities["ECG"], "cmr": report.modalities["CMR"]}
    write_tfds_metadata(
        folder,
        shards,
        [label.name for label in source.labels],
        description=f"Cohort from source {source.name!r}: ECG, CMR frames, labels.",
        complete=[field for field, count in has.items() if count == report.used],
    )


def _values(rows: Sequence[Loaded], labels: Sequence[Label]) -> Float32[np.ndarray, "n K"]:
    return np.array([row.labels for row in rows], np.float32).reshape(len(rows), len(labels))


def _table(
    rows: Sequence[Loaded], values: Float32[np.ndarray, "n K"], ids: HashedIds | None
) -> dict[str, np.ndarray]:
    record, subject = (ids.record, ids.subject) if ids else (str, str)
    return {
        "record": np.array([record(row.record) for row in rows], np.str_),
        "subject": np.array([subject(row.subject) for row in rows], np.str_),
        "has_ecg": np.array([row.has_ecg for row in rows], bool),
        "has_cmr": np.array([row.has_cmr for row in rows], bool),
        "labels": values,
    }


def _statistics(labels: Sequence[Label], values: np.ndarray) -> dict[str, list[float]]:
    statistics = {}
    for label, column in zip(labels, values.T, strict=True):
        known = column[~np.isnan(column)].astype(np.float64)
        if label.kind == "regression" and len(known):
            statistics[label.name] = [float(known.mean()), float(known.std()) or 1.0]
    return statistics
