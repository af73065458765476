"""Weights of PyTorch checkpoints as our variables: exact, and strict in both directions.

Every function takes a state dict of numpy arrays under PyTorch keys and lists the keys that a
network of that depth has. Missing keys, keys left over and arrays with the wrong number of axes
are errors that name them. Keys that a caller knows and does not want are given as regular
expressions in `ignore`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmcl_jax.models.resnet import SIZES as RESNET_SIZES

Arrays = Mapping[str, np.ndarray]
Tree = dict[str, Any]
Target = tuple[str, Callable[[np.ndarray], np.ndarray]]  # our path, how the array changes

# The part of a masked autoencoder that only pre-training needs.
DECODER = (r"^mask_token$", r"^decoder_")
# The similarity term that later versions of the published masked autoencoder add.
SIAMESE = (r"^projector\.", r"^predictor\.")


class WeightsError(ValueError):
    """A state dict is not what the network needs."""


def vit(state: Arrays, *, ignore: Sequence[str] = ()) -> Tree:
    """Converts an ECG encoder; `norm`, `fc_norm`, `attention_pool` and `head` where they are.

    Returns:
        {'ecg_encoder': parameters of `vit.Model`}, and 'head' when the state dict has one.
    """
    return _convert("vit", state, _encoder_keys(state), ignore)


def mae(state: Arrays, *, ignore: Sequence[str] = SIAMESE) -> Tree:
    """Converts a masked autoencoder.

    Returns:
        {'ecg_encoder': parameters of `vit.Model`, 'decoder': of `mae_decoder.Model`}.
    """
    keys = {
        **_encoder_keys(state),
        **_norm("norm", "ecg_encoder/norm"),
        "mask_token": ("decoder/mask_token", _same),
        "decoder_pos_embed": ("decoder/pos_embed", _same),
        **_dense("decoder_embed", "decoder/embed"),
        **_blocks(state, "decoder_blocks", "decoder"),
        **_norm("decoder_norm", "decoder/norm"),
        **_dense("decoder_pred", "decoder/predict"),
    }
    return _convert("mae", state, keys, ignore)


def resnet(state: Arrays, *, prefix: str = "encoder_imaging.", ignore: Sequence[str] = ()) -> Tree:
    """Converts a ResNet without its last layer, saved as `Sequential` of the children.

    The children are 0 conv1, 1 bn1, 4 ... 7 layers 1 ... 4.

    Returns:
        {'params': ..., 'batch_stats': ...} of `resnet.Model`.
    """
    counts = tuple(_count(state, rf"^{re.escape(prefix)}{4 + i}\.(\d+)\.") for i in range(4))
    bottleneck = any(re.search(r"\.conv3\.weight$", key) for key in state)
    if (counts, bottleneck) not in RESNET_SIZES.values():
        raise WeightsError(
            f"resnet: {counts} blocks under '{prefix}4.' to '{prefix}7.' make none of the known "
            f"depths {sorted(RESNET_SIZES)}; is the prefix right?"
        )
    keys = {**_conv(f"{prefix}0", "conv1"), **_batch_norm(f"{prefix}1", "bn1")}
    for layer, blocks in enumerate(counts):
        for i in range(blocks):
            theirs, ours = f"{prefix}{4 + layer}.{i}", f"layer{layer + 1}_{i}"
            for part in range(1, 4 if bottleneck else 3):
                keys |= _conv(f"{theirs}.conv{part}", f"{ours}/conv{part}")
                keys |= _batch_norm(f"{theirs}.bn{part}", f"{ours}/bn{part}")
            if i == 0 and (layer or bottleneck):
                keys |= _conv(f"{theirs}.downsample.0", f"{ours}/downsample_conv")
                keys |= _batch_norm(f"{theirs}.downsample.1", f"{ours}/downsample_bn")
    return _convert("resnet", state, keys, ignore)


def projector(
    state: Arrays,
    *,
    prefix: str = "projection_head_imaging.layers.",
    ignore: Sequence[str] = (),
) -> Tree:
    """Converts a projector: linear layers 0 and 2 under `prefix`; parameters of its `Model`."""
    keys = {**_dense(f"{prefix}0", "fc1"), **_dense(f"{prefix}2", "fc2")}
    return _convert("projector", state, keys, ignore)


def _encoder_keys(state: Arrays) -> dict[str, Target]:
    optional = {
        **_norm("norm", "ecg_encoder/norm"),
        **_norm("fc_norm", "ecg_encoder/fc_norm"),
        "attention_pool.in_proj_weight": ("ecg_encoder/attention_pool/in_proj/kernel", _transpose),
        "attention_pool.in_proj_bias": ("ecg_encoder/attention_pool/in_proj/bias", _same),
        **_dense("attention_pool.out_proj", "ecg_encoder/attention_pool/out_proj"),
        **_dense("head", "head/fc"),
    }
    # An optional module is whole or absent.
    present = {key.split(".")[0] for key in state}
    return {
        "cls_token": ("ecg_encoder/cls_token", _same),
        "pos_embed": ("ecg_encoder/pos_embed", _same),
        "patch_embed.proj.weight": ("ecg_encoder/patch_embed/kernel", _patch_kernel),
        "patch_embed.proj.bias": ("ecg_encoder/patch_embed/bias", _same),
        **_blocks(state, "blocks", "ecg_encoder"),
        **{key: target for key, target in optional.items() if key.split(".")[0] in present},
    }


def _blocks(state: Arrays, theirs: str, ours: str) -> dict[str, Target]:
    keys = {}
    for i in range(max(_count(state, rf"^{theirs}\.(\d+)\."), 1)):
        keys |= _norm(f"{theirs}.{i}.norm1", f"{ours}/block_{i}/norm1")
        keys |= _dense(f"{theirs}.{i}.attn.qkv", f"{ours}/block_{i}/attention/qkv")
        keys |= _dense(f"{theirs}.{i}.attn.proj", f"{ours}/block_{i}/attention/proj")
        keys |= _norm(f"{theirs}.{i}.norm2", f"{ours}/block_{i}/norm2")
        keys |= _dense(f"{theirs}.{i}.mlp.fc1", f"{ours}/block_{i}/mlp/fc1")
        keys |= _dense(f"{theirs}.{i}.mlp.fc2", f"{ours}/block_{i}/mlp/fc2")
    return keys


def _dense(theirs: str, ours: str) -> dict[str, Target]:
    return {
        f"{theirs}.weight": (f"{ours}/kernel", _transpose),
        f"{theirs}.bias": (f"{ours}/bias", _same),
    }


def _norm(theirs: str, ours: str) -> dict[str, Target]:
    return {
        f"{theirs}.weight": (f"{ours}/scale", _same),
        f"{theirs}.bias": (f"{ours}/bias", _same),
    }


def _conv(theirs: str, ours: str) -> dict[str, Target]:
    return {f"{theirs}.weight": (f"params/{ours}/kernel", _conv_kernel)}


def _batch_norm(theirs: str, ours: str) -> dict[str, Target]:
    return {
        **_norm(theirs, f"params/{ours}"),
        f"{theirs}.running_mean": (f"batch_stats/{ours}/mean", _same),
        f"{theirs}.running_var": (f"batch_stats/{ours}/var", _same),
    }


def _count(state: Arrays, pattern: str) -> int:
    """One more than the largest number that `pattern` finds in the keys."""
    found = [re.search(pattern, key) for key in state]
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _convert(
    network: str, state: Arrays, keys: Mapping[str, Target], ignore: Sequence[str]
) -> Tree:
    ignore = (*ignore, r"\.num_batches_tracked$")
    missing = sorted(set(keys) - set(state))
    unused = sorted(
        key
        for key in set(state) - set(keys)
        if not any(re.search(pattern, key) for pattern in ignore)
    )
    if missing or unused:
        raise WeightsError(
            f"{network}: the state dict does not fit.\n  missing: {missing}\n  unused: {unused}\n"
            "Name keys that are not wanted in 'ignore'."
        )
    tree: Tree = {}
    for key, (path, change) in keys.items():
        try:
            array = change(np.asarray(state[key]))
        except ValueError as error:
            shape = np.shape(state[key])
            raise WeightsError(f"{network}: {key} has shape {shape}: {error}") from error
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _transpose(array: np.ndarray) -> np.ndarray:
    """[outputs, inputs] -> [inputs, outputs]."""
    _expect(array, 2, "[outputs, inputs]")
    return array.T


def _patch_kernel(array: np.ndarray) -> np.ndarray:
    """[D, 1, leads, samples] -> [leads * samples, D]."""
    _expect(array, 4, "[outputs, 1, leads, samples]")
    return array.reshape(len(array), -1).T


def _conv_kernel(array: np.ndarray) -> np.ndarray:
    """[outputs, inputs, height, width] -> [height, width, inputs, outputs]."""
    _expect(array, 4, "[outputs, inputs, height, width]")
    return array.transpose(2, 3, 1, 0)


def _expect(array: np.ndarray, axes: int, meaning: str) -> None:
    if array.ndim != axes:
        raise ValueError(f"expected {meaning}")
