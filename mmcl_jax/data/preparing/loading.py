"""Loads the records of a source, in worker processes, in the order of its tasks."""

import collections
import concurrent.futures
import contextlib
import copy
import dataclasses
import hashlib
import itertools
import math
import multiprocessing
import os
import pathlib
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from mmcl_jax.data import records
from mmcl_jax.data.subject import SPLITS, RefusedRecord, Source, Subject


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A usable record, ready to be written.

    Attributes:
        file: file of the record, '' where its task names none.
        labels: values in the order of the source's labels, NaN where missing.
        ecg_digest: hash of the ECG samples, b'' without ECG: finds the same recording twice.
        payload: the serialised record, b'' once it is written.
        lead_statistics, split_assigned: see `Subject`.
    """

    record: str
    subject: str
    split: str
    file: str
    has_ecg: bool
    has_cmr: bool
    labels: Float[np.ndarray, " K"]
    flags: tuple[str, ...]
    ecg_digest: bytes
    payload: bytes
    lead_statistics: Float32[np.ndarray, "12 4"] | None = None
    split_assigned: bool = False


@dataclasses.dataclass(frozen=True)
class Refused:
    """A record that cannot be used, and why."""

    record: str
    file: str
    reason: str


def default_workers() -> int:
    """Number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_in_order(
    source: Source, workers: int, tasks: Iterable[Any] | None = None
) -> Iterator[Loaded | Refused]:
    """Yields the records of tasks in their order.

    A task that has a `record` or a `path` goes by them in the report. A record at which the reading
    fails in a way that the source did not foresee is refused like any other, with the line that
    failed; a failure of the machine (a file system that is gone, no memory) ends the loading,
    because the records after it would fail as well.

    Args:
        source: picklable where `workers` > 0.
        workers: number of processes; 0 loads in this one. The result does not depend on it.
        tasks: some of the source's tasks; None for all.

    Raises:
        ValueError: `workers` is negative, or a subject breaks the contract of `Subject`.
        RuntimeError: the operating system failed while a record was read.
        ChildProcessError: a worker process died.
    """
    if workers < 0:
        raise ValueError(f"workers is {workers}, expected 0 (load in this process) or more")
    tasks = iter(source.tasks if tasks is None else tasks)
    if workers == 0:
        yield from (_load(source, task) for task in tasks)
        return
    with (
        _one_thread_per_process(),
        concurrent.futures.ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(without_tasks(source),),
        ) as pool,
    ):
        # The window bounds the memory when one slow record holds up the finished ones behind it.
        window = collections.deque(
            pool.submit(_load_in_worker, task) for task in itertools.islice(tasks, 4 * workers)
        )
        try:
            while window:
                yield window.popleft().result()
                for task in itertools.islice(tasks, 1):
                    window.append(pool.submit(_load_in_worker, task))
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process died, most often for lack of memory; use fewer with --workers"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def without_tasks(source: Source) -> Source:
    """The source as other processes get it: the tasks of a large one fill their memory."""
    source = copy.copy(source)
    if "tasks" in vars(source):
        vars(source)["tasks"] = ()
    return source


def printable(text: str) -> str:
    """The text with what UTF-8 cannot hold written out, and control characters but line breaks.

    File names may be any bytes. Python reads one that is no UTF-8 as a lone surrogate, which stops
    CSV, HTML and the terminal; control characters steer a terminal.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8").translate(_CONTROL)


_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x0A}


def _load(source: Source, task: Any) -> Loaded | Refused:
    path = getattr(task, "path", task)
    file = printable(os.fspath(path)) if isinstance(path, str | os.PathLike) else ""
    try:
        subject = source.load(task)
    except RefusedRecord as error:
        record = getattr(task, "record", None) or pathlib.PurePath(error.path).stem
        return Refused(printable(record), printable(error.path), printable(error.reason))
    except Exception as error:
        # Libraries raise OSError without a number for files that they cannot make sense of.
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise RuntimeError(
                f"source {source.name!r} failed at {task!r}: {type(error).__name__}: {error}"
            ) from error
        record = getattr(task, "record", None) or pathlib.PurePath(file).stem or str(task)
        return Refused(printable(record), file, printable(_unforeseen(error)))
    _check_contract(subject, source)
    subject.record, subject.subject = printable(subject.record), printable(subject.subject)
    if reason := _reason_to_refuse(subject, source):
        return Refused(subject.record, file, reason)
    labels = np.array([subject.labels.get(label.name, np.nan) for label in source.labels])
    labels = labels.astype(np.float32)
    digest = b""
    if subject.ecg is not None:
        digest = hashlib.blake2b(np.ascontiguousarray(subject.ecg), digest_size=16).digest()
    return Loaded(
        record=subject.record,
        subject=subject.subject,
        split=subject.split,
        file=file,
        has_ecg=subject.ecg is not None,
        has_cmr=subject.cmr is not None,
        labels=labels,
        flags=tuple(printable(flag) for flag in subject.flags),
        ecg_digest=digest,
        payload=records.encode(subject, labels),
        lead_statistics=subject.lead_statistics,
        split_assigned=subject.split_assigned,
    )


def _unforeseen(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        "its reading failed in a way that was not foreseen: "
        f"{type(error).__name__}: {error} ({pathlib.PurePath(place.filename).name}:{place.lineno})"
    )


def _check_contract(subject: Subject, source: Source) -> None:
    """Raises ValueError where the source is wrong, not the record: others would be wrong too."""
    where = f"source {source.name!r}, record {subject.record!r}"
    if subject.split not in SPLITS:
        raise ValueError(f"{where}: split is {subject.split!r}, expected one of {SPLITS}")
    for field, shape, dtype in (
        ("ecg", records.ECG_SHAPE, np.float32),
        ("cmr", records.CMR_SHAPE, np.uint8),
    ):
        array = getattr(subject, field)
        if array is not None and (array.shape != shape or array.dtype != dtype):
            raise ValueError(
                f"{where}: {field} is {array.dtype}{list(array.shape)}, "
                f"expected {np.dtype(dtype)}{list(shape)}"
            )
    names = {label.name for label in source.labels}
    if unknown := sorted(set(subject.labels) - names):
        raise ValueError(f"{where}: labels {', '.join(unknown)} are not among source.labels")


def _reason_to_refuse(subject: Subject, source: Source) -> str:
    """Why the values of this record cannot be used; '' where they can."""
    if subject.ecg is None and subject.cmr is None:
        return "has neither an ECG nor CMR frames"
    if subject.ecg is not None and not np.isfinite(subject.ecg).all():
        return "the ECG has samples that are not finite"
    if subject.cmr is not None and subject.cmr_box is not None:
        top, left, height, width = subject.cmr_box
        rows, columns, _ = records.CMR_SHAPE
        if not (0 <= top < top + height <= rows and 0 <= left < left + width <= columns):
            return (
                f"the heart box {tuple(map(int, subject.cmr_box))} (top, left, height, width) "
                f"does not lie within {rows} x {columns} pixels"
            )
    labels = {label.name: label for label in source.labels}
    for name, value in subject.labels.items():
        if not math.isfinite(value):
            return f"label {name} is {value}, expected a number; a missing label is left out"
        if labels[name].kind == "binary" and value not in (0, 1):
            return f"label {name} is {value:g}, expected 0 or 1"
        if labels[name].kind == "multiclass" and value not in range(len(labels[name].classes)):
            last = len(labels[name].classes) - 1
            return f"label {name} is {value:g}, expected the number of a class, 0 to {last}"
    return ""


_worker_source: Source | None = None


def _start_worker(source: Source) -> None:
    global _worker_source
    _worker_source = source
    # Ctrl-C reaches every process of the terminal; the main one stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Without this, workers wait for ever once the main process has been killed.
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _load_in_worker(task: Any) -> Loaded | Refused:
    return _load(_worker_source, task)


@contextlib.contextmanager
def _one_thread_per_process() -> Iterator[None]:
    """Linear algebra libraries start a thread per processor in every worker unless told not to."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: value or "1" for name, value in before.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
