"""Where arrays live: the batch is split over all devices, parameters are on each of them."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """One axis, `data`, over `devices` (all of them by default)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree, mesh: Mesh):
    """`tree` with every leaf whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows [B / processes, ...] as its part of global arrays [B, ...]."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for name, rows in batch.items()
    }


def check_batch_size(batch_size: int, mesh: Mesh, where: str, *, parts: int = 1) -> None:
    """Raises ValueError where a batch, or each of its parts, cannot be split over the devices."""
    devices = mesh.devices.size
    if batch_size % (devices * parts):
        accumulated = f" times accumulate={parts}" if parts > 1 else ""
        raise ValueError(
            f"{where}: batch size {batch_size} does not divide by the {devices} devices"
            f"{accumulated}; use a multiple of {devices * parts}"
        )


def to_host(tree):
    """Global arrays as numpy arrays with all their rows, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
