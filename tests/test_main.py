"""The command line of a run, as a user has it: killed, stopped, and with bad input."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny_experiment import CONFIGS

from mmcl_jax.checkpoints import load
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.sources.synthetic import Synthetic


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("main") / "cohort"
    source = Synthetic(subjects=80, prevalence="demo", phenotyped=1.0)
    cohorts.write(source, folder, workers=0, progress=False)
    return folder


def main_command(folder, cache, cohort, *changes):
    """The command line of a tiny run: MDM, SimCLR of the CMR encoder, fine-tuning of CAD."""
    flags = [
        "config.models.ecg_encoder.width=16", "config.models.ecg_encoder.heads=2",
        "config.models.ecg_encoder.depth=1", "config.models.decoder.width=16",
        "config.stages.mdm.batch_size=8", "config.stages.finetune.batch_size=8",
        "config.stages.mdm.epochs=30", "config.stages.finetune.epochs=30",
        "config.stages.finetune.patience=-1", "config.stages.finetune.targets=('CAD',)",
        "config.stages.finetune.init.ecg_encoder=mdm",
        "config.stages.finetune.new=('/attention_pool/','/fc_norm/')",
        "config.stages.finetune.unused=('/norm/',)",
        f"config.data.path={cohort}", f"workdir={folder}", f"compile_cache={cache}",
        "config.models.cmr_encoder.width=8", "config.stages.image.batch_size=8",
        "config.stages.image.epochs=12", "config.stages.image.cmr_view.size=32",
        "stages=mdm,image,finetune", *changes,
    ]  # fmt: skip
    command = [sys.executable, "-m", "mmcl_jax.main", f"--config={CONFIGS / 'mmcl.py'}:demo"]
    return [*command, *(f"--{flag}" for flag in flags)]


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
def test_killed_in_any_stage_ends_in_the_same_parameters(cohort, tmp_path):
    cache = tmp_path / "cache"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run_command(main_command(whole, cache, cohort))
    assert result.returncode == 0, result.stderr
    command = main_command(killed, cache, cohort)
    for stage in ("mdm", "image", "finetune/CAD/0"):
        folder = killed / "stages" / stage
        code, _ = kill_when(command, folder / "checkpoints" / "latest", signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert not (folder / "done.json").exists()
    result = run_command(command)
    assert result.returncode == 0, result.stderr
    for stage in ("mdm", "image", "finetune/CAD/0"):
        for which in ("latest", "best"):
            ours = load(killed / "stages" / stage, which)
            theirs = load(whole / "stages" / stage, which)
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_continue(cohort, tmp_path):
    command = main_command(tmp_path / "run", tmp_path / "cache", cohort)
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
def test_bad_input_ends_in_one_line(cohort, tmp_path, change, message):
    command = main_command(tmp_path / "run", tmp_path / "cache", cohort, change)
    result = run_command(command, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 3
