"""Folders that appear when they are complete; the rest is in `test_cohort.py`."""

import os
import time

import pytest

from mmcl_jax.data.staging import staged_folder


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
