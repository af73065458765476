"""Records that stay in memory once they have been read."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int

from mmcl_jax.data.record_source import RecordSource
from mmcl_jax.data.records import empty_arrays


class RecordCache:
    """Chosen records of a source, kept in memory once they have been read.

    Threads may share it. It is not made for worker processes: each would fill one of its own.

    Args:
        source: where the records are.
        rows: those that will be asked for.
    """

    def __init__(self, source: RecordSource, rows: Int[np.ndarray, " n"]):
        self.fields = source.fields
        self._source = source
        self._place = places(rows, len(source), absent=-1)
        self._arrays = empty_arrays(self.fields, len(rows))
        self._read = np.zeros(len(rows), bool)
        self._whole = np.ones(len(rows), bool)

    def fill(
        self, arrays: Mapping[str, np.ndarray], rows: Int[np.ndarray, " n"]
    ) -> Bool[np.ndarray, " n"]:
        """As `RecordSource.fill`. Raises IndexError for a row that was not chosen."""
        whole = np.ones(len(rows), bool)
        rows = rows[rows >= 0]
        found = self._place[rows]
        if (found < 0).any():
            raise IndexError(f"record {rows[found < 0][0]} is not among those to be kept")
        for place, row in zip(found, rows, strict=True):
            if not self._read[place]:
                # Two threads that come here at once write the same bytes.
                slot = {name: kept[place : place + 1] for name, kept in self._arrays.items()}
                self._whole[place] = self._source.fill(slot, row[None])[0]
                self._read[place] = True
        for name in self.fields:
            # Modes other than 'raise' write to `out` without a copy in between.
            np.take(self._arrays[name], found, axis=0, out=arrays[name][: len(rows)], mode="clip")
        whole[: len(rows)] = self._whole[found]
        return whole


def places(rows: Int[np.ndarray, " n"], size: int, *, absent: int) -> Int[np.ndarray, " size"]:
    """Where each of `size` records is among `rows`; `absent` for those that are not."""
    found = np.full(size, absent, np.int32)
    found[rows] = np.arange(len(rows))
    return found
