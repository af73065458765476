"""Members under way on disk, so that a sweep that was stopped goes on in the midst of them.

    <folder>/checkpoints/latest/<call>/    the slots, and what is known of the member in each

As many members as run side by side share one state, which is that of the slots. It is saved after a
signal, and on the way when the last save is `PAUSE` seconds ago. With the paper's encoder a member
takes 97 MB; the last two states are kept until all members of the program have finished.
"""

import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from mmcl_jax.checkpoints import Checkpoints
from mmcl_jax.retry import say
from mmcl_jax.state import State
from mmcl_jax.sweep.program import Slots

PAUSE = 300.0  # seconds


class Underway:
    """The slots of one program in a folder of their own.

    Args:
        folder: is removed by `finish`.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._checkpoints = Checkpoints(folder)
        self._call = 0
        self._saved = time.monotonic()

    def restore(self, shapes: Callable[[int], Slots]) -> tuple[Slots, list[Any]] | None:
        """The slots and what `save` was given for each; None where nothing was saved.

        Args:
            shapes: shape, type and sharding of the leaves of so many slots.

        Raises:
            DamagedCheckpoint, OSError: of `Checkpoints`.
        """
        found = self._checkpoints.latest_progress()
        if found is None:
            return None
        members = found["members"]
        state, _ = self._checkpoints.restore_latest(_as_state(0, shapes(len(members))))
        self._call = found["period"]
        present = State(
            state.extra["step"], state.params["present"], state.extra["present"],
            state.optimizer_state,
        )  # fmt: skip
        return Slots(present, state.params["best"], state.extra["best"]), members

    def save(self, slots: Slots, members: Sequence[Any], *, stopping: bool) -> None:
        """Saves after a call of the program if it is time; if `stopping`, at once and to the end.

        Args:
            members: JSON for each slot.
        """
        self._call += 1
        if not stopping and time.monotonic() - self._saved < PAUSE:
            return
        progress = {"period": self._call, "members": list(members)}
        self._checkpoints.save_latest(_as_state(self._call, slots), progress, wait=stopping)
        self._saved = time.monotonic()

    def finish(self) -> None:
        """No member is under way any more."""
        try:
            self._checkpoints.wait()
        except OSError as error:
            # Nobody needs what could not be saved.
            say(str(error))
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "Underway":
        return self

    def __exit__(self, *exception) -> None:
        self._checkpoints.__exit__(*exception)


def _as_state(call: int, slots: Slots) -> State:
    present = slots.state
    return State(
        jnp.asarray(call, jnp.int32),
        {"present": present.params, "best": slots.best_params},
        {"present": present.extra, "best": slots.best_extra, "step": present.step},
        present.optimizer_state,
    )
