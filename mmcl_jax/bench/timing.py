"""Alternating measurement: machines drift, so what is compared is measured in turns."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

# Idle worker threads of one library spin for a moment and would take a core from the next one.
_PAUSE = 0.05  # seconds


@dataclasses.dataclass(frozen=True)
class Competitor:
    """Attributes:
    name: unique among those compared.
    run: `run(n)` does the work n times and returns when the device has finished.
    """

    name: str
    run: Callable[[int], None]


def alternate(
    competitors: Sequence[Competitor], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds per repetition of each competitor, one number per round.

    Compilation and warm-up happen before the first round. In every round each competitor has one
    turn, one repetition that is not timed and as many as last about `seconds`; the one that begins
    changes from round to round. The untimed one takes back the memory and the caches that the
    competitors' turns cost: steps of a training follow each other without such a pause.
    """
    repetitions = {c.name: calibrate(c.run, seconds) for c in competitors}
    samples: dict[str, list[float]] = {c.name: [] for c in competitors}
    for number in range(rounds):
        for competitor in rotated(competitors, number):
            time.sleep(_PAUSE)
            competitor.run(1)
            count = repetitions[competitor.name]
            samples[competitor.name].append(_seconds(competitor.run, count) / count)
    return samples


def calibrate(run: Callable[[int], None], seconds: float) -> int:
    """Repetitions that last about `seconds`, at least 1. The first call is not timed."""
    run(1)
    count = 1
    while True:
        taken = _seconds(run, count)
        if taken >= seconds:
            return count
        count = max(count + 1, min(10 * count, math.ceil(1.2 * count * seconds / taken)))


def rotated(items: Sequence[Competitor], by: int) -> list[Competitor]:
    """The items, beginning with number `by` (modulo their count)."""
    by %= len(items)
    return [*items[by:], *items[:by]]


def summary(samples: Sequence[float]) -> dict[str, float | list[float]]:
    """Median, quartiles, smallest and largest, and the samples themselves, in their order."""
    quartiles = (samples[0],) * 3
    if len(samples) > 1:
        quartiles = statistics.quantiles(samples, n=4, method="inclusive")
    return {
        "median": statistics.median(samples),
        "q1": quartiles[0],
        "q3": quartiles[2],
        "min": min(samples),
        "max": max(samples),
        "samples": list(samples),
    }


def ratio(samples: Mapping[str, Sequence[float]], over: str, under: str) -> dict:
    """`summary` of samples[over] / samples[under], taken round by round."""
    pairs = zip(samples[over], samples[under], strict=True)
    return summary([above / below for above, below in pairs])


def _seconds(run: Callable[[int], None], count: int) -> float:
    start = time.perf_counter()
    run(count)
    return time.perf_counter() - start
