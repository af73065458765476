"""Preparations that are stopped and go on, and blocks that are written elsewhere."""

import dataclasses
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from noting_source import MIXED, NotingSource

from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.preparing import blocks, preparation


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "_SMALLEST", 7)


@pytest.fixture
def undisturbed(tmp_path):
    cohorts.write(NotingSource(**MIXED), tmp_path / "whole" / "c", workers=0, progress=False)
    return content(tmp_path / "whole" / "c")


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def loaded(log):
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def write(source, path, **options):
    return cohorts.write(source, path, **{"workers": 0, "progress": False, **options})


def test_every_block_gives_a_file_per_split(undisturbed):
    files = sorted(name for name in undisturbed if "array_record" in name)
    # Six blocks of 7 tasks and less; a split may have no record in a block.
    assert files[0] == "cohort-test.array_record-00000-of-00004"
    assert [name for name in files if "train" in name][-1].endswith("00005-of-00006")


def test_the_number_of_blocks_is_bounded(tmp_path, monkeypatch):
    monkeypatch.undo()
    assert len(blocks.Blocks(tmp_path, range(0))) == 0
    assert len(blocks.Blocks(tmp_path, range(251))) == 2
    assert blocks.Blocks(tmp_path, range(40_000)).size == 400
    assert len(blocks.Blocks(tmp_path, range(800_000))) == 100


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_the_middle(tmp_path, undisturbed, workers, capsys):
    log = tmp_path / "log"
    with pytest.raises(RuntimeError, match="failed at 24: OSError: .* the network is gone"):
        write(NotingSource(**MIXED, fails=24), tmp_path / "c")
    (left,) = tmp_path.glob("c.incomplete-*")
    again = NotingSource(**MIXED, log=str(log))
    report = write(again, tmp_path / "c", workers=workers, progress=True)
    assert sorted(loaded(log)) == [n for n in range(21, 40)]
    assert content(tmp_path / "c") == undisturbed
    assert report.read == 40
    assert "going on with an unfinished preparation, 21 of 40 records" in capsys.readouterr().err
    assert not left.exists()


def test_a_killed_process(tmp_path, undisturbed):
    log = tmp_path / "log"
    script = f"""
import sys
sys.path[:0] = {[str(pathlib.Path(__file__).parents[n]) for n in (0, 1, 2)]!r}
import test_blocks
from noting_source import NotingSource
from mmcl_jax.data.preparing import blocks
if __name__ == "__main__":
    blocks._SMALLEST = 7
    source = NotingSource(**test_blocks.MIXED, log={str(log)!r}, waits=30)
    test_blocks.write(source, {str(tmp_path / "c")!r}, workers=1)
"""
    file = tmp_path / "script.py"
    file.write_text(script)
    process = subprocess.Popen([sys.executable, str(file)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "log.waits").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # The worker waits in block 4; the main process has time to finish block 3.
    journal = f"c.incomplete-*/{blocks.FOLDER}/00003.json"
    while not list(tmp_path.glob(journal)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(FileExistsError, match="another process is writing"):
        write(NotingSource(**MIXED), tmp_path / "c")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    log.unlink()
    write(NotingSource(**MIXED, log=str(log)), tmp_path / "c")
    assert loaded(log) == list(range(28, 40))
    assert content(tmp_path / "c") == undisturbed


def test_a_failure_at_the_very_end(tmp_path, undisturbed, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(preparation, "write_tfds_metadata", fail)
        with pytest.raises(OSError, match="disk full"):
            write(NotingSource(**MIXED), tmp_path / "c")
    log = tmp_path / "log"
    write(NotingSource(**MIXED, log=str(log)), tmp_path / "c")
    assert loaded(log) == []
    assert content(tmp_path / "c") == undisturbed


def test_a_damaged_block_is_made_again(tmp_path, undisturbed):
    with pytest.raises(RuntimeError):
        write(NotingSource(**MIXED, fails=39), tmp_path / "c")
    (left,) = tmp_path.glob(f"c.incomplete-*/{blocks.FOLDER}")
    (left / "00002-train.records").write_bytes(b"")
    (left / "00003.json").write_text('{"entries": [')
    log = tmp_path / "log"
    write(NotingSource(**MIXED, log=str(log)), tmp_path / "c")
    assert loaded(log) == [*range(14, 28), *range(35, 40)]
    assert content(tmp_path / "c") == undisturbed


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "parameters"),
        ({"count": 41}, "tasks"),
        ({"settings_": (("clip", 3.0),)}, "settings"),
    ],
)
def test_another_source_starts_afresh(tmp_path, capsys, change, named):
    with pytest.raises(RuntimeError):
        write(NotingSource(fails=30), tmp_path / "c")
    other = NotingSource(**change, log=str(tmp_path / "log"))
    write(other, tmp_path / "c", progress=True)
    assert f"had other {named}; it is removed, starting afresh" in capsys.readouterr().err
    assert loaded(tmp_path / "log") == list(other.tasks)


def test_wrong_data_leave_nothing_to_go_on_with(tmp_path):
    source = NotingSource(changes=((38, "subject", "s003"),))
    with pytest.raises(cohorts.CohortError, match="subject s003 is in two splits"):
        write(source, tmp_path / "c")
    with pytest.raises(cohorts.CohortError, match="no usable record"):
        write(NotingSource(refused=tuple(range(40))), tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_blocks_written_elsewhere_give_the_same_cohort(tmp_path, undisturbed):
    def distribute(source, parts, missing):
        for number in reversed(missing):
            blocks.write_block(parts.path, number, source, parts.tasks(number))

    report = write(NotingSource(**MIXED), tmp_path / "c", distribute=distribute)
    assert content(tmp_path / "c") == undisturbed
    assert len(report.refused) == 3

    with pytest.raises(FileNotFoundError, match="6 of 6 blocks are not in .* every worker must"):
        write(NotingSource(**MIXED), tmp_path / "d", distribute=lambda *_: None)


def test_a_journal_gives_everything_back(tmp_path):
    source = NotingSource(**MIXED)
    (tmp_path / blocks.FOLDER).mkdir()
    parts = blocks.Blocks(tmp_path, source.tasks)
    blocks.write_block(parts.path, 0, source, parts.tasks(0))
    block = parts.read(0)
    written = list(blocks.load_in_order(source, 0, parts.tasks(0)))
    assert block.stored == (True,) * 5 + (False, True)
    for found, expected in zip(block.entries, written, strict=True):
        for field in dataclasses.fields(expected):
            if field.name != "payload":
                name = field.name
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert parts.finished() == {0}
