"""Files of a split; the content of the records is in `test_cohort.py`."""

import numpy as np
from tiny_source import TinySource

from mmcl_jax.data.records import ShardWriter, decode, encode


def test_shards(tmp_path):
    subject = TinySource().load(1)
    payload = encode(subject, np.float32([np.nan]))
    writer = ShardWriter(tmp_path, "val", shard_size=2)
    for _ in range(5):
        writer.write(payload)
    shards = writer.close()
    assert [shard["records"] for shard in shards] == [2, 2, 1]
    assert shards[2]["file"] == "cohort-val.array_record-00002-of-00003"
    assert sorted(file.name for file in tmp_path.iterdir()) == [s["file"] for s in shards]
    assert set(decode(payload)) == {"ecg", "cmr", "cmr_box"}
