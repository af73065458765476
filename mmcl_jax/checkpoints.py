"""Checkpoints of one stage: the latest states to continue from, and the best parameters.

    checkpoints/latest/<step>/{params,extra,optimizer_state,progress,manifest.json}
    checkpoints/best/<step>/{params,extra,progress,manifest.json}

Parameters are an item of their own, so that a later stage restores a tower without knowing the
objective or the optimiser it was trained with. A checkpoint gets the name of its step when it is
written and its files have their checksums: one that was cut off is never seen. The last two of
each kind are kept, so that a damaged one costs no more than what was trained after the one before.
"""

import pathlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mmcl_jax import manifest
from mmcl_jax.retry import TRANSIENT, as_os_error, retry, say
from mmcl_jax.state import State

_KEPT = 2
# Complete, but without checksums yet.
_UNSEALED = ".unsealed"


class DamagedCheckpoint(ValueError):
    """There are checkpoints, and none of them can be used."""


class Checkpoints:
    """Writes and reads the checkpoints of one stage folder; one process at a time may write.

    What a save that was cut off has left is removed.
    """

    def __init__(self, stage_dir: pathlib.Path):
        folder = stage_dir.resolve() / "checkpoints"
        self._latest, self._best = folder / "latest", folder / "best"
        self._damaged = folder / "damaged"
        for kind in (self._latest, self._best):
            kind.mkdir(parents=True, exist_ok=True)
            _tidy(kind)
        self._writer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(), temporary_path_class=_SealedPath
        )
        self._saved_step: int | None = None
        # Folder and step of what is being written.
        self._underway: tuple[pathlib.Path, int] | None = None

    def save_latest(
        self, state: State, progress: Mapping[str, Any], *, wait: bool = False
    ) -> None:
        """The whole state and `progress` (JSON: early stopping, best step).

        Writes in the background, and what goes wrong there is known at the next save: where the
        file system was gone, that one takes its place.

        Args:
            wait: return when it is on disk, trying again where the file system is gone for a while.

        Raises:
            OSError: this checkpoint, or the one before, could not be written.
        """
        step = int(state.step)
        if step == self._saved_step and self._underway is None:
            return
        try:
            # `progress` names the best step, so that checkpoint has to be on disk first.
            self._settle()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
            say(f"{error}. The checkpoint of step {step} takes its place")
            wait = True
        items = {
            "params": ocp.args.StandardSave(state.params),
            "extra": ocp.args.StandardSave(_non_empty(state.extra)),
            "optimizer_state": ocp.args.StandardSave(_non_empty(state.optimizer_state)),
            "progress": ocp.args.JsonSave(dict(progress)),
        }
        self._save(self._latest, step, items, wait=wait)
        self._saved_step = step

    def save_best(self, state: State, score: float | None = None) -> None:
        """Parameters that are the best so far, on disk when this returns.

        Args:
            score: how good they are, the more the better.

        Raises:
            OSError: they could not be written.
        """
        self._settle()
        items = {
            "params": ocp.args.StandardSave(state.params),
            "extra": ocp.args.StandardSave(_non_empty(state.extra)),
            "progress": ocp.args.JsonSave({"score": score}),
        }
        self._save(self._best, int(state.step), items, wait=True)

    def restore_latest(self, like: State) -> tuple[State, dict[str, Any]] | None:
        """State, placed like `like`, and progress of the last checkpoint; None without one.

        A damaged checkpoint is moved to `checkpoints/damaged`, and the one before is used. Those
        of steps that are taken again are removed.

        Raises:
            DamagedCheckpoint: all of them are damaged.
            ValueError: the checkpoint is that of another model or optimiser.
            OSError: they cannot be read.
        """
        step = self._agreed(lambda: retry(self._newest_latest, f"reading {self._latest}"))
        if step is None:
            return None
        folder = self._latest / str(step)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(target.params),
            extra=ocp.args.StandardRestore(_non_empty(target.extra)),
            optimizer_state=ocp.args.StandardRestore(_non_empty(target.optimizer_state)),
            progress=ocp.args.JsonRestore(),
        )
        try:
            found = _read(lambda: self._writer.restore(folder, args=items), folder)
        except ValueError as error:
            raise ValueError(
                f"{folder}: does not fit the model and optimiser of the configuration ({error}). "
                "Use the settings it was trained with, or a new --workdir"
            ) from error
        state = like.replace(
            step=jax.device_put(np.asarray(step, like.step.dtype), like.step.sharding),
            params=found["params"],
            extra=found["extra"]["tree"],
            optimizer_state=found["optimizer_state"]["tree"],
        )
        self._saved_step = step
        return state, found["progress"]

    def best(self) -> tuple[int, float | None] | None:
        """Step and score of the last best parameters that are whole; None without any.

        Damaged ones are moved to `checkpoints/damaged`.
        """
        step = self._agreed(lambda: retry(self._newest_best, f"reading {self._best}"))
        if step is None:
            return None
        file = self._best / str(step)
        if not (file / "progress").is_dir():
            return step, None
        restored = _read(lambda: self._writer.restore(file, args=_SCORE), file)
        return step, restored["progress"]["score"]

    def wait(self) -> None:
        """Returns when everything that was saved is on disk. Raises OSError where it is not."""
        self._settle()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.wait()
        except OSError as failure:
            if error is None:
                raise
            say(str(failure))
        finally:
            self._writer.close()

    # --- writing -------------------------------------------------------------------------------

    def _save(self, folder: pathlib.Path, step: int, items: Mapping[str, Any], wait: bool) -> None:
        def attempt() -> None:
            self._underway = (folder, step)
            try:
                # Orbax would make a folder that has gone, below the mount point of what is gone.
                folder.stat()
                target = folder / f"{step}{_UNSEALED}"
                self._writer.save(target, args=ocp.args.Composite(**items), force=True)
            except Exception as error:
                raise self._failed(error) from error
            if wait:
                self._settle()

        # Several processes would have to fail, and to try again, together.
        patience = 0 if not wait or jax.process_count() > 1 else None
        retry(attempt, f"saving step {step}", patience=patience)

    def _settle(self) -> None:
        """Waits for the save that is under way, if any."""
        if self._underway is None:
            return
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        self._underway = None

    def _failed(self, error: Exception) -> Exception:
        """What to raise for `error` of a save, whose files are removed."""
        folder, step = self._underway
        self._underway = self._saved_step = None
        found = as_os_error(error)
        if found is None:
            return error
        intact: list[int] = []
        try:
            _tidy(folder)
            intact = [known for known in _steps(folder) if known != step]
        except OSError:
            # As gone as what was to be written.
            pass
        before = f"; that of step {intact[0]} is intact" if intact else ""
        return OSError(
            found.errno,
            f"{folder}: the checkpoint of step {step} could not be written "
            f"({found.strerror or found}){before}. Once there is space and access, run the same "
            "command again",
        )

    # --- reading -------------------------------------------------------------------------------

    def _newest_latest(self) -> int | None:
        found = self._newest(self._latest)
        if found is None:
            return None
        # Of another past: with other devices the steps taken again may end elsewhere.
        for step in _steps(self._best):
            if step > found:
                _remove(self._best / str(step))
        return found

    def _newest_best(self) -> int | None:
        return self._newest(self._best)

    def _newest(self, folder: pathlib.Path) -> int | None:
        """The last checkpoint that is whole; those after it are put aside."""
        steps = _steps(folder)
        for step in steps:
            problem = manifest.problem(folder / str(step))
            if not problem:
                return step
            aside = self._damaged / f"{folder.name}-{step}"
            _remove(aside)
            aside.parent.mkdir(exist_ok=True)
            (folder / str(step)).rename(aside)
            say(f"{folder / str(step)} is damaged ({problem}) and was moved to {aside}")
        if steps:
            raise DamagedCheckpoint(_no_checkpoint_left(folder))
        return None

    def _agreed(self, choose: Callable[[], int | None]) -> int | None:
        """What the first of several processes chooses."""
        if jax.process_count() == 1:
            return choose()
        from jax.experimental import multihost_utils

        none, damaged, chosen = -1, -2, -1
        if jax.process_index() == 0:
            try:
                step = choose()
                chosen = none if step is None else step
            except DamagedCheckpoint:
                chosen = damaged
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
        if chosen == damaged:
            raise DamagedCheckpoint(_no_checkpoint_left(self._latest.parent))
        return None if chosen == none else chosen


def load(stage_dir: pathlib.Path, which: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(params, extra, step) of a stage as numpy arrays, needing nothing but its path.

    Args:
        which: `latest` or `best`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        DamagedCheckpoint: none is whole.
        OSError: it cannot be read.
    """
    folder = stage_dir.resolve() / "checkpoints" / which
    steps = _steps(folder) if folder.is_dir() else []
    if not steps:
        raise FileNotFoundError(f"{folder}: no checkpoint; run the stage first")
    for step in steps:
        found = folder / str(step)
        problem = retry(lambda found=found: manifest.problem(found), f"reading {found}")
        if problem:
            say(f"{found} is damaged ({problem}); looking for the one before")
            continue
        params = _read(lambda found=found: _read_tree(found / "params"), found)
        extra = _read(lambda found=found: _read_tree(found / "extra"), found)
        return params, extra["tree"], step
    raise DamagedCheckpoint(_no_checkpoint_left(folder))


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


class _SealedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Gives a finished checkpoint its checksums, then its name; the first process calls it."""

    async def finalize(self) -> None:
        await super().finalize()
        unsealed = pathlib.Path(self.get_final())
        manifest.write(unsealed)
        final = unsealed.with_suffix("")
        _remove(final)
        unsealed.rename(final)
        for step in _steps(final.parent)[_KEPT:]:
            _remove(final.parent / str(step))


_SCORE = ocp.args.Composite(progress=ocp.args.JsonRestore())


def _steps(folder: pathlib.Path) -> list[int]:
    """Steps of the checkpoints in a folder, the last one first."""
    names = [path.name for path in folder.iterdir()]
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _tidy(folder: pathlib.Path) -> None:
    """Removes what is no checkpoint."""
    if jax.process_index() == 0:
        for path in folder.iterdir():
            if not path.name.isdigit():
                shutil.rmtree(path, ignore_errors=True)


def _remove(path: pathlib.Path) -> None:
    """Removes a checkpoint. It loses its name first: half of one would pass for a damaged one."""
    if path.exists():
        former = path.with_name(f"{path.name}.removed")
        shutil.rmtree(former, ignore_errors=True)
        path.rename(former)
        shutil.rmtree(former, ignore_errors=True)


def _read(function: Callable[[], Any], path: pathlib.Path) -> Any:
    """`function()`, again where the file system is gone for a while, with the system's errors."""

    def attempt() -> Any:
        try:
            return function()
        except Exception as error:
            if (found := as_os_error(error)) is None:
                raise
            raise OSError(found.errno, f"{path}: {found.strerror or found}") from error

    return retry(attempt, f"reading {path}")


def _no_checkpoint_left(folder: pathlib.Path) -> str:
    return (
        f"{folder}: no checkpoint is whole. Copy one back from a backup, or delete "
        f"{folder.parent.parent} to run the stage again"
    )


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
