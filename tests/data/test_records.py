"""Files of a split; the content of the records is in `test_cohort.py`."""

import numpy as np
import pytest
from tiny_source import TinySource

from mmcl_jax.data.record_source import RecordSource
from mmcl_jax.data.records import (
    ShardWriter,
    decode,
    empty_arrays,
    encode,
    read_records,
    record_bytes,
    shard_name,
)


def test_a_shard_appears_when_it_is_complete(tmp_path):
    payloads = [encode(TinySource().load(n), np.float32([np.nan])) for n in range(5)]
    writer = ShardWriter(tmp_path / shard_name("val", 0, 1))
    for payload in payloads:
        writer.write(payload)
    (partial,) = tmp_path.iterdir()
    assert partial.name.endswith(".partial")
    shard = writer.close()
    (file,) = tmp_path.iterdir()
    assert file.name == shard["file"] == "cohort-val.array_record-00000-of-00001"
    assert (shard["records"], shard["bytes"]) == (5, file.stat().st_size)
    assert list(read_records(tmp_path, shard)) == payloads
    assert len(RecordSource(tmp_path, [shard])) == 5
    assert set(decode(payloads[0])) == {"ecg", "cmr", "cmr_box"}


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


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
    class Full:
        def write(self, record):
            raise RuntimeError("write() failed: No space left on device")

    writer = ShardWriter(tmp_path / "a")
    writer._writer = Full()
    with pytest.raises(OSError, match="No space left on device"):
        writer.write(b"x")
