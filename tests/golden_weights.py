"""Weights that the parity numbers were made with: a function of each PyTorch key and its shape."""

import json
import math
import pathlib
import zlib

import numpy as np


def state_dict(golden: pathlib.Path, network: str) -> dict[str, np.ndarray]:
    """Seeded weights of a network of `checkpoint_shapes.json`, under its PyTorch keys.

    Args:
        golden: folder of the parity numbers.
        network: 'signal_encoder_attention_pool', 'masked_autoencoder' or 'image_encoder'.
    """
    shapes = json.loads((golden / "checkpoint_shapes.json").read_text())[network]
    return {key: _weight(golden, key, tuple(shape)) for key, shape in shapes.items()}


def projector(prefix: str, inputs: int, hidden: int, out: int) -> dict[str, np.ndarray]:
    """Seeded weights of a two-layer projector."""
    return {
        f"{prefix}{key}": seeded(f"{prefix}{key}", shape)
        for key, shape in (
            ("0.weight", (hidden, inputs)),
            ("0.bias", (hidden,)),
            ("2.weight", (out, hidden)),
            ("2.bias", (out,)),
        )
    }


def seeded(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers seeded by the key, scaled by what the key stands for."""
    n = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    fan = math.prod(shape[1:])
    if key.endswith("running_var"):
        n = 1 + 0.1 * np.abs(n)
    elif key.endswith("running_mean"):
        n = 0.1 * n
    elif len(shape) <= 1:
        n = 1 + 0.1 * n if key.endswith("weight") else 0.05 * n
    elif len(shape) == 4 and "imaging" in key:
        n = n * np.sqrt(2 / fan)
    elif len(shape) == 3:
        n = 0.02 * n
    else:
        n = n * np.sqrt(1 / fan)
    return np.asarray(n, np.float32)


def relative_error(ours: np.ndarray, golden: np.ndarray) -> float:
    """||ours - golden|| / ||golden||, in float64."""
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    assert ours.shape == golden.shape
    return float(np.linalg.norm(ours - golden) / np.linalg.norm(golden))


def _weight(golden: pathlib.Path, key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith("pos_embed"):
        with np.load(golden / "position_embedding.npz") as tables:
            return tables[f"embed_{shape[-1]}"][None]
    return seeded(key, shape)
