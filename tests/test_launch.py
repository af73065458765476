"""The launch scripts, as far as a machine without scheduler, cluster and cloud can run them."""

import csv
import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

import pytest
import yaml
from test_distributed import free_port
from tiny_experiment import CONFIGS

from mmcl_jax import evaluate
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.sources.synthetic import Synthetic
from mmcl_jax.experiment import Experiment

ROOT = CONFIGS.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_sound(script):
    checker = pathlib.Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([checker, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.access(script, os.X_OK)


def executable(file: pathlib.Path, text: str) -> None:
    file.write_text(text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def machine(tmp_path):
    """Environment in which `srun`, `scontrol` and `gcloud` are ours."""
    programs = tmp_path / "bin"
    programs.mkdir()
    executable(programs / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    executable(programs / "srun", f'#!/bin/sh\nexec python {ROOT}/tests/fake_srun.py "$@"\n')
    for name in ("scontrol", "gcloud"):
        executable(programs / name, f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/{name}.log\n')
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    return environment | {
        "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "FAKE_TASKS": "2",
        "FAKE_PIDS": str(tmp_path / "pids"), "SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "8",
        # By default JAX makes it of the number of the job.
        "JAX_COORDINATOR_PORT": str(free_port()),
        "WORKDIR": str(tmp_path / "run"),
    }  # fmt: skip


def launch(script: str, environment: dict, *flags: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", LAUNCH / script, *flags], cwd=ROOT, env=environment, capture_output=True,
        text=True, timeout=900, **options,
    )  # fmt: skip


def flags_are_known(script: str, machine: dict) -> None:
    done = launch(script, machine, "--stages=none", "--compile_cache=")
    assert "error: no stage none; the configuration has mdm, image, mmcl, finetune" in done.stderr
    assert done.returncode == 1


@pytest.mark.nightly
@pytest.mark.parametrize("script", ["one_gpu.sh", "multi_gpu.sh"])
def test_one_machine(script, machine):
    flags_are_known(script, machine)


def test_a_job_for_each_target(machine):
    changes = {"FAKE_TASKS": "1", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "12"}
    flags_are_known("slurm_sweep.sh", machine | changes)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch") / "cohort"
    source = Synthetic(subjects=80, prevalence="demo", phenotyped=1.0)
    cohorts.write(source, folder, workers=0, progress=False)
    return folder


def tiny_flags(cohort, cache) -> list[str]:
    """Fine-tuning of CAD from fresh parameters, and its evaluation, in seconds."""
    flags = [
        "models.ecg_encoder.width=16", "models.ecg_encoder.heads=2", "models.ecg_encoder.depth=1",
        "models.ecg_encoder.samples=1000", "stages.finetune.ecg_view.length=1000",
        "stages.finetune.init.ecg_encoder=", "stages.finetune.targets=('CAD',)",
        "stages.finetune.seeds=(0,)", "stages.finetune.batch_size=8", "stages.finetune.epochs=5",
        "stages.finetune.optimizer.warmup_epochs=1", "stages.finetune.patience=-1",
        # No multiple of the devices.
        "stages.evaluate.batch_size=7", "stages.evaluate.resamples=20", f"data.path={cohort}",
    ]  # fmt: skip
    common = [f"--compile_cache={cache}", "--stages=finetune,evaluate"]
    return [*common, *(f"--config.{flag}" for flag in flags)]


def results(file: pathlib.Path) -> list[dict]:
    with file.open() as rows:
        return list(csv.DictReader(rows))


def test_tasks_find_each_other(machine):
    done = launch("slurm.sh", machine, "--stages=none", "--compile_cache=")
    assert done.returncode == 1
    assert "cpu x 4, 2 processes" in done.stdout
    assert done.stderr.count("error: no stage none") == 2


def test_a_failure_is_not_queued_again(machine, tmp_path):
    """Whatever the others end with."""
    shim = 'if [ "${SLURM_PROCID:-}" = 1 ]; then exit 1; fi\n'
    shim += 'if [ "${SLURM_PROCID:-}" = 0 ]; then exec sleep 8; fi\n'
    program = tmp_path / "bin" / "python"
    executable(program, program.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{shim}"))
    assert launch("slurm.sh", machine).returncode == 1
    assert not (tmp_path / "scontrol.log").exists()


@pytest.mark.nightly
def test_slurm_stops_continues_and_evaluates_as_one_process_does(machine, cohort, tmp_path):
    flags, run = tiny_flags(cohort, tmp_path / "cache"), tmp_path / "run"
    script = subprocess.Popen(
        ["bash", LAUNCH / "slurm.sh", *flags], cwd=ROOT, env=machine, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    latest = run / "stages" / "finetune" / "CAD" / "0" / "checkpoints" / "latest"
    deadline = time.monotonic() + 600
    while not any(path.name.isdigit() for path in latest.glob("*")):
        assert script.poll() is None, script.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # The signal reaches one task only; both save, after the same step.
    second = int((tmp_path / "pids").read_text().split()[1])
    os.kill(second, signal.SIGTERM)
    output, errors = script.communicate(timeout=300)
    assert script.returncode == 128 + signal.SIGTERM, errors
    assert errors.count("stage finetune/CAD/0 stopped by SIGTERM and saved at step") == 2
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {machine['SLURM_JOB_ID']}\n"
    assert output.count("stage finetune/CAD/0 (1 of 2)") == 1
    assert "cpu x 4, 2 processes" in output

    done = launch("slurm.sh", machine, *flags)
    assert done.returncode == 0, done.stderr
    environment = json.loads((run / "environment.json").read_text())
    assert environment["processes"] == 2
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["stage"], line["step"]) for line in lines if "train/loss" in line]
    assert len(steps) == len(set(steps)) > 4

    found = results(run / "evaluate" / "metrics.csv")
    experiment = Experiment.open(run)
    evaluate.run(experiment, splits=("val", "test"), crops=1, resamples=20, batch_size=16)
    expected = results(run / "evaluate" / "metrics.csv")
    assert len(found) == len(expected) > 4
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("value", "low", "high", "n"):
            assert float(ours[name] or 0) == pytest.approx(float(theirs[name] or 0), abs=1e-6)


@pytest.fixture(scope="module")
def pods():
    """Service, job, pod, its container, and what that has in its environment."""
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    return service, job, pod, container, given


def test_names_and_numbers_of_pods(pods):
    service, job, pod, _, given = pods
    host, port = given["COORDINATOR"].split(":")
    assert host == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert port.isdigit()
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert int(given["PROCESSES"]) == job["spec"]["completions"] == job["spec"]["parallelism"]


def test_a_pod_that_was_told_to_go_counts_as_no_failure(pods):
    _, job, _, container, _ = pods
    (by_code,) = (
        rule["onExitCodes"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    )
    assert by_code["containerName"] == container["name"]
    assert by_code["values"] == [128 + signal.SIGTERM]


@pytest.mark.nightly
def test_pods_find_each_other(machine, pods, tmp_path):
    *_, container, given = pods
    here = {"COORDINATOR": f"localhost:{free_port()}", "WORKDIR": str(tmp_path / "run")}
    started = [
        subprocess.Popen(
            [*container["command"], "--stages=none", "--compile_cache="], cwd=ROOT, text=True,
            env=machine | given | here | {"JOB_COMPLETION_INDEX": str(number)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]  # fmt: skip
    found = [process.communicate(timeout=300) for process in started]
    assert "cpu x 4, 2 processes" in found[0][0]
    assert [errors.count("no stage none") for _, errors in found] == [1, 1]


def test_tpu_slice(machine, tmp_path):
    assert launch("tpu.sh", machine).returncode == 2
    for action in (["create"], ["status"], ["run", "--stages=mdm"], ["delete"]):
        done = launch("tpu.sh", machine, *action)
        assert done.returncode == 0, done.stderr
    log = (tmp_path / "gcloud.log").read_text()
    assert "queued-resources create mmcl --project=my-project --zone=europe-west4-b" in log
    assert "--node-id=mmcl --spot --accelerator-type=v5litepod-16" in log
    assert "tpu-vm ssh mmcl" in log
    assert "--worker=all" in log
    assert "mmcl_jax.main --config=configs/mmcl.py --config.data.path= " in log
    assert f"--workdir={machine['WORKDIR']} --stages=mdm" in log
    assert "queued-resources delete mmcl" in log
