"""Networks: `build({"name": "vit", "depth": 3})` is `Model(depth=3)` of `models/vit.py`."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from mmcl_jax.models import precision


def build(spec: Mapping[str, Any]) -> nn.Module:
    """Makes the network that a config names.

    Args:
        spec: 'name' is a file of this folder that defines `Model`; the rest are fields of that
            `Model`. Lists become tuples; dtype 'auto' is that of `precision`.

    Raises:
        ValueError: no 'name', no such network, or a field that the network does not have.
    """
    fields = dict(spec)
    name = fields.pop("name", None)
    if name not in _names():
        raise ValueError(f"models: no network named {name!r}; choose one of {_names()}")
    network = importlib.import_module(f"{__name__}.{name}").Model
    known = _fields(network)
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(f"models: {name} has no field {unknown}; its fields are {known}")
    if "dtype" in fields:
        fields["dtype"] = precision.resolve(fields["dtype"])
    return network(**{key: _to_tuple(value) for key, value in fields.items()})


def _names() -> list[str]:
    files = [file.name for file in pkgutil.iter_modules(__path__)]
    return [
        file for file in files if hasattr(importlib.import_module(f"{__name__}.{file}"), "Model")
    ]


def _fields(network: type[nn.Module]) -> list[str]:
    # 'parent' and 'name' are Linen's own.
    names = [field.name for field in dataclasses.fields(network) if field.init]
    return [name for name in names if name not in ("parent", "name")]


def _to_tuple(value: Any) -> Any:
    return tuple(_to_tuple(item) for item in value) if isinstance(value, list | tuple) else value
