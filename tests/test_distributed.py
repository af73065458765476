"""Several processes on this machine: they find each other, compute the same and end together."""

import functools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import device_runs
import jax
import numpy as np
import pytest
import tiny

from mmcl_jax import distributed
from mmcl_jax.checkpoints import load

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEP = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[01-02]", "SLURM_NTASKS": "8",
    "SLURM_PROCID": "3", "SLURM_LOCALID": "3",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "peers"),
    [
        ({}, False),
        (STEP, True),
        # One task, as in an array job; and the batch script itself, which is no task.
        (STEP | {"SLURM_NTASKS": "1"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, False),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "1"}, False),
        # A pod that is no part of an indexed job.
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        # No TPU here.
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, False),
    ],
)
def test_what_the_environment_tells(environment, peers):
    assert distributed._has_peers(environment) is peers


@pytest.mark.parametrize(("workers", "peers"), [("a,b", True), ("a", False), (None, True)])
def test_workers_of_a_tpu_slice(monkeypatch, workers, peers):
    monkeypatch.setattr(distributed, "_tpu_chips", lambda: True)
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name)
    environment = {} if workers is None else {"TPU_WORKER_HOSTNAMES": workers}
    assert distributed._has_peers(environment) is peers


@pytest.mark.parametrize(
    "arguments",
    [("host:1", 2, -1), ("", 2, 0), ("host", 2, 0), ("host:1", 2, 2), ("host:1", 0, 0)],
)
def test_incomplete_flags_are_an_error(arguments):
    with pytest.raises(ValueError, match="several processes need --coordinator=HOST:PORT"):
        distributed.start(*arguments)


def test_a_coordinator_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(distributed, "_CONNECT", 0)
    with pytest.raises(OSError, match="nothing answers at --coordinator localhost:.*Start process"):
        distributed.start(f"localhost:{free_port()}", 2, 1)


def test_a_single_process_is_left_alone():
    distributed.start(processes=1)
    assert distributed.is_first()
    assert distributed.on_first(lambda: 3, "three") == 3
    distributed.barrier("nobody")
    distributed.check_same({"a": 1}, "nothing")
    shared = distributed.SharedNumber(device_runs.make_mesh())
    assert (shared(0), shared(15), shared(2, wait=True)) == (0, 15, 2)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start_processes(script: pathlib.Path, count: int, *arguments: str) -> list[subprocess.Popen]:
    """`script FILE HOST:PORT PROCESSES PROCESS ...` on this machine."""
    first, *rest = arguments
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    address = f"localhost:{free_port()}"
    return [
        subprocess.Popen(
            [sys.executable, script, first, address, str(count), str(number), *rest],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(count)
    ]  # fmt: skip


def two_by_four(folder: pathlib.Path, names, parameters: str = "replicate") -> dict:
    file = folder / "found.json"
    script = ROOT / "tests" / "device_runs.py"
    started = start_processes(script, 2, str(file), parameters, *names)
    for process in started:
        _, errors = process.communicate(timeout=1800)
        assert process.returncode == 0, errors
    return json.loads(file.read_text())


def relative(found: list[float], expected: list[float]) -> np.ndarray:
    """Differences as shares of what is expected."""
    size = np.abs(expected)
    if min(expected) < 0 < max(expected):
        # The loss of BYOL goes through 0, where nothing is relative to it.
        size = size.max()
    return np.subtract(found, expected) / size


def assert_same(found: dict, expected: dict) -> None:
    losses = relative(found["losses"], expected["losses"])
    metrics = [abs(found["metrics"][k] - value) for k, value in expected["metrics"].items()]
    # For docs/scaling.md: pytest -m nightly -rP
    print(f"losses differ by {np.abs(losses).max():.0e}, metrics by {max(metrics):.0e}")
    np.testing.assert_allclose(losses, 0, atol=1e-5)
    assert found["metrics"].keys() == expected["metrics"].keys()
    for name, value in expected["metrics"].items():
        assert found["metrics"][name] == pytest.approx(value, rel=1e-6, abs=1e-6), name


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
    (name,) = names = ("supervised",)
    assert_same(two_by_four(tmp_path, names)[name], device_runs.run(name, jax.devices()[:1]))


@pytest.mark.nightly
def test_one_process_reads_what_two_with_split_parameters_saved(tmp_path):
    (name,) = names = ("supervised",)
    found = two_by_four(tmp_path, names, "fsdp")[name]
    whole = tmp_path / "whole"
    assert_same(found, device_runs.run(name, jax.devices()[:1], folder=whole))
    for which in ("latest", "best"):
        ours, theirs = (load(folder, which) for folder in (tmp_path / name, whole))
        assert ours[2] == theirs[2] == device_runs.STEPS
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), ours[0], theirs[0])


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return two_by_four(tmp_path_factory.mktemp("two"), tiny.NAMES)


@pytest.fixture(scope="module")
def one_device():
    found: dict[str, dict] = {}
    return lambda name: found.setdefault(name, device_runs.run(name, jax.devices()[:1]))


@pytest.mark.nightly
@pytest.mark.parametrize("name", tiny.NAMES)
def test_two_processes_of_four_devices(name, two_processes, one_device):
    assert_same(two_processes[name], one_device(name))


PLACES = [(2, "replicate"), (4, "replicate"), (8, "replicate"), (8, "fsdp")]


@pytest.fixture(scope="module")
def states():
    return functools.cache(device_runs.states)


@pytest.mark.nightly
@pytest.mark.parametrize(("devices", "parameters"), PLACES)
@pytest.mark.parametrize("name", tiny.NAMES)
def test_steps_from_the_same_states(name, devices, parameters, states):
    """The models as they are, with ReLUs, in every step from the state of one device."""
    before, expected = states(name)
    found = device_runs.losses_from(before, name, jax.devices()[:devices], parameters)
    differences = relative(found, expected)
    print(f"losses differ by {np.abs(differences).max():.0e}")
    np.testing.assert_allclose(differences, 0, atol=1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize(("devices", "parameters"), PLACES)
@pytest.mark.parametrize("name", tiny.NAMES)
def test_devices_of_one_process(name, devices, parameters, one_device):
    found = device_runs.run(name, jax.devices()[:devices], parameters)
    assert_same(found, one_device(name))


WAITING = """
import sys, time
import jax
jax.config.update("jax_num_cpu_devices", 1)
from mmcl_jax import distributed
from mmcl_jax.checkpoints import load
from mmcl_jax.sharding import make_mesh
_, coordinator, processes, process, how = sys.argv[1:]
with distributed.ending_together():
    distributed.start(coordinator, int(processes), int(process))
    distributed.barrier("start")
    shared = distributed.SharedNumber(make_mesh())
    if how == "computing":
        # The first time the processes connect.
        shared(0, wait=True)
    print("here", file=sys.stderr, flush=True)
    while how == "computing":
        shared(0, wait=True)
    if how == "failing" and process == "1":
        sys.exit("error: a file of process 1")
    distributed.barrier("never") if process == "0" else time.sleep(1000)
"""


# What the runtime or we say of the process that is gone; that of number 0 is the leader.
NAMED = {
    0: (r"the leader task was preempted/died",),
    1: (
        r"Task 1 heartbeat timeout",
        r"stopped sending heartbeats\):\s+1\b",
        r"The first task at the barrier: 1\b",
    ),
}


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("how", "gone"),
    [("computing", 0), ("computing", 1), ("waiting", 0), ("waiting", 1), ("failing", 1)],
)
def test_when_one_process_dies_the_others_end_within_a_minute(tmp_path, how, gone):
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    processes = start_processes(script, 2, "-", how)
    for process in processes:
        assert any("here" in line for line in process.stderr)
    if how != "failing":
        processes[gone].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    left = processes[1 - gone]
    _, errors = left.communicate(timeout=60)
    assert time.monotonic() - begun < 60
    assert left.returncode != 0
    assert re.search("|".join(NAMED[gone]), errors), errors
    if (how, gone) == ("computing", 1):
        assert "error: process 0 of 2 lost contact with another one: " in errors


CHECKING = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 1)
from mmcl_jax import distributed
from mmcl_jax.checkpoints import load
_, coordinator, processes, process = sys.argv[1:]
distributed.start(coordinator, int(processes), int(process))
def fail():
    raise OSError("No space left on device")
for action in (lambda: distributed.check_same({"rate": float(process)}, "configuration"),
               lambda: distributed.on_first(fail, "cohort")):
    try:
        action()
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
print("printed by", process)
"""


@pytest.mark.slow
def test_differences_and_failures_reach_every_process(tmp_path):
    script = tmp_path / "checking.py"
    script.write_text(CHECKING)
    found = [process.communicate(timeout=120) for process in start_processes(script, 2, "-")]
    for output, errors in found:
        assert "configuration: process 1 has another one than process 0" in errors, (output, errors)
        assert "No space left on device" in errors
    assert "process 0, cohort: No space" in found[1][1]
    assert "printed by 0" in found[0][0]
    assert found[1][0] == ""
