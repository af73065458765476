"""The progress line."""

import io

from mmcl_jax.data.progress import Progress


def test_progress_in_a_log_file_and_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, line in ((io.StringIO(), "{}\n"), (Terminal(), "\r{}\x1b[K")):
        now = 0.0
        with Progress(100, stream=stream, clock=lambda: now) as progress:  # noqa: B023
            progress.update(1)
            assert stream.getvalue() == ""
            now = 15.0
            progress.update(30, "1 refused")
            first = line.format("30 of 100 records (30 %), 2.0/s, 35 s left, 1 refused")
            assert stream.getvalue() == first
            now = 15.1
            progress.update(31, "1 refused")
            assert stream.getvalue() == first
            now = 50.0
            progress.update(100, "1 refused")
        last = line.format("100 of 100 records (100 %), 2.0/s in 50 s, 1 refused")
        assert stream.getvalue().rstrip("\n").endswith(last.rstrip("\n"))
        assert stream.getvalue().endswith("\n")
