"""Small WFDB records for tests, written without the reader under test."""

import os

import numpy as np

from mmcl_jax.data.signals.leads import LEADS

# I and II as waves of their own, the other limb leads from them.
_FROM_I_AND_II = ((1, 0), (0, 1), (-1, 1), (-0.5, -0.5), (1, -0.5), (-0.5, 1))


def ecg(seed, seconds=10.0, rate=500.0):
    """Beats with noise, [12, T] mV, leads I II III aVR aVL aVF V1-V6."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    beat = np.exp(-0.5 * ((time % 0.8 - 0.4) / 0.02) ** 2)
    sources = rng.uniform(0.3, 1.5, (8, 1)) * beat
    sources += 0.02 * rng.standard_normal((8, len(time)))
    return np.concatenate([np.array(_FROM_I_AND_II) @ sources[:2], sources[2:]])


def write_record(path, signal, *, rate=500, names=LEADS, unit="mV", gain=1000, comments=()):
    """Writes `path`.hea and `path`.dat in format 16 and returns the path of the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digital = np.round(signal * gain).astype("<i2")
    path.with_name(f"{path.name}.dat").write_bytes(digital.T.tobytes())
    lines = [f"{path.name} {len(digital)} {rate} {digital.shape[1]}"]
    for row, name in zip(digital, names, strict=True):
        total = int(row.sum(dtype=np.int64)) % 65536
        lines.append(f"{path.name}.dat 16 {gain}/{unit} 16 0 {row[0]} {total} 0 {name}")
    header = path.with_name(f"{path.name}.hea")
    text = "\n".join([*lines, *(f"# {text}" for text in comments)]) + "\n"
    header.write_bytes(os.fsencode(text))
    return header
