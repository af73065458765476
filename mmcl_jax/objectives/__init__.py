"""One file per objective; the name in a stage's config is the name of the file."""

import dataclasses
import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

from mmcl_jax.objectives.base import Objective

__all__ = ["Objective", "build", "find", "names"]


def names() -> list[str]:
    """Names that a config may use, one per file of this folder."""
    files = pathlib.Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if file.stem not in ("__init__", "base"))


def find(name: str) -> type[Objective]:
    """The objective of file `name`. Raises ValueError where there is no such file."""
    if name not in names():
        raise ValueError(f"objective {name!r} is unknown; known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}").Objective


def build(name: str, fields: Mapping[str, Any]) -> Objective:
    """The objective of file `name` with its towers and settings in `fields`.

    Raises:
        ValueError: no such file, or a field that the objective does not have.
    """
    objective = find(name)
    known = {field.name for field in dataclasses.fields(objective)} - {"parent", "name"}
    if unknown := sorted(set(fields) - known):
        raise ValueError(
            f"objective {name!r} has no field {', '.join(unknown)}; "
            f"it has {', '.join(sorted(known))}"
        )
    return objective(**fields)
