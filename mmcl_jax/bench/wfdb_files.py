"""Writes WFDB records, so that reading them can be measured."""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mmcl_jax.data.signals.leads import LEADS


def write(
    folder: pathlib.Path, signals: Sequence[Float[np.ndarray, "12 T"]], rate: int
) -> list[pathlib.Path]:
    """One record per signal in mV, in format 16. Returns the paths of the headers."""
    headers = []
    for number, signal in enumerate(signals):
        name = f"r{rate}_{number}"
        digital = (1000 * signal).round().astype("<i2")
        (folder / f"{name}.dat").write_bytes(digital.T.tobytes())
        sums = digital.sum(axis=1, dtype="i8") % 65536
        lines = [f"{name} {len(LEADS)} {rate} {digital.shape[1]}"]
        lines += [
            f"{name}.dat 16 1000/mV 16 0 {row[0]} {total} 0 {lead}"
            for row, total, lead in zip(digital, sums, LEADS, strict=True)
        ]
        headers.append(folder / f"{name}.hea")
        headers[-1].write_text("\n".join(lines) + "\n")
    return headers
