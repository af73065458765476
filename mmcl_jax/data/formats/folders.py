"""Files of a folder and of the folders in it."""

import os
import pathlib
from collections.abc import Iterator


def files_below(folder: str | os.PathLike, suffixes: tuple[str, ...]) -> Iterator[pathlib.Path]:
    """Paths of the files at any depth with one of the suffixes, in lower case, whatever theirs is.

    Links are followed, a folder that is reached twice is taken once. A folder's files come sorted
    and before those of the folders in it, which are sorted too.

    Raises:
        OSError: a folder cannot be read.
    """
    seen = set()
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        # A link may lead back to a folder above it.
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(suffixes):
                yield pathlib.Path(parent, name)


def _raise(error: OSError) -> None:
    raise error
