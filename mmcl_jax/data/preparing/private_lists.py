"""What a cohort with hashed names must not hold: lists of names, files and reasons.

They are in a folder of their own beside the key, FILE.names/<cohort>/, readable by its owner alone:

    source.json   the cohort that they belong to, its source, and what that was told
    link.csv      the records and people of the source with the names that the cohort gives them
    refused.csv   as in any other cohort, with names, files and reasons
    flagged.csv   likewise
    error.txt     what stopped a preparation
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from mmcl_jax.data.preparing.admission import Admission, CohortError
from mmcl_jax.data.preparing.loading import Refused
from mmcl_jax.data.preparing.preparation_report import Report, write_rows
from mmcl_jax.data.subject import Source

FOLDER_SUFFIX = ".names"
WITHHELD = "not told here: reasons may name people and files"


class Names(Protocol):
    """Gives the names that the cohort has."""

    def record(self, name: str) -> str: ...

    def subject(self, name: str) -> str: ...


@dataclasses.dataclass(frozen=True)
class PrivateLists:
    """The lists of one cohort.

    Attributes:
        folder: where they are.
    """

    folder: pathlib.Path

    def claim(self, output: pathlib.Path) -> None:
        """Makes the folder. Raises FileExistsError where it is that of another cohort."""
        file = self.folder / _SOURCE
        if file.exists() and _cohort(file) != str(output):
            raise FileExistsError(
                f"{self.folder} has the lists of another cohort of this name, {_cohort(file)}; "
                "choose another name for the output, or move that folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.folder, self.folder.parent):
            folder.chmod(0o700)
        if not file.exists():
            self._write(_SOURCE, json.dumps({"cohort": str(output)}))

    def write(self, source: Source, report: Report, admission: Admission, names: Names) -> None:
        """Writes all lists.

        Args:
            source: as it was before its names were hashed.
            report: with the names of the source.
            names: gives those of the cohort.

        Raises:
            CohortError: two names have become one.
        """
        used = [entry for entries in admission.used.values() for entry in entries]
        _check_different((entry.record for entry in used), names.record)
        _check_different((entry.subject for entry in used), names.subject)
        origin = {"cohort": str(report.path.resolve()), "source": source.name}
        self._write(_SOURCE, json.dumps(origin | {"parameters": dict(source.parameters)}, indent=1))
        rows = [
            (e.record, e.subject, names.record(e.record), names.subject(e.subject), e.split, e.file)
            for e in sorted(used, key=lambda entry: entry.record)
        ]
        header = ("record", "subject", "record in cohort", "subject in cohort", "split", "file")
        self._write_rows("link.csv", header, rows)
        rows = [(names.record(e.record), e.record, e.file, e.reason) for e in report.refused]
        self._write_rows("refused.csv", ("record in cohort", "record", "file", "reason"), rows)
        rows = [(names.record(record), record, remark) for record, remark in report.flagged]
        self._write_rows("flagged.csv", ("record in cohort", "record", "remark"), rows)
        (self.folder / _ERROR).unlink(missing_ok=True)

    def write_error(self, text: str) -> pathlib.Path:
        """Keeps what an error says; returns its file."""
        self._write(_ERROR, text)
        return self.folder / _ERROR

    def _write_rows(self, name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        with self._open(name) as stream:
            write_rows(stream, [header, *rows])

    def _write(self, name: str, text: str) -> None:
        with self._open(name) as stream:
            stream.write(text)

    def _open(self, name: str):
        def private(path: str, flags: int) -> int:
            return os.open(path, flags, 0o600)

        return open(
            self.folder / name,
            "w",
            newline="",
            encoding="utf-8",
            errors="backslashreplace",
            opener=private,
        )


def without_names(report: Report, names: Names) -> Report:
    """The report with the names of the cohort, without files and reasons, remarks by kind alone.

    The order of the source, which may be that of its names, is lost.
    """
    refused = sorted(names.record(entry.record) for entry in report.refused)
    flagged = sorted((names.record(r), text.partition(": ")[0]) for r, text in report.flagged)
    return dataclasses.replace(
        report,
        refused=tuple(Refused(record, "", WITHHELD) for record in refused),
        flagged=tuple(flagged),
    )


_SOURCE = "source.json"
_ERROR = "error.txt"


def _cohort(file: pathlib.Path) -> Any:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return content.get("cohort") if isinstance(content, Mapping) else None


def _check_different(names: Iterable[str], hashed: Callable[[str], str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(hashed(name), name)
        if other != name:
            raise CohortError(f"{other} and {name} have the same hash; use another key")
