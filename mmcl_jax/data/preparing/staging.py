"""A folder that appears under its name only when it is complete."""

import contextlib
import os
import pathlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator

_ABANDONED_AFTER = 120.0  # seconds without a change
_SIGN_OF_LIFE = 20.0  # seconds between two changes, at most


@contextlib.contextmanager
def staged_folder(
    output: pathlib.Path, *, overwrite: bool = False, marker: str, keep: str = ""
) -> Iterator[pathlib.Path]:
    """Yields `<output>.incomplete-<host>-<process>` and renames it to `output` at the end.

    When the block raises, the folder is removed, unless it holds what is worth keeping. What a
    process left behind, killed or not, is what the next one begins with.

    Args:
        output: final name; may exist as an empty folder.
        overwrite: replace a folder of this name, provided that it holds a file called `marker`.
        marker: name of a file that tells a folder of our kind from any other.
        keep: pattern of files that are worth keeping, relative to the folder; '' for none.

    Raises:
        FileExistsError: `output` exists, or another process is writing it at this moment.
    """
    output = pathlib.Path(os.path.abspath(output))
    _check_free(output, overwrite, marker)
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.with_name(f"{output.name}.incomplete-{socket.gethostname()}-{os.getpid()}")
    _take_over(output, folder, keep)
    try:
        with _signs_of_life(folder):
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
        if not _worth_keeping(folder, keep):
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


def _take_over(output: pathlib.Path, folder: pathlib.Path, keep: str) -> None:
    """Makes `folder`, from what another process has left where that is worth keeping."""
    # First, so that of two processes that begin together at least one sees the other.
    empty = not folder.exists()
    folder.mkdir(exist_ok=True)
    for found in output.parent.glob(f"{_literal(output.name)}.incomplete-*"):
        if found == folder:
            continue
        if _in_use(found):
            if empty:
                folder.rmdir()
            raise FileExistsError(
                f"{found} was changed less than {_ABANDONED_AFTER / 60:.0f} minutes ago: another "
                f"process is writing {output}. Wait for it, or remove that folder"
            )
        if empty and _worth_keeping(found, keep):
            folder.rmdir()
            found.rename(folder)
            empty = False
        else:
            shutil.rmtree(found, ignore_errors=True)


def _worth_keeping(folder: pathlib.Path, keep: str) -> bool:
    return bool(keep) and any(folder.glob(keep))


@contextlib.contextmanager
def _signs_of_life(folder: pathlib.Path) -> Iterator[None]:
    """Changes the time of the folder again and again, for processes of other hosts to see."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(_SIGN_OF_LIFE):
            with contextlib.suppress(OSError):
                os.utime(folder)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


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
