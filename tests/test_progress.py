import io

import pytest

from mmcl_jax.progress import Progress, format_seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, times):
    """What a loop over 100 items prints whose item `done` ends at time `now`."""
    instants = [0.0]
    bar = Progress(100, title="mdm", unit="steps", per_item=8, rate_unit="examples",
                   stream=stream, clock=lambda: instants[-1])  # fmt: skip
    with bar:
        for now, done in times:
            instants.append(now)
            bar.update(done, "0 refused")
    return stream.getvalue()


TIMES = [(50.0, 1), (55.0, 11), (61.0, 23), (62.0, 25), (100.0, 100)]


def test_plain_lines_without_the_time_of_the_first_item():
    lines = shown(io.StringIO(), TIMES).splitlines()
    assert lines == [
        "mdm 1 of 100 steps (1 %), 0 refused",
        "mdm 23 of 100 steps (23 %), 16.0 examples/s, 38 s left, 0 refused",
        "mdm 100 of 100 steps (100 %), 15.8 examples/s, 0 refused",
    ]


def test_a_terminal_shows_a_bar_on_one_line():
    text = shown(Terminal(), TIMES)
    assert text.count("\n") == 1
    assert "\rmdm [##..................] 11 of 100 steps" in text
    assert text.endswith("\x1b[K\n")


def test_items_that_were_done_before_do_not_enter_the_rate():
    stream, instants = io.StringIO(), [0.0]
    with Progress(100, stream=stream, clock=lambda: instants[-1]) as bar:
        bar.skip(40)
        for now, done in [(0, 41), (12, 47), (13, 58), (24, 64)]:
            if done == 58:
                bar.skip(10)
            instants.append(float(now))
            bar.update(done)
    assert stream.getvalue().splitlines() == [
        "41 of 100 records (41 %)",
        "47 of 100 records (47 %), 0.5/s, 1 min 46 s left",
        "64 of 100 records (64 %), 0.5/s, 1 min 06 s left",
    ]


def test_nothing_is_printed_before_the_first_item_or_when_disabled():
    stream = io.StringIO()
    with Progress(3, stream=stream):
        pass
    with Progress(3, stream=stream, enabled=False) as bar:
        bar.update(1)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(40.2, "40 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (93600, "1 d 02 h")],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text
