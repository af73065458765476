"""The bench of embeddings from files at tiny size."""

import pytest

from mmcl_jax.bench import embed_files
from mmcl_jax.bench.options import Options


def test_embeddings_from_files():
    rows = embed_files.run("embed_files", Options(rounds=1, seconds=0.0, size="tiny"))
    assert [row["what"] for row in rows] == ["device", "reading", "both"]
    for row in rows:
        assert len(row["batch_s"]["samples"]) == 1
        rate = row["batch_size"] / row["batch_s"]["median"]
        assert row["records_per_s"] == pytest.approx(rate)
    device, reading, _ = (row["records_per_s"] for row in rows)
    # The device is this machine's processor.
    assert rows[0]["possible"] == pytest.approx(device * reading / (device + reading))
    assert "from files to embeddings" in embed_files.table(rows)


def test_what_is_possible():
    assert embed_files._possible(100.0, 50.0, shared=False) == 50
    assert embed_files._possible(100.0, 100.0, shared=True) == pytest.approx(50)
