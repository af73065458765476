"""How far a long loop has come: a rate and the time left."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

_SHORTEST = 1.0  # seconds that give a rate: the first results of workers come all at once


class Progress:
    """One line, rewritten on a terminal; elsewhere, as in a log file, a line every 10 seconds.

    The clock starts with the first update, so that a rate tells nothing of compilation or of
    processes that start. Leaving the `with` block prints the last state.

    Args:
        total: number of items.
        title: what is under way, in front of each line.
        unit: what an item is, such as `records`.
        per_item: `rate_unit`s in an item, for the rate.
        rate_unit: unit of the rate; the items themselves by default.
        enabled: False prints nothing.
        stream: where to print; standard error by default.
        clock: seconds, increasing.
    """

    def __init__(
        self,
        total: int,
        *,
        title: str = "",
        unit: str = "records",
        per_item: int = 1,
        rate_unit: str = "",
        enabled: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._title, self._unit = total, title, unit
        self._per_item, self._rate_unit = per_item, rate_unit
        self._enabled = enabled
        self._stream = stream or sys.stderr
        self._clock = clock
        self._terminal = self._stream.isatty()
        self._period = 0.2 if self._terminal else 10.0  # seconds between two lines
        self._start: float | None = None
        self._first = self._done = 0  # items that do not enter the rate, items in all
        self._note = ""
        self._shown = -1
        self._last = -float("inf")

    def update(self, done: int, note: str = "") -> None:
        """Prints when the last line is old enough; the first update always does."""
        now = self._clock()
        self._done, self._note = done, note
        if self._start is None:
            self._start, self._first = now, done
        if self._enabled and now - self._last >= self._period:
            self._last = now
            self._print(done, note, now)

    def skip(self, count: int) -> None:
        """Takes note of items that were done before: `done` counts them, the rate does not."""
        self._first += count

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        """Prints the last state."""
        if self._enabled and self._start is not None:
            if self._shown != self._done:
                self._print(self._done, self._note, self._clock())
            if self._terminal:
                self._stream.write("\n")
                self._stream.flush()

    def _print(self, done: int, note: str, now: float) -> None:
        self._shown = done
        share = done / self._total if self._total else 1.0
        line = f"{self._title} " if self._title else ""
        if self._terminal:
            line += f"[{'#' * int(20 * share):.<20}] "
        line += f"{done:,} of {self._total:,} {self._unit} ({100 * share:.0f} %)"
        elapsed = now - self._start
        if done > self._first and elapsed >= _SHORTEST:
            rate = (done - self._first) / elapsed
            unit = f" {self._rate_unit}" if self._rate_unit else ""
            line += f", {rate * self._per_item:,.1f}{unit}/s"
            if done < self._total:
                line += f", {format_seconds((self._total - done) / rate)} left"
        line += f", {note}" if note else ""
        # \r returns to the start of the line, \x1b[K erases what is left of the former one.
        self._stream.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
        self._stream.flush()


def format_seconds(seconds: float) -> str:
    """`40 s`, `3 min 20 s`, `2 h 05 min`, `1 d 02 h`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
