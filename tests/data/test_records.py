"""Files of a split; the content of the records is in `test_cohort.py`."""

import numpy as np
from tiny_source import TinySource

from mmcl_jax.data.records import ShardWriter, decode, empty_arrays, encode, record_bytes


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


def test_arrays_for_records_are_aligned():
    fields = ("ecg", "cmr", "cmr_box")
    arrays = empty_arrays(fields, 3)
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
        "ecg": ((3, 12, 5000), "float32"),
        "cmr": ((3, 210, 210, 3), "uint8"),
        "cmr_box": ((3, 4), "int32"),
    }
    assert all(array.ctypes.data % 64 == 0 for array in arrays.values())
    assert sum(array.nbytes for array in arrays.values()) == 3 * record_bytes(fields)
