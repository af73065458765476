"""Runs the exported model in this folder. It needs jax, flatbuffers and numpy, nothing else.

    python load.py            repeats a stored example and says how far its result is off
    python load.py ECG.npy    prints a CSV of the outputs, one row per recording

ECG.npy holds preprocessed recordings, float32 [b, 12, t] or [12, t]; model.json says how they are
preprocessed. In a program of one's own:

    from jax import export
    model = export.deserialize(bytearray(open("model.jaxexport", "rb").read()))
    outputs = model.call(ecg)
"""

import json
import pathlib
import sys

import numpy as np
from jax import export

FOLDER = pathlib.Path(__file__).resolve().parent


def load():
    """The model: a function of float32 [b, 12, t] that gives float32 [b, columns]."""
    content = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
    program = export.deserialize(bytearray((FOLDER / "model.jaxexport").read_bytes()))
    _, leads, samples = content["input"]["shape"]
    least = content["input"]["least_samples"]

    def model(ecg):
        ecg = np.asarray(ecg, np.float32)
        right = ecg.ndim == 3 and ecg.shape[1] == leads and ecg.shape[2] >= least
        if not right or (isinstance(samples, int) and ecg.shape[2] != samples):
            raise ValueError(
                f"the input has shape {ecg.shape}, expected {content['input']['shape']} "
                f"(recordings, leads, samples) with at least {least} samples"
            )
        return np.asarray(program.call(ecg)[content["output"]["name"]])

    return model


def main():
    model = load()
    columns = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))["output"]["columns"]
    if len(sys.argv) == 1:
        with np.load(FOLDER / "check.npz") as stored:
            expected, found = stored["output"], model(stored["ecg"])
        scale = np.maximum(np.abs(expected).max(axis=0), 1e-30)
        print(f"largest difference, relative: {(np.abs(found - expected) / scale).max():.1e}")
        return
    ecg = np.load(sys.argv[1])
    print(",".join('"' + column["name"].replace('"', '""') + '"' for column in columns))
    for row in model(ecg[None] if ecg.ndim == 2 else ecg):
        print(",".join(f"{value:.9g}" for value in row))


if __name__ == "__main__":
    main()
