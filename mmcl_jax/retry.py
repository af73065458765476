"""Trying again where a network file system may come back.

A server that restarts or a mount that is renewed answers for a while with errors that say nothing
about the file. What is asked for then is asked again, with growing pauses, for about two minutes.
"""

import errno
import os
import re
import sys
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Not here: errors that stay, such as a full disk or a missing permission.
TRANSIENT = (
    errno.ESTALE, errno.EIO, errno.ENOENT, errno.ENOTCONN, errno.ETIMEDOUT, errno.ESHUTDOWN,
)  # fmt: skip

PATIENCE = 120.0  # seconds over all pauses
FIRST_PAUSE = 0.5  # seconds; doubles from one attempt to the next
LONGEST_PAUSE = 15.0  # seconds


def retry(function: Callable[[], T], what: str, *, patience: float | None = None) -> T:
    """`function()`, called again after an `OSError` of `TRANSIENT`.

    It must be one that can be called twice. A missing file counts as transient, so `function` is
    to read only files that are known to exist, or to write into folders that are.

    Args:
        what: what is tried, for the line on stderr that each failure gives.
        patience: seconds; `PATIENCE` by default, 0 tries once.

    Raises:
        OSError: the last one, when the patience is at its end.
    """
    left = PATIENCE if patience is None else patience
    pause = FIRST_PAUSE
    while True:
        try:
            return function()
        except OSError as error:
            if error.errno not in TRANSIENT or left <= 0:
                if error.filename is None and error.errno:
                    # Of a file that is open the system does not say which one it is.
                    raise OSError(error.errno, f"{what}: {error.strerror}") from error
                raise
            pause = min(pause, LONGEST_PAUSE, left)
            say(f"{what}: {error}; trying again in {pause:.3g} s (for {left:.3g} s more)")
        time.sleep(pause)
        left -= pause
        pause *= 2


def say(message: str) -> None:
    """A line on stderr, where the log of a run is."""
    print(f"note: {message}", file=sys.stderr, flush=True)


def as_os_error(error: BaseException) -> OSError | None:
    """The error of the system behind an exception of a library; None where there is none.

    TensorStore and ArrayRecord raise ValueError and RuntimeError, with the system's words or its
    number in the text.
    """
    if isinstance(error, OSError):
        return error
    text = str(error)
    if found := re.search(r"os_error_code='(\d+)'", text):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    if text.startswith("NOT_FOUND"):
        return OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    for number in (*TRANSIENT, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
        if os.strerror(number) in text:
            return OSError(number, os.strerror(number))
    return None
