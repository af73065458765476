"""Where the recordings of a stage are while it trains: on the device, in memory or in files.

On the device, a batch is only the numbers of its rows, and the step takes the recordings from
there. Else they come with the batches, from memory once they have been read, or from the files
every time. The parameters of a training are the same either way, up to rounding.

The other modules of `data` know nothing of JAX, because worker processes load them; this one is for
the main process.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import Array, Int

from mmcl_jax import distributed
from mmcl_jax.data import pipeline
from mmcl_jax.data.cohort import Cohort
from mmcl_jax.data.memory import available_memory
from mmcl_jax.data.preparing.loading import default_workers
from mmcl_jax.data.record_cache import RecordCache, places
from mmcl_jax.data.record_source import RecordSource, stand_in
from mmcl_jax.data.records import empty_arrays, record_bytes, stored_fields
from mmcl_jax.progress import Progress
from mmcl_jax.sharding import make_mesh, replicate

POLICIES = ("auto", "always", "never")
# Part of the free memory that recordings may take by themselves, on the device and in RAM. The rest
# is for the step, whose temporary arrays can take tens of gigabytes.
SHARES = {"resident": 0.25, "cache": 0.4}
_CHUNK = 64  # records that a thread reads at a time
_PATIENCE = 3.0  # seconds of reading before it is worth a line

Rows = Mapping[str, Int[np.ndarray, " n"]]


@dataclasses.dataclass(frozen=True)
class Input:
    """How the batches of a stage and its steps get at the recordings.

    Attributes:
        fields: what the batches must bring; () where the recordings are on the device.
        workers: processes that read.
        resident: by split, what `train.train` takes as `train_resident` and `eval_resident`; empty
            where the batches bring the recordings.
        caches: by split, what `pipeline.train_batches` and `eval_batches` read through; empty
            where there is nothing to keep.
        unreadable: by split, rows that are damaged and were left out of `resident`.
    """

    fields: tuple[str, ...]
    workers: int
    resident: Mapping[str, Mapping[str, Array]] = dataclasses.field(default_factory=dict)
    caches: Mapping[str, RecordCache] = dataclasses.field(default_factory=dict)
    unreadable: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)


class Recordings:
    """Decides where the recordings are, and keeps those of the last stage for the next one.

    'auto' takes the device where they need at most `SHARE` of the free memory of the smallest one,
    and else the RAM under the same condition. The devices of a CPU share one copy in the RAM.

    Args:
        resident: 'auto', 'always' or 'never' on the device.
        cache: the same for memory, of recordings that are not on the device.
        workers: processes that read what is in neither; 0 for threads.
        free_device, free_memory: bytes to be had on each device and in RAM.

    Raises:
        ValueError: another word, or worker processes with cache='always'.
    """

    def __init__(
        self,
        *,
        resident: str = "auto",
        cache: str = "auto",
        workers: int = 0,
        free_device: Callable[[], int] | None = None,
        free_memory: Callable[[], int] = available_memory,
    ):
        for name, policy in (("resident", resident), ("cache", cache)):
            if policy not in POLICIES:
                raise ValueError(f"data.{name} is {policy!r}, expected {', '.join(POLICIES)}")
        if workers and cache == "always":
            raise ValueError(
                f"data.workers is {workers} and data.cache is 'always', but processes cannot share "
                "a cache; use workers=0, which reads in threads, or another cache"
            )
        self._resident, self._cache, self._workers = resident, cache, workers
        self._free_device = free_device or (lambda: device_memory(free_memory))
        self._free_memory = free_memory
        self._kept: tuple[Cohort, tuple[str, ...], Rows, Input] | None = None

    def of(self, cohort: Cohort, rows: Rows, fields: Sequence[str]) -> Input:
        """The recordings of a stage, loaded unless those of the last one contain them.

        What was kept is released first. Prints where they are, and why not on the device.

        Args:
            cohort: where they come from.
            rows: by split, results of `pipeline.select`.
            fields: modalities of the stage.

        Raises:
            ValueError: 'always', and they do not fit, or several processes share the training.
        """
        fields = tuple(fields)
        if self._contains(cohort, rows, fields):
            return self._kept[-1]
        self._kept = None
        records = sum(len(chosen) for chosen in rows.values())
        need = records * record_bytes(stored_fields(fields))
        amount = f"{records:,} records, {_gigabytes(need)}"
        where, reason = self._choose(need)
        if where == "device":
            sources = {split: cohort.source(split, stored_fields(fields)) for split in rows}
            loaded = {split: load(source, split, rows[split]) for split, source in sources.items()}
            unreadable = {split: sorted(source.skipped) for split, source in sources.items()}
            found = Input((), 0, resident=loaded, unreadable=unreadable)
            print(f"  recordings stay on the device: {amount}", flush=True)
        elif where == "memory":
            caches = {
                split: pipeline.record_cache(cohort, split, chosen, fields)
                for split, chosen in rows.items()
            }
            found = Input(fields, 0, caches=caches)
            print(f"  recordings stay in memory once read: {amount} ({reason})", flush=True)
        else:
            found = Input(fields, self._workers)
            print(f"  recordings are read for every batch: {amount} ({reason})", flush=True)
        self._kept = (cohort, fields, rows, found)
        return found

    def _contains(self, cohort: Cohort, rows: Rows, fields: tuple[str, ...]) -> bool:
        if self._kept is None:
            return False
        kept_cohort, kept_fields, kept_rows, _ = self._kept
        return (
            (kept_cohort.path, kept_cohort.on_corrupt, kept_fields)
            == (cohort.path, cohort.on_corrupt, fields)
            and rows.keys() == kept_rows.keys()
            and all(np.isin(rows[split], kept_rows[split]).all() for split in rows)
        )

    def _choose(self, need: int) -> tuple[str, str]:
        """'device', 'memory' or 'files', and why not the one before."""
        fits, reason = self._fits("resident", self._resident, need, self._free_device, "device")
        if fits:
            return "device", ""
        if self._workers:
            return "files", f"{reason}; {self._workers} worker processes share no memory"
        # Each process reads all records in the course of time.
        together = need * distributed.processes_here()
        fits, no_memory = self._fits("cache", self._cache, together, self._free_memory, "RAM")
        return ("memory", reason) if fits else ("files", f"{reason}; {no_memory}")

    def _fits(
        self, name: str, policy: str, need: int, free: Callable[[], int], place: str
    ) -> tuple[bool, str]:
        if policy == "never":
            return False, f"data.{name} is 'never'"
        if name == "resident" and jax.process_count() > 1:
            # The processes would have to decide alike, each from the memory of its own devices.
            if policy == "always":
                raise ValueError(
                    "data.resident is 'always', but recordings on the device are not supported "
                    f"with {jax.process_count()} processes; use 'auto' or 'never'"
                )
            return False, f"{jax.process_count()} processes"
        available = free()
        if policy == "auto":
            share = f"{100 * SHARES[name]:.0f} % of the {_gigabytes(available)} free"
            return need <= SHARES[name] * available, f"{place}: more than {share}"
        if need > available:
            raise ValueError(
                f"data.{name} is 'always', but the recordings need {need:,} bytes and the {place} "
                f"has {available:,} free; use 'auto' or 'never', or a smaller stage fraction"
            )
        return True, ""


def load(source: RecordSource, split: str, rows: Int[np.ndarray, " n"]) -> dict[str, Array]:
    """The recordings of `rows` of a split on every device, as the steps of `state` take them.

    Each field is in host memory once, until it is on the device; on a CPU that is where it stays.

    Returns:
        'place' int32 [records of the split], where a record is among `rows` (0 for those that are
        not), and the fields [n, ...]: 'ecg' float32 [n, 12, 5000], 'cmr' uint8 [n, 210, 210, 3]
        with 'cmr_box' int32 [n, 4].
    """
    mesh = make_mesh()
    host = read(source, rows, title=f"  reading {split}")
    found = {"place": replicate(places(rows, len(source), absent=0), mesh)}
    for name in source.fields:
        found[name] = jax.block_until_ready(replicate(host.pop(name), mesh))
    return found


def read(
    source: RecordSource, rows: Int[np.ndarray, " n"], *, title: str = "reading"
) -> dict[str, np.ndarray]:
    """The fields of `rows` in host memory, read by several threads; tells how far it is."""
    arrays = empty_arrays(source.fields, len(rows))

    def read_chunk(start: int) -> None:
        part = slice(start, start + _CHUNK)
        chunk = {name: array[part] for name, array in arrays.items()}
        stand_in(chunk, source.fill(chunk, rows[part]), rows[part])

    begun = time.monotonic()
    pool = ThreadPoolExecutor(default_workers())
    with Progress(len(rows), title=title, enabled=jax.process_index() == 0) as meter:
        try:
            starts = range(0, len(rows), _CHUNK)
            for start, _ in zip(starts, pool.map(read_chunk, starts), strict=True):
                if time.monotonic() - begun > _PATIENCE:
                    meter.update(min(start + _CHUNK, len(rows)))
        finally:
            pool.shutdown(cancel_futures=True)
    return arrays


def device_memory(free_memory: Callable[[], int] = available_memory) -> int:
    """Bytes that can be put on every device of this process.

    On a CPU that is the RAM, of which one copy serves all devices. The host memory that recordings
    pass through counts too.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    free = [
        found["bytes_limit"] - found["bytes_in_use"]
        for found in stats
        if found and "bytes_limit" in found
    ]
    return min([*free, free_memory()])


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
