"""Finds our towers in a PyTorch state dict, with their sizes, and names them for one.

A tower is recognised by a key that only it has, whatever stands before it: the published ECG
encoders have nothing there, a Lightning checkpoint `encoder_ecg.`. Sizes follow from shapes, except
the number of heads and leads.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mmcl_jax.models import torch_weights
from mmcl_jax.models.torch_weights import Arrays, Keys, WeightsError


class Names(NamedTuple):
    """How a state dict calls a tower: what stands before its keys, and torchvision's own names."""

    prefix: str
    named: bool = False


class Found(NamedTuple):
    """A tower of a state dict: its settings for `models.build`, its keys and their prefix."""

    spec: dict[str, Any]
    keys: Keys
    names: Names


def find(
    state: Arrays, *, heads: int | None, decoder_heads: int | None, leads: int
) -> dict[str, Found]:
    """The towers of a state dict.

    Args:
        heads, decoder_heads: of encoder and decoder; None looks them up by width and depth.
        leads: of the recordings that the encoder reads.

    Raises:
        WeightsError: no tower, two of one kind, or one of unknown size.
    """
    towers = {}
    for tower, patterns in _MARKS.items():
        matches = {
            Names(match[1], named)
            for pattern, named in patterns
            for key in state
            if (match := re.match(pattern, key))
        }
        if len(matches) > 1:
            prefixes = ", ".join(repr(names.prefix) for names in sorted(matches))
            raise WeightsError(f"two of our {tower}: under {prefixes}; save the wanted one alone")
        for names in matches:
            options = {"heads": decoder_heads if tower == "decoder" else heads, "leads": leads}
            spec = _SPECS[tower](state, names, **options)
            towers[tower] = Found(spec, keys_of(tower, spec, names, state), names)
    if "decoder" in towers and "ecg_encoder" not in towers:
        raise WeightsError("a decoder of a masked autoencoder without its encoder")
    if not towers:
        start = ", ".join(sorted(state)[:4]) or "none"
        raise WeightsError(
            "holds none of the networks that are known here (ECG vision transformer, masked "
            f"autoencoder, ResNet 18 or 50, projection heads); its keys begin with {start}"
        )
    return towers


def keys_of(tower: str, spec: Mapping[str, Any], names: Names, state: Arrays) -> Keys:
    """PyTorch keys of a tower; `state` says which of its optional parts it has."""
    prefix = names.prefix
    if tower == "ecg_encoder":
        modules = torch_weights.vit_modules(state, prefix)
        if f"{prefix}decoder_pred.weight" in state:
            modules |= {"norm"}
        return torch_weights.vit_keys(spec["depth"], modules, prefix, tuple(spec["patch"]))
    if tower == "decoder":
        return torch_weights.decoder_keys(spec["depth"], prefix)
    if tower == "head":
        return torch_weights.head_keys(prefix)
    if tower == "cmr_encoder":
        return torch_weights.resnet_keys(spec["depth"], prefix, named=names.named)
    return torch_weights.projector_keys(prefix)


def usual_names(towers: Mapping[str, Any]) -> dict[str, Names]:
    """The names that the published code gives: a Lightning module's where there is a projector or
    more than one encoder, else those of the single encoder."""
    lightning = "ecg_encoder" in towers and "cmr_encoder" in towers
    lightning |= any(tower.endswith("_projector") for tower in towers)
    ecg = "encoder_ecg." if lightning else ""
    prefixes = {
        "ecg_encoder": ecg,
        "decoder": ecg,
        "head": ecg,
        "cmr_encoder": "encoder_imaging.",
        "ecg_projector": "projection_head_ecg.layers.",
        "cmr_projector": "projection_head_imaging.layers.",
    }
    if unknown := sorted(set(towers) - set(prefixes)):
        raise WeightsError(f"PyTorch has no name for the towers {', '.join(unknown)}")
    return {tower: Names(prefixes[tower]) for tower in towers}


# A key that only this network has, and whether torchvision gave the names.
_MARKS = {
    "ecg_encoder": ((r"(.*?)patch_embed\.proj\.weight$", False),),
    "decoder": ((r"(.*?)decoder_pred\.weight$", False),),
    "head": ((r"((?:encoder_ecg\.|module\.)?)head\.weight$", False),),
    "ecg_projector": ((r"(.*?projection_head_ecg\.layers\.)0\.weight$", False),),
    "cmr_encoder": (
        (r"(.*?)(?<![\w])4\.0\.conv1\.weight$", False),
        (r"(.*?)layer1\.0\.conv1\.weight$", True),
    ),
    "cmr_projector": ((r"(.*?projection_head_imaging\.layers\.)0\.weight$", False),),
}

# (width, depth) of the sizes that the published code names -> heads.
HEADS = {
    (256, 2): 8, (256, 3): 6, (192, 12): 3, (384, 3): 6, (384, 12): 6, (512, 4): 8, (576, 12): 8,
    (640, 5): 10, (640, 6): 8, (768, 8): 8, (768, 12): 12, (864, 6): 12, (1024, 24): 16,
    (1280, 32): 16,
}  # fmt: skip
DECODER_HEADS = {(128, 2): 4, (160, 1): 8, (256, 2): 8, (512, 8): 16}


def _vit_spec(state: Arrays, names: Names, *, heads: int | None, leads: int) -> dict[str, Any]:
    key = f"{names.prefix}patch_embed.proj.weight"
    shape = _shape(state, key, 4)
    width, channels, *patch = shape
    if channels != 1 or not all(shape):
        raise WeightsError(
            f"{key} has shape {shape}, expected [width, 1, leads, samples]: patches of an ECG"
        )
    table = f"{names.prefix}pos_embed"
    tokens = _shape(state, table, 3)[1] - 1
    rows, rest = divmod(leads, patch[0])
    if rest or not rows or tokens < rows or tokens % rows:
        raise WeightsError(
            f"{table} has {tokens} positions beside CLS, which are no whole number of patches "
            f"{tuple(patch)} for {leads} leads; give the number of leads with --leads"
        )
    depth = torch_weights.count_blocks(state, f"{names.prefix}blocks")
    modules = torch_weights.vit_modules(state, names.prefix)
    return {
        "name": "vit",
        "width": width,
        "depth": depth,
        "heads": _heads(heads, HEADS, width, depth, "--heads"),
        "mlp_ratio": _mlp_ratio(state, f"{names.prefix}blocks", width),
        "patch": tuple(patch),
        "leads": leads,
        "samples": tokens // rows * patch[1],
        # The published code pools with attention where it has the weights for it.
        "pool": "attention" if "attention_pool" in modules else "global",
    }


def _decoder_spec(state: Arrays, names: Names, *, heads: int | None, leads: int) -> dict[str, Any]:
    encoder = _vit_spec(state, names, heads=1, leads=leads)
    width = _shape(state, f"{names.prefix}decoder_embed.weight", 2)[0]
    blocks = f"{names.prefix}decoder_blocks"
    depth = torch_weights.count_blocks(state, blocks)
    return {
        "name": "mae_decoder",
        "width": width,
        "depth": depth,
        "heads": _heads(heads, DECODER_HEADS, width, depth, "--decoder-heads"),
        "mlp_ratio": _mlp_ratio(state, blocks, width),
        **{key: encoder[key] for key in ("patch", "leads", "samples")},
    }


def _resnet_spec(state: Arrays, names: Names, **_: Any) -> dict[str, Any]:
    depth = torch_weights.resnet_depth(state, names.prefix, named=names.named)
    stem = f"{names.prefix}{'conv1' if names.named else '0'}.weight"
    return {"name": "resnet", "depth": depth, "width": _shape(state, stem, 4)[0]}


def _projector_spec(state: Arrays, names: Names, **_: Any) -> dict[str, Any]:
    hidden = _shape(state, f"{names.prefix}0.weight", 2)[0]
    return {
        "name": "projector",
        "hidden": hidden,
        "out": _shape(state, f"{names.prefix}2.weight", 2)[0],
    }


def _head_spec(state: Arrays, names: Names, **_: Any) -> dict[str, Any]:
    return {"name": "head", "outputs": _shape(state, f"{names.prefix}head.weight", 2)[0]}


_SPECS = {
    "ecg_encoder": _vit_spec,
    "decoder": _decoder_spec,
    "head": _head_spec,
    "ecg_projector": _projector_spec,
    "cmr_encoder": _resnet_spec,
    "cmr_projector": _projector_spec,
}


def _shape(state: Arrays, key: str, axes: int) -> tuple[int, ...]:
    if key not in state:
        raise WeightsError(f"{key} is missing, which the size of the network follows from")
    shape = state[key].shape
    if len(shape) != axes:
        raise WeightsError(f"{key} has shape {shape}, expected {axes} axes")
    return shape


def _mlp_ratio(state: Arrays, blocks: str, width: int) -> float:
    hidden = _shape(state, f"{blocks}.0.mlp.fc1.weight", 2)[0]
    ratio = hidden / width
    # The network takes int(width * ratio).
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _heads(
    given: int | None, known: Mapping[tuple[int, int], int], width: int, depth: int, option: str
) -> int:
    heads = given or known.get((width, depth))
    if heads is None:
        raise WeightsError(
            f"the number of attention heads is not in the file, and width {width} with depth "
            f"{depth} is no size of the published code; give it with {option}"
        )
    if heads < 1 or width % heads:
        raise WeightsError(f"{option} {heads} does not divide the width {width}")
    return heads
