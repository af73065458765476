import errno
import os

import pytest

from mmcl_jax import retry as module
from mmcl_jax.retry import as_os_error, retry


@pytest.fixture
def pauses(monkeypatch):
    found = []
    monkeypatch.setattr(module.time, "sleep", found.append)
    return found


def failing(number: int, times: int):
    calls = iter([OSError(number, os.strerror(number))] * times)

    def call():
        if error := next(calls, None):
            raise error
        return "done"

    return call


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOENT])
def test_what_passes_is_waited_for(pauses, number, capsys):
    assert retry(failing(number, 3), "reading x") == "done"
    assert pauses == [0.5, 1.0, 2.0]
    assert "reading x: [Errno" in capsys.readouterr().err


def test_patience_ends(pauses):
    with pytest.raises(OSError, match="Stale file handle"):
        retry(failing(errno.ESTALE, 100), "reading x")
    assert sum(pauses) == module.PATIENCE
    assert max(pauses) == module.LONGEST_PAUSE


def test_what_stays_is_not_waited_for(pauses):
    with pytest.raises(OSError, match="No space left"):
        retry(failing(errno.ENOSPC, 1), "writing x")
    assert not pauses


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EIO, "x"), errno.EIO),
        (ValueError("OUT_OF_RANGE: Failed to write [os_error_code='27']"), errno.EFBIG),
        (ValueError('NOT_FOUND: Error reading local file "x"'), errno.ENOENT),
        (RuntimeError("open() failed: Stale file handle; opening /x"), errno.ESTALE),
        (RuntimeError("write() failed: No space left on device"), errno.ENOSPC),
    ],
)
def test_errors_of_libraries(error, number):
    assert as_os_error(error).errno == number


def test_another_error_is_none_of_the_system():
    assert as_os_error(ValueError("shapes differ")) is None
