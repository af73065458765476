"""Takes the parameters of a tower from another stage, leaf by leaf."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax


def transplant(
    target: Mapping[str, Any],
    source: Mapping[str, Any],
    tower: str,
    *,
    new: Sequence[str] = (),
    unused: Sequence[str] = (),
    origin: str = "source",
) -> dict[str, Any]:
    """`target` with its sub-tree `tower` taken from `source`.

    Args:
        target, source: trees of one collection, tower names on top.
        new: regular expressions of leaf paths ("ecg_encoder/fc_norm") that keep their fresh
            values, whether `source` has them or not.
        unused: regular expressions of leaf paths of `source` that may be left behind.
        origin: where `source` comes from, for messages.

    Raises:
        ValueError: leaves that are missing, left over or of another shape, naming each.
    """
    ours, theirs = _flatten({tower: target[tower]}), _flatten({tower: source[tower]})
    theirs = {path: leaf for path, leaf in theirs.items() if not _matches(path, new)}
    missing = [path for path in ours if path not in theirs and not _matches(path, new)]
    extra = [path for path in theirs if path not in ours and not _matches(path, unused)]
    shapes = [
        f"{path}: {theirs[path].shape} there, {ours[path].shape} here"
        for path in ours
        if path in theirs and theirs[path].shape != ours[path].shape
    ]
    problems = [
        f"{title}: {', '.join(paths)}"
        for title, paths in (("missing", missing), ("left over", extra), ("other shapes", shapes))
        if paths
    ]
    if problems:
        raise ValueError(
            f"cannot take {tower} from {origin}; {'; '.join(problems)}. Leaves that are meant to "
            "start fresh or to stay behind are listed in the stage's `new` and `unused`"
        )
    merged = {path: theirs.get(path, leaf) for path, leaf in ours.items()}
    return {**target, tower: _unflatten(merged)[tower]}


def _flatten(tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def _unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)
