"""Learning-rate schedules and optimisers of every stage (Section IV-C.2), composed from Optax.

`schedule` is the learning rate as a function of the step; `optimizer` adds what differs between
parameters: weight decay, layer-wise learning rates and frozen parameters, all chosen by path.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

Schedule = Callable[[int | Int[Array, ""]], Float[Array, ""]]

# What comes before the first block of the signal encoder.
_EMBEDDING = re.compile(r"^(?:ecg_encoder/)?(?:cls_token|pos_embed|patch_embed)(?:/|$)")
_BLOCK = re.compile(r"^(?:ecg_encoder/)?block_(\d+)/")


def scaled_rate(base: float, batch_size: int) -> float:
    """Learning rate for a base rate: base * batch / 4, the rule of the published code.

    The base rate 1e-5 of masked data modelling at batch 128 becomes 3.2e-4.
    """
    return base * batch_size / 4


def schedule(
    name: Literal["cosine", "cosine_per_epoch"] = "cosine",
    *,
    base: float | Float[Array, ""],
    steps: int | Float[Array, ""],
    warmup: int | Float[Array, ""],
    steps_per_epoch: int | None = None,
) -> Schedule:
    """Linear warm-up from 0 to `base`, then half a cosine down to 0.

    Args:
        name: 'cosine' changes the rate at every step. 'cosine_per_epoch' changes it once per
            epoch and reaches `base` one epoch early, as the published contrastive stage does: with
            30 warm-up epochs the rate is 0 in epoch 0, base / 29 in epoch 1 and `base` in epochs
            29 and 30.
        base: the highest learning rate; may be traced.
        steps: steps of the whole training. The rate stays 0 afterwards. With 'cosine' it and
            `warmup` may be traced, and are then not checked.
        warmup: steps of the warm-up, part of `steps`. 'cosine_per_epoch' rounds it to whole epochs.
        steps_per_epoch: needed by 'cosine_per_epoch' only.

    Returns:
        The learning rate as a function of the step, which may be traced.

    Raises:
        ValueError: unknown name, or lengths that do not fit each other.
    """
    if isinstance(steps, int) and not 0 <= warmup < steps:
        raise ValueError(
            f"schedule: warmup must be at least 0 and less than steps={steps}, got {warmup}"
        )
    if name == "cosine":
        return lambda step: base * _warmup_cosine(step, steps, warmup, warmup)
    if name != "cosine_per_epoch":
        raise ValueError(
            f"schedule: unknown name {name!r}, expected 'cosine' or 'cosine_per_epoch'"
        )
    if steps_per_epoch is None or steps_per_epoch < 1:
        raise ValueError(
            "schedule: 'cosine_per_epoch' needs steps_per_epoch of at least 1,"
            f" got {steps_per_epoch}"
        )
    epochs = -(-steps // steps_per_epoch)
    warmup_epochs = min(round(warmup / steps_per_epoch), epochs - 1)
    return lambda step: (
        base
        * _warmup_cosine(step // steps_per_epoch, epochs, warmup_epochs, max(warmup_epochs - 1, 1))
    )


def optimizer(
    params: PyTree,
    *,
    name: Literal["adamw", "adam_l2"] = "adamw",
    schedule: Schedule,
    weight_decay: float | Float[Array, ""],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    decay_exclude: Sequence[str] = (),
    frozen: Sequence[str] = (),
    layer_decay: float | Float[Array, ""] | None = None,
    depth: int | None = None,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled or coupled weight decay, as PyTorch computes it.

    'adamw' updates by -rate * (adam + weight_decay * p), where `rate` is the scheduled one times
    the factor of the layer; parameters with at most one dimension and biases are not decayed.
    'adam_l2' adds weight_decay * p to the gradient, before the moments; it decays every parameter
    that is not excluded.

    Args:
        params: parameters, or their shapes; only paths and shapes are read. A path joins the names
            with '/', for example 'ecg_encoder/block_0/attention/qkv/kernel'.
        name: 'adamw' or 'adam_l2'.
        schedule: learning rate as a function of the step; the first update is step 0.
        weight_decay: coefficient of the decay; may be traced, as `layer_decay` may.
        b1, b2, eps: constants of Adam; `eps` is added to the root of the second moment.
        decay_exclude: regular expressions; a parameter whose path contains a match is not decayed.
        frozen: regular expressions; a parameter whose path contains a match gets zero updates, no
            decay and no optimiser state, and does not count for `clip`.
        layer_decay: the learning rate of layer i is multiplied by layer_decay ** (depth + 1 - i).
            Layer 0 is the embedding (cls_token, pos_embed, patch_embed), layer i + 1 is block_i,
            and everything else is layer depth + 1, with factor 1.
        depth: blocks of the signal encoder; needed by `layer_decay` only.
        clip: highest global norm of the gradient; None for no clipping.

    Raises:
        ValueError: unknown name, a regular expression that matches no parameter, or a depth that
            does not fit the parameters.
    """
    if name not in ("adamw", "adam_l2"):
        raise ValueError(f"optimizer: unknown name {name!r}; expected 'adamw' or 'adam_l2'")
    shapes = {path: leaf.shape for path, leaf in _leaves(params)}
    excluded = _matching(decay_exclude, shapes, "decay_exclude")
    held = _matching(frozen, shapes, "frozen")
    if name == "adamw":
        excluded |= {path for path, shape in shapes.items() if _is_vector(path, shape)}
    factors = layer_factors(params, layer_decay, depth) if layer_decay is not None else None

    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    decay = optax.add_decayed_weights(weight_decay, lambda p: _map(lambda x: x not in excluded, p))
    parts = [adam, decay] if name == "adamw" else [decay, adam]
    if clip is not None:
        parts.insert(0, optax.clip_by_global_norm(clip))
    if factors is not None:
        parts.append(_scale_by_path(factors))
    trained = optax.chain(*parts, optax.scale_by_learning_rate(schedule))
    if not held:
        return trained
    return optax.partition(
        {"trained": trained, "frozen": optax.set_to_zero()},
        lambda p: _map(lambda path: "frozen" if path in held else "trained", p),
    )


def hold(params: PyTree, frozen: Sequence[str]) -> PyTree:
    """`params` without gradients for those whose path contains a match of `frozen`."""
    held = _matching(frozen, {path: leaf.shape for path, leaf in _leaves(params)}, "frozen")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.stop_gradient(leaf) if _name(path) in held else leaf, params
    )


def layer_factors(
    params: PyTree, layer_decay: float | Float[Array, ""], depth: int | None
) -> dict[str, float | Float[Array, ""]]:
    """Factor of the learning rate of every parameter, by path: see `layer_decay` of `optimizer`.

    Raises:
        ValueError: `depth` is missing or is not the number of blocks of the signal encoder.
    """
    paths = [path for path, _ in _leaves(params)]
    blocks = {path: int(found[1]) for path in paths if (found := _BLOCK.match(path))}
    if depth is None or set(blocks.values()) != set(range(depth)):
        raise ValueError(
            f"optimizer: layer_decay needs depth to be the number of blocks; depth is {depth}, the"
            f" parameters have blocks {sorted(set(blocks.values()))} (ecg_encoder/block_i/...)"
        )
    factors = {}
    for path in paths:
        layer = blocks[path] + 1 if path in blocks else depth + 1
        if _EMBEDDING.match(path):
            layer = 0
        factors[path] = layer_decay ** (depth + 1 - layer)
    return factors


def _warmup_cosine(
    time: int | Int[Array, ""],
    end: int | Float[Array, ""],
    start_of_cosine: int | Float[Array, ""],
    warmup: int | Float[Array, ""],
) -> Float[Array, ""]:
    """Share of the highest rate at `time`: time / warmup before the cosine, which ends in 0."""
    rise = time / jnp.maximum(warmup, 1)
    remaining = jnp.clip((end - time) / (end - start_of_cosine), 0, 1)
    # Equals (1 + cos(pi (1 - remaining))) / 2 and keeps its relative precision near the end.
    fall = jnp.sin(0.5 * jnp.pi * remaining) ** 2
    return jnp.where(time < start_of_cosine, rise, fall)


def _scale_by_path(factors: dict[str, float | Float[Array, ""]]) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, params: jax.tree_util.tree_map_with_path(
            lambda path, update: factors[_name(path)] * update, updates
        )
    )


def _matching(patterns: Sequence[str], shapes: dict[str, tuple[int, ...]], field: str) -> set[str]:
    """Paths that contain a match of any of the patterns, each of which must match one."""
    if isinstance(patterns, str):
        raise ValueError(
            f"optimizer: {field} must be a list of patterns, got the text {patterns!r}"
        )
    matched = set()
    for pattern in patterns:
        found = {path for path in shapes if re.search(pattern, path)}
        if not found:
            examples = ", ".join(list(shapes)[:3])
            raise ValueError(
                f"optimizer: {field} pattern {pattern!r} matches none of the {len(shapes)}"
                f" parameters (for example {examples}); correct or remove it"
            )
        matched |= found
    return matched


def _is_vector(path: str, shape: tuple[int, ...]) -> bool:
    return len(shape) <= 1 or path.rpartition("/")[2] == "bias"


def _leaves(params: PyTree) -> list[tuple[str, Array]]:
    return [(_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]


def _map(function: Callable, params: PyTree) -> PyTree:
    """Tree of `function(path)` in the structure of `params`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: function(_name(path)), params)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
