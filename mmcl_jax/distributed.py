"""Several processes in one run: how they find each other, and what only the first of them does.

Every process runs the same program on the same configuration, reads its part of each batch and
computes with its own devices. They share one file system: the first process writes what is written
once, and the others wait for it. With a single process nothing here does anything.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")

# Seconds. A process that is gone is noticed after the first; together they stay below a minute.
_HEARTBEAT, _SHUTDOWN = 30, 20
_CONNECT = 300
# Of waiting for the first process, which may prepare a cohort meanwhile.
_PATIENCE = 24 * 3600
# Until a network file system shows a file that another machine has written.
_LATE = 120
_MESSAGE = 2048  # bytes
# How JAX's errors of communication begin; some of them are ValueErrors.
_LOST_CONTACT = re.compile("(UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|INTERNAL): ")
_barriers = itertools.count()


def start(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Connects this process with the others; before any other use of JAX.

    Without arguments the environment decides: tasks of SLURM or Open MPI, workers of a TPU slice,
    pods of an indexed Kubernetes job (with the package `kubernetes`). Then JAX finds coordinator
    and numbers by itself. `processes=1` ignores the environment. Afterwards only the first process
    prints to stdout.

    Args:
        coordinator: `host:port` of process 0, where it has that port free.
        processes: how many there are in all.
        process: the number of this one, from 0.

    Raises:
        ValueError: some arguments without the others, or a number out of range.
        OSError: the processes do not find each other.
    """
    if processes == 1 or not (coordinator or processes or process >= 0 or _has_peers(os.environ)):
        return
    # Its handler of SIGTERM would not know of ours, which saves (see `SharedNumber`).
    jax.config.update("jax_enable_preemption_service", False)
    timeouts = {
        "initialization_timeout": _CONNECT,
        "heartbeat_timeout_seconds": _HEARTBEAT,
        "shutdown_timeout_seconds": _SHUTDOWN,
    }
    given = _given(coordinator, processes, process)
    if process > 0:
        # JAX would abort with a stack trace.
        _reach(coordinator)
    try:
        jax.distributed.initialize(**given, **timeouts)
    except (RuntimeError, ValueError) as error:
        where = f"process {process} of {processes} at {coordinator}" if given else "environment"
        raise OSError(
            f"the processes of this run did not find each other ({where}): "
            f"{' '.join(str(error).split())}. Start all of them, with the same --coordinator; "
            "--processes=1 runs one alone"
        ) from error
    if not is_first():
        # Also what libraries write that are not in Python.
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `start`, for commands that `mmcl_jax.main` does not run."""
    several = parser.add_argument_group("several processes; found by themselves in a cluster")
    several.add_argument("--coordinator", default="", metavar="HOST:PORT", help="the first of them")
    several.add_argument("--processes", type=int, default=0, metavar="N", help="how many there are")
    several.add_argument("--process", type=int, default=-1, metavar="I", help="this one, from 0")


def is_first() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when all processes are here. `name` is for messages."""
    if jax.process_count() == 1:
        return
    from orbax.checkpoint import multihost

    key = f"{name} ({next(_barriers)})"
    multihost.get_barrier_sync_fn()(key=key, timeout_ms=1000 * _PATIENCE)


def on_first(
    function: Callable[[], T], name: str, file: str | pathlib.Path | None = None
) -> T | None:
    """`function()` on the first process; all of them return when it is done.

    Args:
        name: of what is done, for messages.
        file: that it writes. The others return when they see it, which a network file system may
            delay.

    Returns:
        What the function returns; None on the other processes.

    Raises:
        ValueError, OSError: what the function raised, on every process.
    """
    if jax.process_count() == 1:
        return function()
    result, failure = None, None
    if is_first():
        try:
            result = function()
        except (ValueError, OSError) as error:
            failure = error
    barrier(name)
    message = _tell("" if failure is None else str(failure))
    if failure is not None:
        raise failure
    if message:
        raise OSError(f"process 0, {name}: {message}")
    if file is not None:
        _wait_for(pathlib.Path(file))
    return result


def check_same(tree: Any, what: str) -> None:
    """Raises ValueError on every process where `tree` is not the same on all of them.

    Args:
        tree: arrays, or anything that `json` takes.
        what: it is, for the message.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    found = multihost_utils.process_allgather(np.frombuffer(_digest(tree), np.uint8))
    others = [str(number) for number, digest in enumerate(found) if (digest != found[0]).any()]
    if others:
        raise ValueError(
            f"{what}: process {', '.join(others)} has another one than process 0. Start all "
            "processes with the same version, configuration, run directory and flags"
        )


def processes_here() -> int:
    """Processes on this machine. All processes call it."""
    if jax.process_count() == 1:
        return 1
    from jax.experimental import multihost_utils

    name = hashlib.sha256(socket.gethostname().encode()).digest()
    found = multihost_utils.process_allgather(np.frombuffer(name, np.uint8))
    return int((found == found[jax.process_index()]).all(axis=1).sum())


def total(number: int) -> int:
    """The sum of the numbers that the processes give."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.asarray(number)).sum())


class SharedNumber:
    """The largest of the numbers that the processes give, the same on all of them.

    A signal may reach processes in different steps. They have to save after the same one, so the
    loop asks for the signal in every step. The answer is that of the step before, which is known
    already: nobody waits.
    """

    def __init__(self, mesh: Mesh):
        self._alone = jax.process_count() == 1
        self._split = NamedSharding(mesh, PartitionSpec("data"))
        self._largest = jax.jit(
            lambda numbers: numbers.max(), out_shardings=NamedSharding(mesh, PartitionSpec())
        )
        self._last: jax.Array | None = None

    def __call__(self, number: int, *, wait: bool = False) -> int:
        """Gives the number of this process and takes the largest, of the call before or (`wait`) of
        this one. All processes call in the same order."""
        if self._alone:
            return number
        here = np.full(jax.local_device_count(), number, np.int32)
        before = self._last
        self._last = self._largest(jax.make_array_from_process_local_data(self._split, here))
        answer = self._last if wait else before
        return 0 if answer is None else int(answer)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends this process, with a line on stderr, where another one is gone.

    The one that is gone is named by its own message, if it had time for one, or by that of the
    coordinator, which ends everything that still runs after half a minute without sign of life.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        if jax.process_count() == 1 or not _LOST_CONTACT.match(text):
            raise
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} lost contact with "
            f"another one: {text}",
            file=sys.stderr,
            flush=True,
        )
        # Long enough for the coordinator to find out who it was. The usual way out would wait for
        # the process that is gone.
        time.sleep(_HEARTBEAT + 15)
        os._exit(1)


def _given(coordinator: str, processes: int, process: int) -> dict[str, Any]:
    """Arguments of `jax.distributed.initialize`; none where the environment decides."""
    if not coordinator and not processes and process < 0:
        return {}
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 <= process < processes:
        raise ValueError(
            "several processes need --coordinator=HOST:PORT, --processes=N and --process=I with I "
            f"from 0 to N - 1; found coordinator {coordinator!r}, processes {processes}, process "
            f"{process}"
        )
    return {
        "coordinator_address": coordinator,
        "num_processes": processes,
        "process_id": process,
        "cluster_detection_method": "deactivate",
    }


def _reach(coordinator: str) -> None:
    """Returns when process 0 listens. Raises OSError where it does not in time."""
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + _CONNECT
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=10):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise OSError(
                    f"nothing answers at --coordinator {coordinator} ({error}). Start process 0 "
                    f"there within {_CONNECT} s, and let the others reach that port"
                ) from error
        time.sleep(0.5)


def _has_peers(environment: Mapping[str, str]) -> bool:
    """Whether JAX would find other processes, as far as the environment tells."""

    def number(name: str) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdigit() else 0

    step = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environment for name in step) and number("SLURM_NTASKS") > 1:
        return True
    if "OMPI_MCA_orte_hnp_uri" in environment and number("OMPI_COMM_WORLD_SIZE") > 1:
        return True
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return importlib.util.find_spec("kubernetes") is not None
    if not importlib.util.find_spec("libtpu") or not _tpu_chips():
        return False
    # On Google Cloud the metadata server knows the workers; where it is not to be asked, these do.
    workers = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", ""))
    return "," in workers or not (workers or "TPU_SKIP_MDS_QUERY" in environment)


def _tpu_chips() -> bool:
    devices = pathlib.Path("/dev")
    return any(devices.glob("accel*")) or any(devices.glob("vfio/[0-9]*"))


def _tell(message: str) -> str:
    """What the first process has to say, on every process."""
    from jax.experimental import multihost_utils

    text = message.encode()[:_MESSAGE].ljust(_MESSAGE)
    told = multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))
    return bytes(np.asarray(told)).decode(errors="replace").strip()


def _wait_for(file: pathlib.Path) -> None:
    deadline = time.monotonic() + _LATE
    while not file.exists():
        if time.monotonic() > deadline:
            raise OSError(
                f"process {jax.process_index()} does not see {file}, which process 0 has written; "
                "the run directory has to be on a file system that all machines share"
            )
        time.sleep(0.05)


def _digest(tree: Any) -> bytes:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        is_array = isinstance(leaf, np.ndarray | jax.Array)
        digest.update(np.asarray(leaf).tobytes() if is_array else json.dumps(leaf).encode())
    return digest.digest()
