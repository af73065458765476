"""Turns, their order and their statistics; no time is asserted."""

import pytest

from mmcl_jax.bench import timing
from mmcl_jax.bench.timing import Competitor


def test_rounds_begin_with_another_competitor_each():
    calls = []
    names = ("a", "b", "c")
    competitors = [Competitor(n, lambda count, n=n: calls.append((n, count))) for n in names]
    samples = timing.alternate(competitors, rounds=4, seconds=0.0)
    # Before the rounds each one runs to compile and once to calibrate.
    assert [name for name, _ in calls[:6]] == ["a", "a", "b", "b", "c", "c"]
    # In a round each one has a call that is not timed, then the timed one.
    assert "".join(name for name, _ in calls[6::2]) == "abcbcacababc"
    assert [name for name, _ in calls[6::2]] == [name for name, _ in calls[7::2]]
    assert {name: len(taken) for name, taken in samples.items()} == {"a": 4, "b": 4, "c": 4}


def test_calibration_asks_for_more_repetitions_until_they_last(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def run(count):
        clock[0] += 0.01 * count

    assert 30 <= timing.calibrate(run, 0.3) <= 60
    assert timing.calibrate(run, 0.005) == 1


def test_summary():
    found = timing.summary([4.0, 1.0, 2.0, 3.0, 5.0])
    assert found == {
        "median": 3, "q1": 2, "q3": 4, "min": 1, "max": 5, "samples": [4, 1, 2, 3, 5],
    }  # fmt: skip
    assert timing.summary([2.0])["q1"] == 2


def test_ratio_is_taken_round_by_round():
    found = timing.ratio({"peer": [2.0, 8.0, 3.0], "ours": [1.0, 2.0, 3.0]}, "peer", "ours")
    assert found["samples"] == [2, 4, 1]
    assert found["median"] == pytest.approx(2)
