"""Checkpoints of one stage: the latest states to continue from, and the best parameters.

    checkpoints/latest/<step>/{params,extra,optimizer_state,progress,manifest.json}
    checkpoints/best/<step>/{params,extra,progress,manifest.json}

Parameters are an item of their own, so that a later stage restores a tower without knowing the
objective or the optimiser it was trained with. A checkpoint gets the name of its step when it is
written and its files have their checksums: one that was cut off is never seen. The last two of
each kind are kept, so that a damaged one costs no more than what was trained after the one before.
Best parameters are removed only when a state is on disk that speaks of later ones.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mmcl_jax import manifest
from mmcl_jax.retry import TRANSIENT, as_os_error, retry, say
from mmcl_jax.state import State
from mmcl_jax.step_folder import (
    UNSEALED,
    DamagedCheckpoint,
    SealedPath,
    name_sealed,
    newest_whole,
    prune,
    remove,
    steps,
    tidy,
)


class Checkpoints:
    """Writes and reads the checkpoints of one stage folder; one process at a time may write.

    What a save that was cut off has left is removed.

    Attributes:
        folder: STAGE/checkpoints.
    """

    def __init__(self, stage_dir: pathlib.Path):
        self.folder = stage_dir.resolve() / "checkpoints"
        self._latest, self._best = self.folder / "latest", self.folder / "best"
        self._damaged = self.folder / "damaged"
        retry(self._make_folders, f"making {self.folder}")
        self._writer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(), temporary_path_class=SealedPath
        )
        self._saved: tuple[int, Mapping[str, Any]] | None = None
        # Folder and step of what is being written.
        self._underway: tuple[pathlib.Path, int] | None = None
        # Whether the last state did not reach the disk, so that what is there speaks of others.
        self._lost = False

    def save_latest(self, state: State, progress: Mapping[str, Any], *, wait: bool = False) -> None:
        """The whole state and `progress` (JSON: early stopping, best step).

        Writes in the background, and what goes wrong there is known at the next save: where the
        file system was gone, that one takes its place.

        Args:
            wait: return when it is on disk, trying again where the file system is gone for a while.

        Raises:
            OSError: this checkpoint, or the one before, could not be written.
        """
        step = int(state.step)
        # `progress` names the best step, so that checkpoint has to be on disk first.
        self._settle_or_make_up()
        wait = wait or self._lost
        if (step, progress) == self._saved:
            return
        items = {
            "params": ocp.args.StandardSave(state.params),
            "extra": ocp.args.StandardSave(_non_empty(state.extra)),
            "optimizer_state": ocp.args.StandardSave(_non_empty(state.optimizer_state)),
            "progress": ocp.args.JsonSave(dict(progress)),
        }
        self._save(self._latest, step, items, wait=wait)
        self._saved = step, progress

    def save_best(self, state: State, score: float | None = None) -> None:
        """Parameters that are the best so far, on disk when this returns.

        Args:
            score: how good they are, the more the better.

        Raises:
            OSError: they could not be written.
        """
        self._settle_or_make_up()
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
        step = self._agreed(self._newest_latest, self._latest)
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
        self._saved = step, found["progress"]
        return state, found["progress"]

    def best(self) -> tuple[int, float | None] | None:
        """Step and score of the last best parameters that are whole; None without any.

        Damaged ones are moved to `checkpoints/damaged`.
        """
        step = self._agreed(lambda: newest_whole(self._best, self._damaged), self._best)
        if step is None:
            return None
        folder = self._best / str(step)
        if not (folder / "progress").is_dir():
            return step, None
        return step, self._progress(folder)["score"]

    def latest_progress(self) -> dict[str, Any] | None:
        """The progress of what `restore_latest` would return, without the state.

        Raises:
            DamagedCheckpoint, OSError: as `restore_latest`.
        """
        step = self._agreed(self._newest_latest, self._latest)
        return None if step is None else self._progress(self._latest / str(step))

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
            with contextlib.suppress(OSError):
                self._writer.close()

    def _make_folders(self) -> None:
        for kind in (self._latest, self._best):
            kind.mkdir(parents=True, exist_ok=True)
            name_sealed(kind)
            tidy(kind)

    # --- writing -------------------------------------------------------------------------------

    def _save(self, folder: pathlib.Path, step: int, items: Mapping[str, Any], wait: bool) -> None:
        def attempt() -> None:
            self._underway = (folder, step)
            try:
                # Orbax would make a folder that has gone, below the mount point of what is gone.
                folder.stat()
                target = folder / f"{step}{UNSEALED}"
                self._writer.save(target, args=ocp.args.Composite(**items), force=True)
                if wait:
                    self._writer.wait_until_finished()
            except Exception as error:
                if (found := as_os_error(error)) is None:
                    raise
                self._forget()
                raise OSError(found.errno, found.strerror, str(folder)) from error

        # Each of several processes waits by itself for a file system that is gone; in the midst of
        # a save they would have to fail, and to try again, together.
        patience = 0 if not wait or jax.process_count() > 1 else None
        try:
            retry(folder.stat, f"saving step {step}")
            retry(attempt, f"saving step {step}", patience=patience)
        except OSError as error:
            raise _explained(error, folder, step) from error
        if wait:
            self._written()

    def _settle_or_make_up(self) -> None:
        """`_settle`, where a save that failed because the file system was gone has a next one."""
        try:
            self._settle()
        except OSError as error:
            # Several processes would have to fail, and to try again, together.
            if error.errno not in TRANSIENT or jax.process_count() > 1:
                raise
            say(f"{error}. The next checkpoint takes its place")
            self._lost = True

    def _settle(self) -> None:
        """Waits for the save that is under way, if any."""
        if self._underway is None:
            return
        folder, step = self._underway
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            if (found := as_os_error(error)) is None:
                raise
            self._forget()
            raise _explained(found, folder, step) from error
        self._written()

    def _written(self) -> None:
        """What was under way is on disk."""
        folder, _ = self._underway
        self._underway = None
        if folder == self._latest:
            self._lost = False
        tidy(folder)
        if not self._lost:
            prune(folder)

    def _forget(self) -> None:
        """Removes what a save that failed has left.

        Other threads of Orbax may still be writing then; what they leave goes with the next save.
        """
        folder, _ = self._underway
        self._underway = self._saved = None
        tidy(folder)

    # --- reading -------------------------------------------------------------------------------

    def _progress(self, folder: pathlib.Path) -> dict[str, Any]:
        items = ocp.args.Composite(progress=ocp.args.JsonRestore())
        return _read(lambda: self._writer.restore(folder, args=items), folder)["progress"]

    def _newest_latest(self) -> int | None:
        found = newest_whole(self._latest, self._damaged)
        # Of steps that are taken again, and that may end elsewhere with other devices.
        for step in steps(self._best):
            if step > (found or 0):
                remove(self._best / str(step))
        return found

    def _agreed(self, choose: Callable[[], int | None], folder: pathlib.Path) -> int | None:
        """What the first of several processes chooses."""
        choose = functools.partial(retry, choose, f"reading {folder}")
        if jax.process_count() == 1:
            return choose()
        from jax.experimental import multihost_utils

        none, damaged = -1, -2
        chosen = none
        if jax.process_index() == 0:
            try:
                step = choose()
                chosen = none if step is None else step
            except DamagedCheckpoint:
                chosen = damaged
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
        if chosen == damaged:
            raise DamagedCheckpoint(folder)
        return None if chosen == none else chosen


def any_of(stage_dir: pathlib.Path) -> bool:
    """Whether a checkpoint of the stage is on disk, be it damaged."""
    return any((stage_dir / "checkpoints").glob("*/[0-9]*"))


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
    found_steps = steps(folder) if folder.is_dir() else []
    if not found_steps:
        raise FileNotFoundError(f"{folder}: no checkpoint; run the stage first")
    for step in found_steps:
        found = folder / str(step)
        problem = retry(lambda found=found: manifest.problem(found), f"reading {found}")
        if problem:
            say(f"{found} is damaged ({problem}); looking for the one before")
            continue
        params = _read(lambda found=found: read_tree(found / "params"), found)
        extra = _read(lambda found=found: read_tree(found / "extra"), found)
        return params, extra["tree"], step
    raise DamagedCheckpoint(folder)


def read_tree(path: pathlib.Path) -> Any:
    """An item of a checkpoint as numpy arrays, such as `latest/30/optimizer_state`."""
    # Not a checkpointer, which looks for the metadata of a whole checkpoint in the item's folder.
    reader = ocp.PyTreeCheckpointHandler()
    try:
        structure = reader.metadata(path).tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), structure)
        return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    finally:
        reader.close()


def _explained(error: OSError, folder: pathlib.Path, step: int) -> OSError:
    """`error` of a save in words: what is lost, what is not, what to do."""
    intact = ""
    with contextlib.suppress(OSError):
        if before := steps(folder):
            intact = f"; that of step {before[0]} is intact"
    return OSError(
        error.errno,
        f"{folder}: the checkpoint of step {step} could not be written ({error.strerror}){intact}. "
        "Once there is space and access, the same command goes on",
    )


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


def _non_empty(tree):
    # Orbax refuses a tree without a leaf, which the extra of a plain ViT is.
    return {"tree": tree, "leaves": np.asarray(len(jax.tree.leaves(tree)))}
