"""The command line of a run, as a user has it: killed, stopped, and with bad input."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from kills import ROOT, Run, differences, kill_and_finish, main_command, make_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("main") / "cohort"
    make_cohort(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs of all runs."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(autouse=True)
def quick_compiles(monkeypatch):
    """As `compiled_quickly`, for the runs that a test starts."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def run_command(command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)


def kill_when(command, checkpoint: pathlib.Path, number: signal.Signals):
    """Starts `command` and signals it as soon as a stage has a checkpoint."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not any(path.name.isdigit() for path in checkpoint.glob("*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    output = process.communicate(timeout=120)
    return process.returncode, output


@pytest.mark.slow
def test_killed_in_any_stage_ends_bit_for_bit_as_undisturbed(cohort, cache, tmp_path):
    def command(folder):
        return main_command(folder, cache, cohort)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    Run(command(whole)).succeed()
    # One in each stage, where nothing is slower than in the undisturbed run.
    assert kill_and_finish(whole, killed, command, kills=4, seed=0) >= 2
    assert differences(whole, killed) == []


@pytest.mark.nightly
@pytest.mark.parametrize("command", ["kills --kills 100", "soak --steps 20000"])
def test_by_hand(command):
    program, *options = command.split()
    subprocess.run([sys.executable, "-m", f"tests.{program}", *options], cwd=ROOT, check=True)


@pytest.mark.slow
def test_sigterm_outside_a_training_ends_with_its_code(tmp_path):
    """Not by the signal's default, which the first process of a container does not have."""
    flags = ["--config.data.synthetic.subjects=100000", f"--workdir={tmp_path / 'run'}"]
    command = [
        sys.executable,
        "-m",
        "mmcl_jax.main",
        f"--config={ROOT}/configs/mmcl.py:demo",
        *flags,
    ]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:  # fmt: skip
        for line in process.stdout:
            if "preparing the synthetic cohort" in line:
                break
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.count("ended by SIGTERM. To continue, run the same command again") == 1


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_continue(cohort, cache, tmp_path):
    command = main_command(tmp_path / "run", cache, cohort)
    latest = tmp_path / "run" / "stages" / "mdm" / "checkpoints" / "latest"
    code, (_, errors) = kill_when(command, latest, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM and saved at step" in errors
    assert "python -m mmcl_jax.main" in errors
    assert f"--workdir={tmp_path / 'run'}" in errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("config.stages.mdm.epoch=3", "epoch"),
        ("config.data.path=/no/such/cohort", "/no/such/cohort"),
        ("stages=mdn", "no stage mdn"),
        ("config.data.preprocessing.ecg.clip=3.0", "ecg.clip: found 4.0, expected 3.0"),
        ("config.stages.mdm.batch_size=4096", "4096"),
    ],
)
def test_bad_input_ends_in_one_line(cohort, cache, tmp_path, change, message):
    command = main_command(tmp_path / "run", cache, cohort, change)
    result = run_command(command, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 3
    if "epoch=3" not in change:  # found before anything runs
        first = result.stdout.splitlines()[0]
        assert first == f"configuration, run as Python code: {ROOT / 'configs' / 'mmcl.py'}:demo"
