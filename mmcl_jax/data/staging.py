"""A folder that appears under its name only when it is complete."""

import contextlib
import os
import pathlib
import shutil
import socket
import time
from collections.abc import Iterator

_ABANDONED_AFTER = 600.0  # seconds without a change


@contextlib.contextmanager
def staged_folder(
    output: pathlib.Path, *, overwrite: bool = False, marker: str
) -> Iterator[pathlib.Path]:
    """Yields `<output>.incomplete-<host>-<process>` and renames it to `output` at the end.

    The folder is removed when the block raises. What a killed process left behind is removed by
    the next one.

    Args:
        output: final name; may exist as an empty folder.
        overwrite: replace a folder of this name, provided that it holds a file called `marker`.
        marker: name of a file that tells a folder of our kind from any other.

    Raises:
        FileExistsError: `output` exists, or another process is writing it at this moment.
    """
    output = pathlib.Path(os.path.abspath(output))
    _check_free(output, overwrite, marker)
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(output)
    folder = output.with_name(f"{output.name}.incomplete-{socket.gethostname()}-{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
        _check_free(output, overwrite, marker)
        if output.exists():
            # Not among the abandoned ones: a kill before the next line must not cost both.
            former = output.with_name(f"{output.name}.replaced-{os.getpid()}")
            output.rename(former)
            folder.rename(output)
            shutil.rmtree(former)
        else:
            folder.rename(output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _check_free(output: pathlib.Path, overwrite: bool, marker: str) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / marker).is_file():
        raise FileExistsError(
            f"{output} exists and is something else (it holds no {marker}); choose another output"
        )
    if not overwrite:
        raise FileExistsError(f"{output} exists; choose another output, or --overwrite to replace")


def _remove_abandoned(output: pathlib.Path) -> None:
    for folder in output.parent.glob(f"{_literal(output.name)}.incomplete-*"):
        if _in_use(folder):
            raise FileExistsError(
                f"{folder} was changed less than {_ABANDONED_AFTER / 60:.0f} minutes ago: another "
                f"process is writing {output}. Wait for it, or remove that folder"
            )
        shutil.rmtree(folder, ignore_errors=True)


def _in_use(folder: pathlib.Path) -> bool:
    """True where a process of this host works on the folder, or may do so on another host."""
    host, _, process = folder.name.partition(".incomplete-")[2].rpartition("-")
    if host == socket.gethostname() and process.isdigit() and not _alive(int(process)):
        return False
    times = [entry.stat().st_mtime for entry in (folder, *folder.iterdir())]
    return time.time() - max(times) < _ABANDONED_AFTER


def _alive(process: int) -> bool:
    # A restarted container hands out the same numbers, so our own number is a former process.
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _literal(name: str) -> str:
    """The name with the wildcards of `glob` switched off."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
