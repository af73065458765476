"""How far a long loop has come: rate and time left."""

import sys
import time
from collections.abc import Callable
from typing import TextIO


class Progress:
    """One line that is rewritten on a terminal; elsewhere, e.g. in a log file, a line now and then.

    Args:
        total: number of items to come.
        enabled: False prints nothing.
        stream: where to print.
        clock: seconds, increasing.
    """

    def __init__(
        self,
        total: int,
        *,
        enabled: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total = total
        self._enabled = enabled
        self._stream = stream or sys.stderr
        self._clock = clock
        self._start = clock()
        self._last = self._start
        self._done, self._note = 0, ""
        self._terminal = self._stream.isatty()
        self._period = 0.2 if self._terminal else 10.0  # seconds between two lines

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        """Prints the last state, also where the loop was left by an error."""
        if self._enabled:
            self._print(self._clock())
            if self._terminal:
                self._stream.write("\n")
                self._stream.flush()

    def update(self, done: int, note: str = "") -> None:
        """Prints when the last line is old enough."""
        self._done, self._note = done, note
        now = self._clock()
        if self._enabled and now - self._last >= self._period:
            self._last = now
            self._print(now)

    def _print(self, now: float) -> None:
        done = self._done
        elapsed = max(now - self._start, 1e-9)
        left = elapsed / done * (self._total - done) if done else float("inf")
        share = 100 * done / self._total if self._total else 100.0
        line = f"{done:,} of {self._total:,} records ({share:.0f} %), {done / elapsed:.1f}/s"
        line += f", {_duration(left)} left" if done < self._total else f" in {_duration(elapsed)}"
        line += f", {self._note}" if self._note else ""
        # \r returns to the start of the line, \x1b[K erases what is left of the former one.
        self._stream.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "unknown time"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
