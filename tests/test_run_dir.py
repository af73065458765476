import errno
import fcntl
import io
import json
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from mmcl_jax import retry
from mmcl_jax.predictions import save
from mmcl_jax.run_dir import (
    MetricsWriter,
    RunDir,
    RunInUse,
    append_line,
    differences,
    write_atomically,
)


def test_resuming_drops_lines_of_steps_taken_again(tmp_path):
    run = RunDir(tmp_path)
    writer = MetricsWriter(run, "mdm")
    for step in (1, 2, 3):
        writer.write(step, step / 2, {"train/loss": 1 / step})
    MetricsWriter(run, "mmcl").write(9, 1.0, {"train/loss": 5.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "mdm", "st')
    MetricsWriter(run, "mdm", resume_step=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    kept = [(line["stage"], line["step"]) for line in lines]
    assert kept == [("mdm", 1), ("mdm", 2), ("mmcl", 9)]


def test_tensorboard_gets_the_same_values(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")
    writer = MetricsWriter(RunDir(tmp_path), "mdm", tensorboard=True)
    writer.write(1, 0.5, {"train/loss": 2.0})
    writer.close()
    (events,) = (tmp_path / "tensorboard" / "mdm").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_config_is_written_once(tmp_path):
    run = RunDir(tmp_path / "run")
    run.write_config({"name": "a"})
    written = (tmp_path / "run" / "config.json").stat().st_mtime_ns
    run.write_config({"name": "a"})
    assert (tmp_path / "run" / "config.json").stat().st_mtime_ns == written
    assert run.read_config() == {"name": "a"}
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["packages"]["jax"]


def test_no_run_directory_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run directory"):
        RunDir(tmp_path).read_config()


def test_differences_name_the_fields():
    old = {"epochs": 3, "optimizer": {"rate": 1e-3}, "same": [1]}
    new = {"epochs": 3, "optimizer": {"rate": 1e-4, "b1": 0.9}, "same": [1]}
    assert differences(old, new) == [
        "optimizer.b1: '(absent)' then, 0.9 now",
        "optimizer.rate: 0.001 then, 0.0001 now",
    ]


# --- lock ------------------------------------------------------------------------------------

HOLD = """
import sys
from mmcl_jax.run_dir import RunDir
with RunDir(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_cannot_share_a_directory(tmp_path):
    run = RunDir(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunInUse, match=f"in use by process {other.pid} on .* another --work"):
            run.lock().__enter__()
        # The system releases the lock of a process that dies.
        other.kill()
    with run.lock():
        assert json.loads((run.path / ".lock").read_text())["process"] == os.getpid()
    with run.lock():
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with RunDir(tmp_path).lock():
        assert "start no second run here" in capsys.readouterr().err


def test_metrics_wait_for_a_file_system_that_comes_back(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.02)
    folder, away = tmp_path / "run", tmp_path / "away"
    folder.mkdir()
    writer = MetricsWriter(RunDir(folder), "mdm")
    writer.write(1, 0.5, {"train/loss": 2.0})
    folder.rename(away)
    timer = threading.Timer(0.1, away.rename, [folder])
    timer.start()
    writer.write(2, 1.0, {"train/loss": 1.0})
    timer.join()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert f"writing {folder / 'metrics.jsonl'}: [Errno 2]" in capsys.readouterr().err


class Disturbed(io.FileIO):
    """A file of which some bytes arrive before the file system fails."""

    arrive = 0

    def write(self, data):
        super().write(data[: self.arrive])
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("arrive", [0, 5, 100])
def test_a_line_is_written_once_and_whole(arrive, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(Disturbed, "arrive", arrive)
    file, opened = tmp_path / "metrics.jsonl", []
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", lambda path, mode: opened.pop()(path, mode))
        for number in range(3):
            # The first attempt fails.
            opened[:] = [io.open, Disturbed]
            append_line(file, f"line {number} of three\n")
    assert file.read_bytes() == b"".join(b"line %d of three\n" % number for number in range(3))


def test_an_error_names_the_file(tmp_path, monkeypatch):
    def full(path, mode):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "open", full)
    with pytest.raises(OSError, match=r"writing .*metrics.jsonl: No space left on device"):
        append_line(tmp_path / "metrics.jsonl", "{}\n")


def test_results_wait_for_a_file_system_that_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.02)
    folder, away = tmp_path / "run", tmp_path / "away"
    run = RunDir(folder)
    with run.lock():
        file = run.make("evaluate") / "metrics.csv"
        folder.rename(away)
        # An empty mount point: the folder is there, and what was in it is not.
        folder.mkdir()
        timer = threading.Timer(0.1, lambda: (folder.rmdir(), away.rename(folder)))
        timer.start()
        # It is known by the lock, which is not there.
        run.reach()
        timer.join()
        write_atomically(file, "a,b\n")
        save(file.with_suffix(".npz"), {"a": np.zeros(1)})
    assert sorted(path.name for path in file.parent.iterdir()) == ["metrics.csv", "metrics.npz"]
    folder.rename(away)
    monkeypatch.setattr(retry, "PATIENCE", 0.1)
    for write in (
        lambda: write_atomically(file, "a,b\n"),
        lambda: save(file.with_suffix(".npz"), {"a": np.zeros(1)}),
        run.reach,
    ):
        with pytest.raises(FileNotFoundError):
            write()
    assert not folder.exists()


def test_a_damaged_mark_is_named(tmp_path):
    run = RunDir(tmp_path)
    (run.make_stage("mdm") / "done.json").write_text("")
    with pytest.raises(ValueError, match=r"mdm/done.json: not JSON .* Delete it: the stage then"):
        run.done("mdm")


def test_a_stage_is_not_made_below_a_mount_point(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "PATIENCE", 0.1)
    run = RunDir(tmp_path / "mount" / "run")
    with pytest.raises(FileNotFoundError):
        run.mark_done("mdm", {})
    assert not (tmp_path / "mount").exists()
    run.write_config({})
    run.mark_done("mdm", {"id": "1"})
    assert run.done("mdm") == {"id": "1"}


def test_weights_and_biases_get_numbers_and_not_what_is_printed(tmp_path, monkeypatch):
    class Wandb:
        def __init__(self):
            self.lines = []

        def init(self, **settings):
            self.settings = settings
            return self

        def log(self, values, step):
            self.lines.append((step, values))

    board = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", board)
    settings = {"enabled": True, "project": "p", "entity": "", "mode": "offline"}
    run = RunDir(tmp_path / "run")
    run.write_config({"a": 1})
    MetricsWriter(run, "mdm", wandb=settings).write(3, 0.5, {"train/loss": 1.0})
    assert board.settings["settings"] == {"console": "off"}
    assert (board.settings["mode"], board.settings["entity"]) == ("offline", None)
    assert board.lines == [(3, {"train/loss": 1.0})]
