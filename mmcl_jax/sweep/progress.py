"""How far a sweep has come."""

import time

import jax

from mmcl_jax.progress import Progress


class Meter:
    """Progress in steps of the schedules: a member that stops early has spared the rest of them.

    Args:
        title: what is under way.
        steps: of the schedules of all members that are to be trained.
        members: of the round.
        finished: those of them that had finished before.
    """

    def __init__(self, title: str, *, steps: int, members: int, finished: int):
        self.title, self.members, self.finished = title, members, finished
        self.bar = Progress(
            steps, title=title, unit="steps taken or spared", enabled=jax.process_index() == 0
        )
        self._of_finished = self._taken = 0
        self._start: float | None = None

    def finish(self, steps: int) -> None:
        """A member with a schedule of `steps` has ended."""
        self.finished += 1
        self._of_finished += steps

    def update(self, running: int, taken: int) -> None:
        """After a call of the program.

        Args:
            running: steps that the members under way have behind them.
            taken: steps since the last call.
        """
        note = f"{self.finished} of {self.members} members"
        if self._start is None:
            # The first call includes compilation.
            self._start = time.monotonic()
        else:
            self._taken += taken
            seconds = max(time.monotonic() - self._start, 1e-3)
            note += f", {self._taken / seconds:,.1f} member-steps/s"
        self.bar.update(self._of_finished + running, note)
