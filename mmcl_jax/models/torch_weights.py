"""Weights of PyTorch checkpoints as our variables and back, exactly.

The `..._keys` functions list the keys that PyTorch gives to a network of some size, each with the
place of its array among our variables ("params/block_0/norm1/scale") and how the array changes on
the way. `to_ours` and `to_torch` follow such a list in either direction.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mmcl_jax.models.resnet import SIZES as RESNET_SIZES

Arrays = Mapping[str, np.ndarray]
Tree = dict[str, Any]


class Change(NamedTuple):
    """How an array changes on the way to us, and back."""

    ours: Callable[[np.ndarray], np.ndarray]
    torch: Callable[[np.ndarray], np.ndarray]


# PyTorch key -> (path among our variables, change).
Keys = dict[str, tuple[str, Change]]

# Of an ECG encoder: present or not, but whole.
OPTIONAL = ("norm", "fc_norm", "attention_pool")


class WeightsError(ValueError):
    """A state dict is not what the network needs."""


def vit_keys(
    depth: int,
    modules: Iterable[str] = OPTIONAL,
    prefix: str = "",
    patch: tuple[int, int] = (1, 100),
) -> Keys:
    """Keys of an ECG encoder.

    Args:
        modules: those of `OPTIONAL` that it has.
        patch: leads and samples of a patch, needed on the way back.
    """
    optional = {
        "norm": _norm("norm", "norm"),
        "fc_norm": _norm("fc_norm", "fc_norm"),
        "attention_pool": {
            "attention_pool.in_proj_weight": ("attention_pool/in_proj/kernel", _TRANSPOSE),
            "attention_pool.in_proj_bias": ("attention_pool/in_proj/bias", _SAME),
            **_dense("attention_pool.out_proj", "attention_pool/out_proj"),
        },
    }
    keys = {
        "cls_token": ("cls_token", _SAME),
        "pos_embed": ("pos_embed", _SAME),
        "patch_embed.proj.weight": ("patch_embed/kernel", _patch_kernel(patch)),
        "patch_embed.proj.bias": ("patch_embed/bias", _SAME),
        **_blocks(depth, "blocks"),
    }
    for name in OPTIONAL:
        if name in modules:
            keys |= optional[name]
    return _parameters(prefix, keys)


def decoder_keys(depth: int, prefix: str = "") -> Keys:
    """Keys of the decoder of a masked autoencoder."""
    keys = {
        "mask_token": ("mask_token", _SAME),
        "decoder_pos_embed": ("pos_embed", _SAME),
        **_dense("decoder_embed", "embed"),
        **_blocks(depth, "decoder_blocks"),
        **_norm("decoder_norm", "norm"),
        **_dense("decoder_pred", "predict"),
    }
    return _parameters(prefix, keys)


def head_keys(prefix: str = "") -> Keys:
    """Keys of the linear head of a downstream task."""
    return _parameters(prefix, _dense("head", "fc"))


def resnet_keys(depth: int, prefix: str = "encoder_imaging.", *, named: bool = False) -> Keys:
    """Keys of a ResNet without its last layer.

    Args:
        named: torchvision's names (conv1, bn1, layer1 ... 4) in place of the numbers that a
            `Sequential` of the children gives them (0, 1, 4 ... 7).
    """
    counts, bottleneck = RESNET_SIZES[depth]
    conv1, bn1, *layers = _resnet_children(named)
    keys = {**_conv(conv1, "conv1"), **_batch_norm(bn1, "bn1")}
    for layer, blocks in enumerate(counts):
        for i in range(blocks):
            theirs, ours = f"{layers[layer]}.{i}", f"layer{layer + 1}_{i}"
            for part in range(1, 4 if bottleneck else 3):
                keys |= _conv(f"{theirs}.conv{part}", f"{ours}/conv{part}")
                keys |= _batch_norm(f"{theirs}.bn{part}", f"{ours}/bn{part}")
            if i == 0 and (layer or bottleneck):
                keys |= _conv(f"{theirs}.downsample.0", f"{ours}/downsample_conv")
                keys |= _batch_norm(f"{theirs}.downsample.1", f"{ours}/downsample_bn")
    return {f"{prefix}{key}": target for key, target in keys.items()}


def projector_keys(prefix: str) -> Keys:
    """Keys of a projector: linear layers 0 and 2 under `prefix`."""
    return _parameters(prefix, {**_dense("0", "fc1"), **_dense("2", "fc2")})


def to_ours(state: Arrays, keys: Keys) -> Tree:
    """Our variables from the arrays of `state` that `keys` names; absent ones stay absent.

    Raises:
        WeightsError: an array with the wrong number of axes.
    """
    tree: Tree = {}
    for key, (path, change) in keys.items():
        if key not in state:
            continue
        try:
            array = change.ours(np.asarray(state[key]))
        except ValueError as error:
            shape = np.shape(state[key])
            raise WeightsError(f"{key} has shape {shape}: {error}") from error
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree


def to_torch(tree: Mapping[str, Any], keys: Keys) -> dict[str, np.ndarray]:
    """The arrays of our variables under PyTorch keys; leaves that `tree` lacks stay absent."""
    state = {}
    for key, (path, change) in keys.items():
        node: Any = tree
        for name in path.split("/"):
            node = node.get(name) if isinstance(node, Mapping) else None
        if node is not None:
            state[key] = change.torch(np.asarray(node))
    return state


def vit_modules(state: Iterable[str], prefix: str = "") -> set[str]:
    """Which of `OPTIONAL` an encoder under `prefix` has, whole or in part."""
    present = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    return present & set(OPTIONAL)


def count_blocks(state: Iterable[str], name: str) -> int:
    """Blocks called `name.0`, `name.1`, ..., at least one, so that what is missing has a name."""
    return max(_count(state, rf"^{re.escape(name)}\.(\d+)\."), 1)


def resnet_depth(state: Iterable[str], prefix: str, *, named: bool = False) -> int:
    """The depth that the names of the blocks say.

    Raises:
        WeightsError: they are none of the known networks.
    """
    layers = [f"{prefix}{layer}" for layer in _resnet_children(named)[2:]]
    counts = tuple(_count(state, rf"^{re.escape(layer)}\.(\d+)\.") for layer in layers)
    bottleneck = any(re.search(r"\.conv3\.weight$", key) for key in state)
    for depth, size in RESNET_SIZES.items():
        if size == (counts, bottleneck):
            return depth
    raise WeightsError(
        f"resnet: {counts} blocks under '{layers[0]}.' to '{layers[-1]}.' make none of the known "
        f"depths {sorted(RESNET_SIZES)}; is the prefix right?"
    )


def _resnet_children(named: bool) -> tuple[str, ...]:
    if named:
        return ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    return ("0", "1", "4", "5", "6", "7")


def _parameters(prefix: str, keys: Keys) -> Keys:
    return {f"{prefix}{key}": (f"params/{path}", change) for key, (path, change) in keys.items()}


def _blocks(depth: int, theirs: str) -> Keys:
    keys = {}
    for i in range(depth):
        keys |= _norm(f"{theirs}.{i}.norm1", f"block_{i}/norm1")
        keys |= _dense(f"{theirs}.{i}.attn.qkv", f"block_{i}/attention/qkv")
        keys |= _dense(f"{theirs}.{i}.attn.proj", f"block_{i}/attention/proj")
        keys |= _norm(f"{theirs}.{i}.norm2", f"block_{i}/norm2")
        keys |= _dense(f"{theirs}.{i}.mlp.fc1", f"block_{i}/mlp/fc1")
        keys |= _dense(f"{theirs}.{i}.mlp.fc2", f"block_{i}/mlp/fc2")
    return keys


def _dense(theirs: str, ours: str) -> Keys:
    return {
        f"{theirs}.weight": (f"{ours}/kernel", _TRANSPOSE),
        f"{theirs}.bias": (f"{ours}/bias", _SAME),
    }


def _norm(theirs: str, ours: str) -> Keys:
    return {
        f"{theirs}.weight": (f"{ours}/scale", _SAME),
        f"{theirs}.bias": (f"{ours}/bias", _SAME),
    }


def _conv(theirs: str, ours: str) -> Keys:
    return {f"{theirs}.weight": (f"params/{ours}/kernel", _CONV_KERNEL)}


def _batch_norm(theirs: str, ours: str) -> Keys:
    return {
        **_norm(theirs, f"params/{ours}"),
        f"{theirs}.running_mean": (f"batch_stats/{ours}/mean", _SAME),
        f"{theirs}.running_var": (f"batch_stats/{ours}/var", _SAME),
    }


def _count(state: Iterable[str], pattern: str) -> int:
    """One more than the largest number that `pattern` finds in the keys."""
    found = [re.search(pattern, key) for key in state]
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _patch_kernel(patch: tuple[int, int]) -> Change:
    """[D, 1, leads, samples] <-> [leads * samples, D]."""
    meaning = "[outputs, 1, leads, samples]"
    return Change(
        lambda array: _expect(array, 4, meaning).reshape(len(array), -1).T,
        lambda array: array.T.reshape(-1, 1, *patch),
    )


def _expect(array: np.ndarray, axes: int, meaning: str) -> np.ndarray:
    if array.ndim != axes:
        raise ValueError(f"expected {meaning}")
    return array


_SAME = Change(lambda array: array, lambda array: array)
# [outputs, inputs] <-> [inputs, outputs]
_TRANSPOSE = Change(lambda array: _expect(array, 2, "[outputs, inputs]").T, np.transpose)
# [outputs, inputs, height, width] <-> [height, width, inputs, outputs]
_CONV_KERNEL = Change(
    lambda array: _expect(array, 4, "[outputs, inputs, height, width]").transpose(2, 3, 1, 0),
    lambda array: array.transpose(3, 2, 0, 1),
)
