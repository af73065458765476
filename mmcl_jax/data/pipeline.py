"""From a cohort to batches: which records, in which order, read ahead by grain.

Order and content of the training batches are a function of (seed, epoch) alone. So the iterator
that starts at step k gives what an uninterrupted one gives from its k-th batch on, whatever the
number of threads, worker processes or machines.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Float, Int

from mmcl_jax.data.cohort import Cohort
from mmcl_jax.data.order import EpochOrder, full_batches
from mmcl_jax.data.preparing.loading import default_workers
from mmcl_jax.data.record_cache import RecordCache
from mmcl_jax.data.record_source import RecordSource, stand_in
from mmcl_jax.data.records import empty_arrays, stored_fields
from mmcl_jax.data.subsets import nested_subset, shuffled_classes

FIELDS = ("ecg", "cmr")
# Batches in flight per process. One of 256 pairs takes about 95 MB.
_IN_FLIGHT = 4
_READ = grain.ReadOptions(
    num_threads=min(default_workers(), _IN_FLIGHT), prefetch_buffer_size=_IN_FLIGHT
)


def select(
    cohort: Cohort,
    split: str,
    *,
    fields: Sequence[str] = ("ecg",),
    target: str | Sequence[str] | None = None,
    balanced: bool = False,
    fraction: float = 1.0,
    seed: int = 0,
) -> Int[np.ndarray, " n"]:
    """Rows of a split's table to train or evaluate on, in ascending order.

    Args:
        cohort: an opened cohort.
        split: 'train', 'val' or 'test'.
        fields: modalities that every row must have.
        target: label, labels or group; a row must know at least one of them.
        balanced: of the more frequent class, keep a random subset as large as the rarer class
            (the target is one binary label). It is drawn once: the same in every epoch.
        fraction: share of the rows to keep, in (0, 1], of each class alike where the target is one
            binary or multi-class label (see `subsets.nested_subset`). The subsets of one seed are
            nested: 1 % lies within 10 %.
        seed: of both random choices.

    Raises:
        ValueError: no row is left, or an argument does not fit the cohort.
    """
    _check_fields(fields)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}, expected more than 0 and at most 1")
    table = cohort.table(split)
    keep = np.ones(cohort.splits[split], bool)
    for field in fields:
        keep &= table[f"has_{field}"]
    targets = cohort.target(target) if target is not None else ()
    values = table["labels"][:, [cohort.labels.index(label) for label in targets]]
    if targets:
        keep &= ~np.isnan(values).all(axis=1)
    rows = np.flatnonzero(keep)
    if not len(rows):
        wanted = " and ".join([*fields, *([f"a known label of {target}"] if targets else [])])
        raise ValueError(
            f"{cohort.path}: none of the {cohort.splits[split]:,} records of split {split!r} has "
            f"{wanted}; choose another split or cohort"
        )

    binary = len(targets) == 1 and targets[0].kind == "binary"
    if balanced and not binary:
        raise ValueError(f"balanced=True needs one binary label as target, found target={target!r}")
    classes = [rows]
    if binary:
        positive = values[rows, 0] == 1
        classes = [rows[positive], rows[~positive]]
    elif len(targets) == 1 and targets[0].kind == "multiclass":
        classes = [rows[values[rows, 0] == c] for c in range(len(targets[0].classes))]
    classes = shuffled_classes(classes, seed)
    if balanced:
        size = min(len(members) for members in classes)
        if size == 0:
            raise ValueError(
                f"{cohort.path}: split {split!r} has records of one class of {target} only, "
                "so there is no balanced set"
            )
        classes = [members[:size] for members in classes]
    return np.sort(nested_subset(classes, fraction))


def train_batches(
    cohort: Cohort,
    split: str,
    rows: Int[np.ndarray, " n"],
    *,
    fields: Sequence[str],
    labels: str | Sequence[str] = (),
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    cache: RecordCache | None = None,
    without: Sequence[int] = (),
    statistics: Mapping[str, tuple[float, float]] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches without end (see `mmcl_jax/__init__.py` for the fields of a batch).

    No person is twice in a batch: a contrastive loss would take the two for strangers. What does
    not fill a batch is left out of the epoch, other records in every epoch.

    Damaged records raise CorruptRecord, or with `cohort.on_corrupt` 'skip' are rows whose 'valid'
    and 'label_valid' are 0, so that the order of the others stays.

    Args:
        cohort, split: where the records are.
        rows: result of `select`.
        fields: modalities to read; 'cmr' brings 'cmr_box'. () for none, where the recordings are
            on the device already.
        labels: label names or a group, the columns of 'labels'; () for none.
        batch_size: over all processes.
        seed: of the order.
        start_step: number of batches to skip.
        process_index, process_count: this process gets its contiguous part of every batch.
        workers: processes that read and decode; 0: threads of this process.
        cache: to read through, made with these rows and `record_cache`; None: from the files.
        without: rows that could not be read, where the recordings are on the device already.
        statistics: mean and standard deviation of regression labels; None: the cohort's own.

    Returns:
        A grain iterator; its `close()` ends the worker processes.

    Raises:
        ValueError: an argument does not fit the cohort or the selection.
    """
    order = EpochOrder(
        _check_rows(cohort, split, rows, fields),
        cohort.table(split)["subject"],
        batch_size,
        seed,
        _part(batch_size, process_index, process_count),
    )
    if workers and cache is not None:
        raise ValueError(f"workers is {workers}, but processes cannot share a cache; use 0")
    size = batch_size // process_count
    load = _Load.make(cohort, split, fields, labels, statistics, size, cache, without)
    batches = grain.MapDataset.source(order).slice(slice(start_step, None)).map(load)
    dataset = batches.to_iter_dataset(_READ)
    # Without recordings there is nothing to read that would be worth a process.
    if workers and fields:
        # grain reads command-line flags of its own here, which a program without absl never parses.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(dataset)


def eval_batches(
    cohort: Cohort,
    split: str,
    rows: Int[np.ndarray, " n"],
    *,
    fields: Sequence[str],
    labels: str | Sequence[str] = (),
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    cache: RecordCache | None = None,
    without: Sequence[int] = (),
    statistics: Mapping[str, tuple[float, float]] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Every row once, in the given order. Arguments and errors as in `train_batches`.

    The last batch is padded with zeros; there 'valid' is 0 and 'index' is -1. Every process gets
    the same number of batches.
    """
    rows = _check_rows(cohort, split, rows, fields)
    part = _part(batch_size, process_index, process_count)
    count = -(-len(rows) // batch_size)
    padded = np.full(count * batch_size, -1, rows.dtype)
    padded[: len(rows)] = rows
    size = batch_size // process_count
    load = _Load.make(cohort, split, fields, labels, statistics, size, cache, without)
    batches = grain.MapDataset.source(padded.reshape(count, batch_size)[:, part]).map(load)
    return iter(batches.to_iter_dataset(_READ))


def record_cache(
    cohort: Cohort, split: str, rows: Int[np.ndarray, " n"], fields: Sequence[str]
) -> RecordCache:
    """A cache for `train_batches` and `eval_batches` of these rows, or some of them."""
    return RecordCache(cohort.source(split, stored_fields(fields)), rows)


def steps_per_epoch(
    cohort: Cohort, split: str, rows: Int[np.ndarray, " n"], batch_size: int
) -> int:
    """Number of full batches of different people in one epoch; the same in every epoch.

    Raises:
        ValueError: there is none, the batch is larger than the selection.
    """
    _, counts = np.unique(cohort.table(split)["subject"][rows], return_counts=True)
    return full_batches(counts, batch_size)


@dataclasses.dataclass(frozen=True)
class _Load:
    """Rows to a batch. Picklable, because worker processes call it."""

    source: RecordSource | RecordCache
    labels: Float[np.ndarray, "n K"] | None  # standardised, NaN where missing
    size: int
    without: Sequence[int] = ()

    @classmethod
    def make(
        cls,
        cohort: Cohort,
        split: str,
        fields: Sequence[str],
        labels: str | Sequence[str],
        statistics: Mapping[str, tuple[float, float]] | None,
        size: int,
        cache: RecordCache | None,
        without: Sequence[int],
    ) -> "_Load":
        fields = stored_fields(fields)
        if cache is not None and cache.fields != fields:
            raise ValueError(f"the cache holds {cache.fields}, the batches need {fields}")
        values = None
        if targets := cohort.target(labels):
            columns = [cohort.labels.index(label) for label in targets]
            values = cohort.table(split)["labels"][:, columns]
            statistics = cohort.statistics if statistics is None else statistics
            for column, label in enumerate(targets):
                if label.kind == "regression":
                    if label.name not in statistics:
                        raise ValueError(
                            f"{cohort.path}: the statistics of label {label.name} are missing, so "
                            "it cannot be z-scored; a cohort without training records that know "
                            "it needs the statistics of the one the model was trained on"
                        )
                    mean, deviation = statistics[label.name]
                    values[:, column] = (values[:, column] - mean) / deviation
        source = cohort.source(split, fields) if cache is None else cache
        return cls(source, values, size, without)

    def __call__(self, rows: Int[np.ndarray, " batch"]) -> dict[str, Any]:
        valid = rows >= 0
        batch: dict[str, Any] = empty_arrays(self.source.fields, self.size)
        if len(self.without):
            valid &= ~np.isin(rows, self.without)
        if batch:
            whole = self.source.fill(batch, rows)
            stand_in(batch, whole, rows)
            valid &= whole
        if self.labels is not None:
            known = valid[:, None] & ~np.isnan(self.labels[rows])
            batch["labels"] = np.where(known, self.labels[rows], np.float32(0))
            batch["label_valid"] = known.astype(np.float32)
        return batch | {"valid": valid.astype(np.float32), "index": rows.astype(np.int32)}


def _check_fields(fields: Sequence[str]) -> None:
    if isinstance(fields, str) or (unknown := sorted(set(fields) - set(FIELDS))) or not fields:
        found = repr(fields) if isinstance(fields, str) or not fields else ", ".join(unknown)
        raise ValueError(f"fields: found {found}, expected some of {', '.join(FIELDS)}")


def _check_rows(
    cohort: Cohort, split: str, rows: Int[np.ndarray, " n"], fields: Sequence[str]
) -> Int[np.ndarray, " n"]:
    if fields:
        _check_fields(fields)
    table = cohort.table(split)
    rows = np.asarray(rows)
    size = cohort.splits[split]
    if not len(rows):
        raise ValueError(f"{cohort.path}: the selection of split {split!r} is empty")
    if rows.min() < 0 or rows.max() >= size:
        raise ValueError(
            f"{cohort.path}: rows {rows.min()} to {rows.max()}, split {split!r} has {size} records"
        )
    for field in fields:
        if len(lacking := rows[~table[f"has_{field}"][rows]]):
            raise ValueError(
                f"{cohort.path}: {len(lacking)} of {len(rows)} selected records of split "
                f"{split!r} have no {field}, the first is {table['record'][lacking[0]]}; "
                f"pass fields={tuple(fields)} to select too"
            )
    return rows


def _part(batch_size: int, process_index: int, process_count: int) -> slice:
    """The part of a global batch that belongs to a process."""
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}, expected a multiple of the {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is {process_index} of {process_count} processes")
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)
