"""Weights that the parity numbers were made with: a function of each PyTorch key and its shape."""

import json
import math
import pathlib
import zlib

import numpy as np

from mmcl_jax.models import torch_weights


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


def vit(state: dict[str, np.ndarray]) -> dict:
    """Our parameters of an ECG encoder, and of its head where it has one."""
    modules = torch_weights.vit_modules(state)
    keys = torch_weights.vit_keys(torch_weights.count_blocks(state, "blocks"), modules)
    has_head = "head.weight" in state
    both = {"ecg_encoder": keys, "head": torch_weights.head_keys() if has_head else {}}
    return {tower: params["params"] for tower, params in _towers(state, both).items()}


def mae(state: dict[str, np.ndarray]) -> dict:
    """Our parameters of a masked autoencoder.

    Later versions of the published one add a similarity term, whose keys have no place here.
    """
    state = {k: v for k, v in state.items() if not k.startswith(("projector.", "predictor."))}
    depth, decoder_depth = (
        torch_weights.count_blocks(state, name) for name in ("blocks", "decoder_blocks")
    )
    encoder = torch_weights.vit_keys(depth, {"norm"})
    both = {"ecg_encoder": encoder, "decoder": torch_weights.decoder_keys(decoder_depth)}
    return {tower: params["params"] for tower, params in _towers(state, both).items()}


def resnet(state: dict[str, np.ndarray], prefix: str = "encoder_imaging.") -> dict:
    """Our variables of a ResNet."""
    keys = torch_weights.resnet_keys(torch_weights.resnet_depth(state, prefix), prefix)
    return _towers(state, {"cmr_encoder": keys})["cmr_encoder"]


def projector_params(state: dict[str, np.ndarray], prefix: str) -> dict:
    """Our parameters of a projector."""
    keys = torch_weights.projector_keys(prefix)
    return _towers(state, {"projector": keys})["projector"]["params"]


def _towers(state: dict[str, np.ndarray], keys: dict[str, dict]) -> dict[str, dict]:
    """Every key of `state` has a place, and every place a key."""
    known = [key for tower in keys.values() for key in tower]
    counters = {key for key in state if key.endswith(".num_batches_tracked")}
    assert sorted(known) == sorted(set(state) - counters)
    return {tower: torch_weights.to_ours(state, mine) for tower, mine in keys.items() if mine}


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
