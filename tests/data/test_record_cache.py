from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_source import TinySource

from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.record_cache import RecordCache
from mmcl_jax.data.records import empty_arrays


class Counting:
    """A source that counts what is read from it."""

    def __init__(self, source):
        self.fields, self._source, self.read = source.fields, source, []

    def __len__(self):
        return len(self._source)

    def fill(self, arrays, rows):
        self.read.extend(rows)
        return self._source.fill(arrays, rows)


def test_cache_gives_what_the_files_hold_and_reads_them_once(tmp_path):
    cohorts.write(TinySource(count=20), tmp_path / "c", workers=0, progress=False)
    source = cohorts.open_cohort(tmp_path / "c").source("train", ("ecg", "cmr", "cmr_box"))
    chosen = np.array([9, 2, 3, 5, 11, 7])
    counting = Counting(source)
    cache = RecordCache(counting, chosen)
    asked = [np.r_[np.random.default_rng(seed).permutation(chosen)[:5], -1] for seed in range(40)]

    def read(rows):
        arrays = empty_arrays(cache.fields, len(rows))
        cache.fill(arrays, rows)
        return arrays

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, asked))
    for rows, arrays in zip(asked, found, strict=True):
        expected = empty_arrays(source.fields, len(rows))
        source.fill(expected, rows)
        for name in expected:
            np.testing.assert_array_equal(arrays[name], expected[name], strict=True)
    # Two threads may have come for the same record at the same time, later ones have not.
    assert set(counting.read) == set(chosen)
    before = len(counting.read)
    read(chosen)
    assert len(counting.read) == before < 4 * len(chosen) + 1
    with pytest.raises(IndexError, match="record 4 is not among those to be kept"):
        read(np.array([2, 4]))
