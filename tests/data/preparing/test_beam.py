"""A cohort by way of Apache Beam's local runner."""

import pytest
from tiny_source import TinySource

pytest.importorskip("apache_beam", reason="Apache Beam is not installed")

from mmcl_jax import prepare
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.preparing import beam, blocks
from mmcl_jax.data.sources import ptbxl

MIXED = TinySource(
    refused=(5, 17),
    flagged=(2,),
    without_ecg=(11,),
    without_cmr=(4,),
    changes=((16, "record", "r006"),),
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "_SMALLEST", 7)


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_cohort_is_that_of_a_local_run(tmp_path, monkeypatch, capsys):
    cohorts.write(MIXED, tmp_path / "local" / "c", workers=0, progress=False)
    monkeypatch.setattr(ptbxl, "PtbXl", lambda **_: MIXED)
    output = tmp_path / "beam" / "c"
    arguments = ["ptbxl", "--input", "in", "--output", str(output), "--runner", "DirectRunner"]
    options = "--direct_num_workers=1 --direct_running_mode=in_memory"
    assert prepare.main([*arguments, "--runner-options", options]) == 0
    assert "6 blocks of up to 7 records to DirectRunner" in capsys.readouterr().err
    found = content(output)
    for name in ("preview.png", "prepare_report.html"):
        del found[name]
    assert found == content(tmp_path / "local" / "c")


def test_only_missing_blocks_are_handed_over(tmp_path):
    (tmp_path / blocks.FOLDER).mkdir()
    parts = blocks.Blocks(tmp_path, MIXED.tasks)
    beam.write_blocks(MIXED, parts, [1, 4], runner="DirectRunner")
    assert parts.finished() == {1, 4}
    beam.write_blocks(MIXED, parts, [], runner="NoSuchRunner")
