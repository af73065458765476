"""Where arrays live: the batch is split over all devices; parameters are whole on each of them, or
split too.

Splitting the parameters (`fsdp`, fully sharded data parallelism) divides the memory of parameters,
gradients and optimiser state by the number of devices. A step gathers each parameter where it is
used and adds up gradients straight into their parts. What is computed stays the same.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PARAMETERS = ("replicate", "fsdp")


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """One axis, `data`, over `devices` (all of them by default), process after process.

    So the rows of a process are neighbours in a batch, and a batch has the same order of rows
    whatever the devices.
    """
    devices = jax.devices() if devices is None else devices
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered), ("data",), axis_types=(AxisType.Auto,))


def shardings(tree: Any, mesh: Mesh, parameters: str = "replicate") -> Any:
    """A sharding for every leaf of `tree`.

    Args:
        tree: arrays or their shapes, such as the state of a training.
        parameters: `replicate` for whole arrays on every device; `fsdp` splits each array of two
            or more axes along the largest axis that the devices divide, and leaves the others
            (biases, scales, statistics), which are small, whole.

    Raises:
        ValueError: another word.
    """
    if parameters not in PARAMETERS:
        raise ValueError(
            f"sharding.parameters is {parameters!r}, expected one of {', '.join(PARAMETERS)}"
        )

    def of(leaf) -> NamedSharding:
        shape = np.shape(leaf)
        divisible = [axis for axis, size in enumerate(shape) if size % mesh.devices.size == 0]
        if parameters == "replicate" or len(shape) < 2 or not divisible:
            return NamedSharding(mesh, PartitionSpec())
        chosen = max(divisible, key=lambda axis: shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * chosen, "data"))

    return jax.tree.map(of, tree)


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that every process has whole, as global arrays with `shardings`."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put(leaf, sharding):
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """`tree` with every leaf whole on every device."""
    return place(tree, shardings(tree, mesh))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows [B / processes, ...] as its part of global arrays [B, ...]."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for name, rows in batch.items()
    }


def whole(tree: Any) -> Any:
    """Global arrays whole on every device; where all of them are, they stay as they are."""
    leaves = jax.tree.leaves(tree)
    split = [leaf for leaf in leaves if not leaf.is_fully_replicated]
    return _gather(split[0].sharding.mesh)(tree) if split else tree


def to_host(tree: Any) -> Any:
    """Global arrays as numpy arrays with all their rows, on every process."""
    return jax.device_get(tree if jax.process_count() == 1 else whole(tree))


def check_batch_size(batch_size: int, mesh: Mesh, where: str, *, parts: int = 1) -> None:
    """Raises ValueError where a batch, or each of its parts, cannot be split over the devices."""
    devices = mesh.devices.size
    if batch_size % (devices * parts):
        accumulated = f" times accumulate={parts}" if parts > 1 else ""
        raise ValueError(
            f"{where}: batch size {batch_size} does not divide by the {devices} devices"
            f"{accumulated}; use a multiple of {devices * parts}"
        )


@functools.cache
def _gather(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
