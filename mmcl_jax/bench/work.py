"""FLOPs and bytes of a step, of what the model computes and not of what XLA makes of it.

*Model FLOPs* are 2 per multiplication and addition in the products and convolutions of the forward
pass, times 3 for a training step: the backward pass has two products, as large, for each of them.
What is computed again to save memory does not count, nor do norms, activations, augmentation and
the optimiser.

*Minimal bytes* are what a step has to move even if everything between products is fused: the state
(parameters, moments, statistics) is read and written once, the batch is read once, and each product
reads its operands and writes its result once, in the dtype of the computation; the backward pass
does so twice, with arrays of the same sizes. The logits of attention do not count: a fused kernel
keeps them on chip.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Product:
    """One product or convolution of a forward pass.

    Attributes:
        module: path of the module that computes it, such as 'ecg_encoder/block_0/mlp/fc1'.
        shape: operands and result as text.
        times: how often it is computed (the trips of the loops around it).
        flops: of all of them.
        elements: read and written by all of them.
    """

    module: str
    shape: str
    times: int
    flops: float
    elements: float


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of one step over a batch.

    Attributes:
        flops: model FLOPs.
        bytes: minimal bytes.
        products: of the forward pass.
        passes: 3 for a training step, 1 for a forward pass.
    """

    flops: float
    bytes: float
    products: tuple[Product, ...]
    passes: int

    def by_module(self) -> list[tuple[str, str, int, float]]:
        """(module, shape, times, FLOPs of the step), most first; numbered blocks count as one."""
        totals: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0, 0.0])
        for product in self.products:
            entry = totals[merge_numbers(product.module), product.shape]
            entry[0] += product.times
            entry[1] += product.flops * self.passes
        rows = [(module, shape, int(n), f) for (module, shape), (n, f) in totals.items()]
        return sorted(rows, key=lambda row: -row[3])


def of_step(forward, arguments: tuple, *, state: Any, batch: Any, dtype: str, training: bool):
    """Work of a step.

    Args:
        forward: the model; traced, not run, so `arguments` may be shapes. It should compute in
            float32: its products are then visible on every backend, where in half precision a GPU
            has one operation for attention as a whole.
        arguments: of `forward`.
        state: what a step reads and writes: a tree of arrays or shapes.
        batch: what it reads.
        dtype: of the computation, for the bytes.
        training: whether there is a backward pass.

    Returns:
        A `Work`.
    """
    products = tuple(find_products(jax.make_jaxpr(forward)(*arguments).jaxpr))
    passes = 3 if training else 1
    moved = passes * sum(product.elements for product in products) * jnp.dtype(dtype).itemsize
    # Without training nothing is written back.
    moved += tree_bytes(state) * (2 if training else 1) + tree_bytes(batch)
    return Work(passes * sum(p.flops for p in products), moved, products, passes)


def tree_bytes(tree: Any) -> int:
    """Size in bytes of all arrays, or shapes, of a tree."""
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def merge_numbers(module: str) -> str:
    """'block_0' and 'block_1' become 'block_*', 'layer2_3' becomes 'layer2_*'."""
    return re.sub(r"_\d+(?=/|$)", "_*", module)


def find_products(jaxpr, times: int = 1, scope: str = "") -> Iterator[Product]:
    """Every product and convolution of a jaxpr, loops and calls within it included.

    Of a conditional the branch with the most FLOPs counts; a loop whose length is not known before
    it runs counts once.
    """
    scores = 0  # elements of attention logits that await their second product
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        here = "/".join(part for part in (scope, str(equation.source_info.name_stack)) if part)
        if name in ("dot_general", "conv_general_dilated"):
            left, right = (v.aval for v in equation.invars[:2])
            out = equation.outvars[0].aval
            elements = left.size + right.size + out.size
            if name == "dot_general" and equation.params["dimension_numbers"][1][0]:
                # With batch dimensions: query times key, then weights times value.
                waiting = scores and scores in (left.size, right.size)
                elements -= scores if waiting else out.size
                scores = 0 if waiting else out.size
            yield Product(
                module=_module(here),
                shape=f"{_text(left)} x {_text(right)} -> {_text(out)}",
                times=times,
                flops=float(times) * _flops(equation),
                elements=float(times) * elements,
            )
            continue
        inner = list(_inner(equation))
        if name == "cond":
            branches = [list(find_products(b, times, here)) for b in inner]
            yield from max(branches, key=lambda found: sum(p.flops for p in found), default=[])
            continue
        trips = equation.params["length"] if name == "scan" else 1
        if name == "shard_map":
            # Its body sees the part of one device.
            trips = equation.params["mesh"].size
        for body in inner:
            yield from find_products(body, times * trips, here)


def _flops(equation) -> float:
    left, right = (v.aval for v in equation.invars[:2])
    out = equation.outvars[0].aval
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = numbers
        return 2.0 * out.size * math.prod(left.shape[axis] for axis in contracted)
    outputs = right.shape[numbers.rhs_spec[0]]
    return 2.0 * out.size * right.size / outputs


def _inner(equation) -> Iterator[Any]:
    """The jaxprs that an equation calls."""
    for value in equation.params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def _module(scope: str) -> str:
    """The modules of a name stack, without the objective and without transformations."""
    parts = [part for part in scope.split("/") if re.fullmatch(r"[a-z]\w*", part)]
    hidden = ("jit", "while", "body", "checkpoint", "closed_call", "cond", "scan", "remat")
    return "/".join(part for part in parts if part not in hidden) or "objective"


def _text(aval) -> str:
    return "[" + ",".join(map(str, aval.shape)) + "]"
