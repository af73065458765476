"""Names for a cohort that is to be shared: keyed hashes, which only the holder of the key can make.

`python -m mmcl_jax.prepare ... --hash-ids FILE` writes `r<hash>` and `s<hash>` for the records and
people of the source: HMAC-SHA256 (RFC 2104) with the key in FILE, of which 80 bits are kept. The
same key gives the same names in every cohort. Without it nobody can compute them from a list of
participant numbers, which a hash alone would allow. The records come in the order of their hashed
names: sources are sorted by name, so that the place of a record would tell whose it is.

What names people or files lies beside the key, in FILE.names/<cohort>/ (see `private_lists.py`).
"""

import contextlib
import dataclasses
import hashlib
import hmac
import logging
import os
import pathlib
import secrets
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from mmcl_jax.data.cohort_format import MARKER
from mmcl_jax.data.preparing.loading import printable, without_tasks
from mmcl_jax.data.preparing.private_lists import FOLDER_SUFFIX, PrivateLists
from mmcl_jax.data.subject import Source, Subject


@dataclasses.dataclass(frozen=True)
class HashedIds:
    """The names that a key gives. Picklable, and as secret as the key.

    Attributes:
        key: 32 bytes.
        lists: what is written beside the key.
    """

    key: bytes = dataclasses.field(repr=False)
    lists: PrivateLists

    def record(self, name: str) -> str:
        """Name of a record in the cohort; the letter keeps tables from taking it for a number."""
        return f"r{self._hash('record', name)}"

    def subject(self, name: str) -> str:
        """Name of a person in the cohort."""
        return f"s{self._hash('subject', name)}"

    @property
    def fingerprint(self) -> str:
        """Tells keys apart, and says nothing about them."""
        return self._hash("key", "")

    @contextlib.contextmanager
    def errors_beside_the_key(self) -> Iterator[None]:
        """Errors name records and files: what they say goes to error.txt beside the key.

        Raises:
            ValueError: in place of any error but those that say that the output is taken or that a
                library is not installed.
        """
        try:
            with _quiet():
                yield
        except (FileExistsError, ImportError):
            raise
        except Exception as error:
            file = self.lists.write_error(traceback.format_exc())
            raise ValueError(
                f"stopped by {type(error).__name__}; what it says may name people or files, so it "
                f"is in {file}"
            ) from None

    def _hash(self, kind: str, name: str) -> str:
        digest = hmac.digest(self.key, f"{kind}\0{name}".encode(), hashlib.sha256)
        return digest.hex()[:_DIGITS]


class HashedSource:
    """A source whose records are stored under hashed names.

    Its subjects keep their names until they are written, because the lists beside the key, and
    what is checked between records, need them. Splits are those that the source says.

    Attributes: see `Source`. Of the parameters only numbers stay: text may name people and files.
    """

    def __init__(self, source: Source, ids: HashedIds):
        self.name, self.labels, self.settings = source.name, source.labels, source.settings
        self.parameters = _numbers(source.parameters) | {"ids": f"hashed, key {ids.fingerprint}"}
        self.tasks = source.tasks
        self._source, self._ids = without_tasks(source), ids

    def load(self, task: Any) -> Subject:
        """As `Source.load`."""
        with _quiet():
            subject = self._source.load(task)
        record, person = printable(subject.record), printable(subject.subject)
        return dataclasses.replace(
            subject, stored_as=(self._ids.record(record), self._ids.subject(person))
        )


def open_key(path: str | os.PathLike, output: str | os.PathLike) -> HashedIds:
    """Reads the key of a file; makes one, readable by its owner alone, where there is none.

    Args:
        output: folder of the cohort.

    Raises:
        FileExistsError: another cohort of this name has its lists beside the key.
        ValueError: the file lies in a cohort or where the output will be, or holds something else.
        OSError: it cannot be read or written.
    """
    path, output = pathlib.Path(path).expanduser(), pathlib.Path(output).expanduser()
    inside = path.resolve().parents
    if output.resolve() in inside or any((folder / MARKER).exists() for folder in inside):
        raise ValueError(
            f"--hash-ids {path} lies in the folder of a cohort, and whoever has both can undo the "
            "hashing; keep the key elsewhere"
        )
    # Before a key is made that nobody needs.
    lists = PrivateLists(path.with_name(f"{path.name}{FOLDER_SUFFIX}") / output.resolve().name)
    lists.claim(output.resolve())
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(f"{secrets.token_hex(_KEY_BYTES)}\n")
        print(f"made a new key, {path}: keep it secret, and keep it", file=sys.stderr)
    if path.stat().st_mode & 0o077 and os.name == "posix":
        print(f"note: others may read the key {path}; chmod 600 {path}", file=sys.stderr)
    return HashedIds(_read_key(path), lists)


_KEY_BYTES = 32
# 80 bits: among a million names, two are the same with a probability of 4e-13.
_DIGITS = 20


def _read_key(path: pathlib.Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError:  # also UnicodeDecodeError
        key = b""
    if len(key) != _KEY_BYTES:
        raise ValueError(
            f"--hash-ids {path}: not a key, which is {2 * _KEY_BYTES} hexadecimal digits. Name the "
            "file of a key, or one that does not exist yet"
        )
    return key


def _numbers(value: Any) -> Any:
    """The numbers of nested JSON; what else is in it is left out."""
    if isinstance(value, Mapping):
        found = {name: _numbers(entry) for name, entry in value.items()}
        return {name: entry for name, entry in found.items() if entry not in (None, {}, [])}
    if isinstance(value, list | tuple):
        return [entry for entry in map(_numbers, value) if entry not in (None, {}, [])]
    return value if isinstance(value, bool | int | float) else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and logs of libraries, which quote what they read."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
