"""Checkpoints of one stage: the latest state to continue from, and the best parameters.

    checkpoints/latest/<step>/{params,extra,optimizer_state,progress}
    checkpoints/best/<step>/{params,extra}

Parameters are an item of their own, so that a later stage restores a tower without knowing the
objective or the optimiser it was trained with. Orbax renames a finished checkpoint into place: one
that was cut off is never seen.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mmcl_jax.state import State


class Checkpoints:
    """Writes and reads the checkpoints of one stage folder."""

    def __init__(self, stage_dir: pathlib.Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        folder = stage_dir.resolve() / "checkpoints"
        self._latest = ocp.CheckpointManager(
            folder / "latest",
            options=options,
            item_names=("params", "extra", "optimizer_state", "progress"),
        )
        self._best = ocp.CheckpointManager(
            folder / "best", options=options, item_names=("params", "extra")
        )

    def save_latest(self, state: State, progress: Mapping[str, Any]) -> None:
        """The whole state and `progress` (JSON: early stopping, best step)."""
        step = int(state.step)
        if step == self._latest.latest_step():
            return
        # `progress` names the best step, so that checkpoint has to be on disk first.
        self._best.wait_until_finished()
        self._latest.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                extra=ocp.args.StandardSave(_non_empty(state.extra)),
                optimizer_state=ocp.args.StandardSave(_non_empty(state.optimizer_state)),
                progress=ocp.args.JsonSave(dict(progress)),
            ),
        )

    def save_best(self, state: State) -> None:
        """Parameters that are the best so far."""
        step = int(state.step)
        # A run that was killed right after this save comes here a second time.
        if step in self._best.all_steps():
            self._best.delete(step)
        self._best.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                extra=ocp.args.StandardSave(_non_empty(state.extra)),
            ),
        )

    def restore_latest(self, like: State) -> tuple[State, dict[str, Any]] | None:
        """State, placed like `like`, and progress of the last checkpoint; None without one."""
        step = self._latest.latest_step()
        if step is None:
            return None
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        found = self._latest.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(target.params),
                extra=ocp.args.StandardRestore(_non_empty(target.extra)),
                optimizer_state=ocp.args.StandardRestore(_non_empty(target.optimizer_state)),
                progress=ocp.args.JsonRestore(),
            ),
        )
        state = like.replace(
            step=jax.device_put(np.asarray(step, like.step.dtype), like.step.sharding),
            params=found["params"],
            extra=found["extra"]["tree"],
            optimizer_state=found["optimizer_state"]["tree"],
        )
        return state, found["progress"]

    def wait(self) -> None:
        """Returns when everything that was saved is on disk."""
        self._latest.wait_until_finished()
        self._best.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.wait()
        self._latest.close()
        self._best.close()


def load(stage_dir: pathlib.Path, which: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(params, extra, step) of a stage as numpy arrays, needing nothing but its path.

    Args:
        which: `latest` or `best`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    folder = stage_dir.resolve() / "checkpoints" / which
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    if not steps:
        raise FileNotFoundError(f"{folder}: no checkpoint; run the stage first")
    step = max(steps)
    extra = _read_tree(folder / str(step) / "extra")
    return _read_tree(folder / str(step) / "params"), extra["tree"], step


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


def _non_empty(tree):
    # Orbax refuses a tree without a leaf, which the extra of a plain ViT is.
    return {"tree": tree, "leaves": np.asarray(len(jax.tree.leaves(tree)))}


def _read_tree(path: pathlib.Path):
    with ocp.PyTreeCheckpointer() as reader:
        structure = reader.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), structure)
        return reader.restore(path, restore_args=as_numpy)


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
