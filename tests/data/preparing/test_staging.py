"""Folders that appear when they are complete; the rest is in `test_cohort.py`."""

import contextlib
import os
import pathlib
import socket
import subprocess
import time

import pytest

from mmcl_jax.data.preparing import staging
from mmcl_jax.data.preparing.staging import staged_folder


def leave(output: pathlib.Path, name: str = "work/1") -> None:
    """What a process leaves that ends in the middle."""
    with (
        contextlib.suppress(OSError),
        staged_folder(output, marker="x", keep="work/*") as folder,
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
        raise OSError("disk full")


def test_what_is_worth_keeping_is_taken_over(tmp_path):
    leave(tmp_path / "c[1]")
    (left,) = tmp_path.iterdir()
    process = subprocess.Popen(["true"])
    process.wait()
    # As if another process, which is no more, had left it.
    other = left.with_name(f"c[1].incomplete-{socket.gethostname()}-{process.pid}")
    left.rename(other)
    with staged_folder(tmp_path / "c[1]", marker="x", keep="work/*") as folder:
        assert (folder / "work/1").read_text() == "work/1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["c[1]"]


def test_what_the_same_process_left_is_kept(tmp_path):
    leave(tmp_path / "c")
    leave(tmp_path / "c", "work/2")
    with staged_folder(tmp_path / "c", marker="x", keep="work/*") as folder:
        assert sorted(entry.name for entry in (folder / "work").iterdir()) == ["1", "2"]


def test_what_is_not_worth_keeping_is_removed(tmp_path):
    leave(tmp_path / "c", "other")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_waits_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_SIGN_OF_LIFE", 0.02)
    with staged_folder(tmp_path / "c", marker="x") as folder:
        os.utime(folder, (0, 0))
        deadline = time.monotonic() + 10
        while folder.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_folder_of_another_host_counts_as_abandoned_when_it_is_old(tmp_path):
    other = tmp_path / "c[1].incomplete-elsewhere-123"
    other.mkdir()
    with (
        pytest.raises(FileExistsError, match="another process is writing"),
        staged_folder(tmp_path / "c[1]", marker="x"),
    ):
        pass
    os.utime(other, (time.time() - 3600,) * 2)
    with staged_folder(tmp_path / "c[1]", marker="x") as folder:
        (folder / "x").touch()
    assert [entry.name for entry in tmp_path.iterdir()] == ["c[1]"]
