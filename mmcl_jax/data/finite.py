"""Which records of a batch are no numbers: looked at when a loss is none."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from mmcl_jax.data.cohort import Cohort
from mmcl_jax.data.record_source import CorruptRecord


def describe(
    cohort: Cohort,
    split: str,
    rows: Int[np.ndarray, " n"],
    *,
    fields: Sequence[str],
    labels: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Record by record, in the order of `rows`, read from the files.

    Args:
        cohort, split, rows: which records.
        fields: modalities that the stage reads.
        labels: names of the labels that it predicts.

    Returns:
        row, record and subject of each, and `not_finite`: its modalities and labels that hold NaN
        or infinity (a missing label is none), or 'damaged' where it cannot be read.
    """
    table, source = cohort.table(split), cohort.source(split, tuple(fields))
    columns = {name: cohort.labels.index(*cohort.target(name)) for name in labels}
    found = []
    for row in rows.tolist():
        try:
            record = source[row]
            bad = [name for name, values in record.items() if not np.isfinite(values).all()]
        except CorruptRecord:
            bad = ["damaged"]
        values = table["labels"][row]
        bad += [name for name, column in columns.items() if np.isinf(values[column])]
        names = {name: str(table[name][row]) for name in ("record", "subject")}
        found.append({"row": row, **names, "not_finite": bad})
    return found
