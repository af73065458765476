"""Checksums of a folder: a list of its files that tells later whether they are still the same."""

import hashlib
import json
import pathlib

FILE = "manifest.json"


def write(folder: pathlib.Path) -> None:
    """Writes `manifest.json` into a folder: bytes and SHA-256 of every file below it."""
    files = {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / FILE
    }
    (folder / FILE).write_text(json.dumps({"files": files}, indent=1) + "\n")


def problem(folder: pathlib.Path) -> str:
    """What is wrong with the files of a folder; '' where nothing is.

    Raises:
        OSError: a file is there and cannot be read.
    """
    if not (folder / FILE).is_file():
        # Raises where the whole folder has gone, which says nothing about its files.
        folder.stat()
        return f"{FILE} is missing"
    try:
        files = json.loads((folder / FILE).read_bytes())["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{FILE} is damaged"
    for name, (size, digest) in expected.items():
        file = folder / name
        if not file.is_file():
            # Raises where the whole folder has gone, which says nothing about its files.
            (folder / FILE).stat()
            return f"{name} is missing"
        if (found := file.stat().st_size) != size:
            return f"{name} has {found:,} bytes, expected {size:,}"
        if _sha256(file) != digest:
            return f"{name} does not have its checksum"
    return ""


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
