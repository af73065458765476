"""Towers from PyTorch files and back: what is read, checked, converted, and reported."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from mmcl_jax import models
from mmcl_jax.models import torch_weights
from mmcl_jax.models.torch_weights import WeightsError
from mmcl_jax.port import safetensors_file, torch_file, torch_layouts, torch_writer
from mmcl_jax.port.ported import Towers
from mmcl_jax.port.torch_layouts import Found, Names

SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclasses.dataclass
class Notes:
    """What became of each key of a file.

    Attributes:
        used: keys that are weights of a tower.
        counters: `num_batches_tracked`, which no computation uses.
        unknown: keys that belong to no tower here, with their shapes.
        missing: keys that a tower lacks, which was allowed.
        left: entries beside the weights, such as the optimiser.
        foreign: names of classes whose objects were not read.
        remarks: what else is worth knowing.
    """

    used: list[str] = dataclasses.field(default_factory=list)
    counters: list[str] = dataclasses.field(default_factory=list)
    unknown: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)
    left: list[str] = dataclasses.field(default_factory=list)
    foreign: list[str] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)


def load(
    path: pathlib.Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    leads: int | None = None,
    allow_missing: Sequence[str] = (),
) -> tuple[Towers, Notes]:
    """The towers of a PyTorch or safetensors file.

    Args:
        heads, decoder_heads: of encoder and decoder; None looks them up by width and depth.
        leads: of the recordings; None takes those that a training checkpoint says, else 12.
        allow_missing: regular expressions of PyTorch keys that may be absent.

    Raises:
        OSError, ValueError: the file cannot be read, holds no network that is known here, lacks a
            key, or has arrays of other shapes than the network.
    """
    notes = Notes()
    stored = path.suffix != ".safetensors"
    content = torch_file.load(path, foreign=True) if stored else safetensors_file.load(path)
    try:
        state, wrapper, notes.left = _unwrap(content)
        notes.foreign = sorted(torch_file.foreign(content))
        found = torch_layouts.find(
            state,
            heads=heads,
            decoder_heads=decoder_heads,
            leads=leads or _said_leads(content) or 12,
        )
        towers = _convert(state, found, allow_missing, notes)
    except WeightsError as error:
        raise ValueError(f"{path}: {error}") from None
    torch = {
        "wrapper": wrapper if stored else None,
        "names": {tower: list(entry.names) for tower, entry in found.items()},
        "counters": {key: int(state[key]) for key in notes.counters},
        "dtypes": {
            key: state[key].dtype.name for key in notes.used if state[key].dtype != np.float32
        },
    }
    for name in sorted(set(torch["dtypes"].values())):
        count = sum(name == dtype for dtype in torch["dtypes"].values())
        exact = "rounded" if name == "float64" else "exact"
        notes.remarks.append(f"{count} keys converted from {name} to float32 ({exact})")
    return dataclasses.replace(towers, origin=str(path), torch=torch), notes


def save(path: pathlib.Path, towers: Towers, *, dtype: str = "keep") -> dict[str, np.ndarray]:
    """Writes towers under PyTorch's keys and returns what was written.

    Args:
        dtype: of `DTYPES`, or `keep` for the one of the file that they were read from.

    Raises:
        ValueError: PyTorch has no name for a tower, or a number does not fit `dtype`.
    """
    state, wrapper = _state(towers)
    kept = towers.torch.get("dtypes", {})
    for key, array in state.items():
        if np.issubdtype(array.dtype, np.integer):
            continue
        name = kept.get(key, "float32") if dtype == "keep" else dtype
        # Anything but the float32 of the computation is made from it.
        with np.errstate(over="ignore"):
            state[key] = array.astype(np.dtype(DTYPES.get(name, name)))
        if not np.isfinite(state[key]).all() and np.isfinite(array).all():
            raise ValueError(f"{key} has numbers that do not fit {name}; choose another --dtype")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place: a file that is there is whole.
    temporary = path.with_name(f".{path.name}.part")
    try:
        if path.suffix == ".safetensors":
            safetensors_file.save(temporary, state)
        else:
            torch_writer.save(temporary, {wrapper: state} if wrapper else state)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return state


def _unwrap(content: Any) -> tuple[dict[str, np.ndarray], str, list[str]]:
    """The state dict within what a training script saved, the name it stands under, the rest."""
    if not isinstance(content, dict):
        raise WeightsError(f"expected a state dict, found {type(content).__name__}")
    names = ("model", "state_dict", "model_state_dict")
    wrapper = next((name for name in names if isinstance(content.get(name), dict)), "")
    inner = content[wrapper] if wrapper else content
    state = {k: v for k, v in inner.items() if isinstance(k, str) and isinstance(v, np.ndarray)}
    left = [str(key) for key in content if wrapper and key != wrapper]
    return state, wrapper, left + [str(key) for key in inner if key not in state]


def _said_leads(content: Mapping[str, Any]) -> int | None:
    """Leads by the arguments of the training, where the checkpoint has them."""
    for name in ("args", "hyper_parameters"):
        settings = content.get(name)
        size = settings.get("input_size") if isinstance(settings, dict) else None
        if isinstance(size, list | tuple) and len(size) == 3 and all(type(n) is int for n in size):
            return size[1]
    return None


def _convert(
    state: Mapping[str, np.ndarray],
    found: Mapping[str, Found],
    allow_missing: Sequence[str],
    notes: Notes,
) -> Towers:
    wanted = {key for entry in found.values() for key in entry.keys}
    missing = sorted(wanted - set(state))
    notes.missing = [k for k in missing if any(re.search(p, k) for p in allow_missing)]
    if refused := [key for key in missing if key not in notes.missing]:
        more = f" and {len(refused) - 8} more" if len(refused) > 8 else ""
        raise WeightsError(
            f"lacks {len(refused)} of {len(wanted)} keys: {', '.join(refused[:8])}{more}. "
            "--allow-missing PATTERN lets keys start fresh"
        )
    notes.used = [key for key in state if key in wanted]
    prefixes = tuple(entry.names.prefix for entry in found.values())
    notes.counters = [
        key
        for key in state
        if key.endswith(".num_batches_tracked") and key.startswith(prefixes)
        and key.replace("num_batches_tracked", "running_mean") in wanted
    ]  # fmt: skip
    known = {*notes.used, *notes.counters}
    notes.unknown = {key: array.shape for key, array in state.items() if key not in known}
    numbers = {}
    for key in notes.used:
        # ml_dtypes' types are no sub-types of NumPy's.
        if not jnp.issubdtype(state[key].dtype, jnp.floating):
            raise WeightsError(f"{key} has numbers of type {state[key].dtype}, expected floating")
        numbers[key] = state[key].astype(np.float32)
        if not np.isfinite(numbers[key]).all():
            notes.remarks.append(f"{key} has numbers that are not finite")
    params, extra = {}, {}
    for tower, entry in found.items():
        tree = torch_weights.to_ours(numbers, entry.keys)
        params[tower] = tree.pop("params", {})
        for collection, leaves in tree.items():
            extra.setdefault(collection, {})[tower] = leaves
    towers = Towers(params, extra, {tower: entry.spec for tower, entry in found.items()}, "")
    _check_shapes(numbers, towers, found)
    return towers


def _check_shapes(
    state: Mapping[str, np.ndarray], towers: Towers, found: Mapping[str, Found]
) -> None:
    """Compares every array with what the network of that size has."""
    for tower, entry in found.items():
        expected = _shapes(tower, towers)
        as_torch = torch_weights.to_torch(
            # An array of the shape that takes no memory.
            jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), expected),
            entry.keys,
        )
        for key, array in as_torch.items():
            if key in state and state[key].shape != array.shape:
                raise WeightsError(
                    f"{key} has shape {state[key].shape}, expected {array.shape} in a "
                    f"{_described(entry.spec)}"
                )


def _shapes(tower: str, towers: Towers) -> dict[str, Any]:
    """Variables of a network as shapes, with every optional part."""
    spec, specs = towers.models[tower], towers.models
    ecg = specs.get("ecg_encoder", {})

    def variables(changes: Mapping[str, Any], *inputs: tuple[int, ...], dtypes=()) -> Any:
        network = models.build({**spec, **changes})
        dtypes = dtypes or (jnp.float32,) * len(inputs)
        arguments = [jax.ShapeDtypeStruct(s, d) for s, d in zip(inputs, dtypes, strict=True)]
        return jax.eval_shape(network.init, jax.random.key(0), *arguments)

    if tower == "ecg_encoder":
        recording = (1, spec["leads"], spec["samples"])
        tokens, pooled = ({"pool": pool} for pool in ("none", "attention"))
        return {
            "params": {
                **variables(tokens, recording)["params"],
                **variables(pooled, recording)["params"],
            }
        }
    if tower == "decoder":
        count = towers.params["ecg_encoder"]["pos_embed"].shape[1] - 1
        shapes = ((1, 1 + count, ecg["width"]), (1, count))
        return variables({}, *shapes, dtypes=(jnp.float32, jnp.int32))
    if tower == "cmr_encoder":
        return variables({}, (1, 64, 64, 3))
    return variables({}, (1, _features(tower, towers)))


def _features(tower: str, towers: Towers) -> int:
    """Width of what a projector or a head reads."""
    encoder = towers.models.get("cmr_encoder" if tower == "cmr_projector" else "ecg_encoder")
    if encoder is None:
        return towers.params[tower]["fc1"]["kernel"].shape[0]
    if encoder["name"] == "resnet":
        return encoder["width"] * 8 * (4 if encoder["depth"] >= 50 else 1)
    return encoder["width"]


def _described(spec: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{key} {value}" for key, value in spec.items() if key != "name")
    return f"{spec['name']} with {sizes}"


def _state(towers: Towers) -> tuple[dict[str, np.ndarray], str]:
    """Arrays under PyTorch's keys, and the name that the state dict stands under in a file."""
    names, wrapper = torch_layouts.usual_names(towers.models), None
    if towers.torch:
        names = {tower: Names(*entry) for tower, entry in towers.torch["names"].items()}
        wrapper = towers.torch["wrapper"]
    if wrapper is None:
        wrapper = "state_dict" if any(entry.prefix for entry in names.values()) else "model"
        wrapper = "" if any(entry.named for entry in names.values()) else wrapper
    state: dict[str, np.ndarray] = {}
    for tower, spec in towers.models.items():
        prefix = names[tower].prefix
        # The parts of an encoder are called alike on both sides.
        parts = {f"{prefix}{part}": None for part in towers.params[tower]}
        keys = torch_layouts.keys_of(tower, spec, names[tower], parts)
        tree = {"params": towers.params[tower]}
        tree |= {kind: trees[tower] for kind, trees in towers.extra.items() if tower in trees}
        state |= torch_weights.to_torch(tree, keys)
    counters = towers.torch.get("counters", {})
    for key in [key for key in state if key.endswith(".running_mean")]:
        counter = key.replace("running_mean", "num_batches_tracked")
        if counter in counters or not towers.torch:
            state[counter] = np.asarray(counters.get(counter, towers.step), np.int64)
    return state, wrapper
