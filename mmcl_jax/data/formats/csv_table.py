"""CSV tables that come with recordings: rows with their line, labels declared in the header."""

import csv
import itertools
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mmcl_jax.data.targets.labels import DEMOGRAPHICS, DISEASES, PHENOTYPES, Label, limits


class Row(NamedTuple):
    """One row.

    Attributes:
        line: where it ends in the file, counted from 1.
        cells: text by column, without spaces around it.
        problem: why the row cannot be used; '' where it can.
    """

    line: int
    cells: Mapping[str, str]
    problem: str


class CsvTable:
    """A CSV file with a header line; iterating reads it from the start, row by row.

    Bytes that are not UTF-8 are kept as Python keeps those of file names.

    Args:
        path: the file.
        required: columns that it must have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, a column is missing or occurs twice.
    """

    def __init__(self, path: str | os.PathLike, required: Sequence[str]):
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{self.path} is absent; expected a CSV file with the columns {', '.join(required)}"
            )
        _, header = next(self._lines(), (0, []))
        self.columns = tuple(name.strip() for name in header)
        if missing := [name for name in required if name not in self.columns]:
            raise ValueError(
                f"{self.path}: columns {', '.join(missing)} are missing; found "
                f"{', '.join(self.columns) or 'an empty file'} (a comma separates columns)"
            )
        if repeated := sorted({n for n in self.columns if self.columns.count(n) > 1}):
            raise ValueError(f"{self.path}: columns {', '.join(repeated)} occur more than once")

    def __iter__(self) -> Iterator[Row]:
        width = len(self.columns)
        for line, cells in itertools.islice(self._lines(), 1, None):
            if not cells:  # an empty line
                continue
            problem = ""
            if len(cells) != width:
                problem = f"{len(cells)} cells, the header line has {width}"
                cells = [*cells, *[""] * width][:width]
            yield Row(line, dict(zip(self.columns, map(str.strip, cells), strict=True)), problem)

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        with open(self.path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.reader(file)
            while True:
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    raise ValueError(f"{self.path}, line {reader.line_num}: {error}") from error
                if cells is None:
                    return
                yield reader.line_num, cells


# A missing value, in lower case.
MISSING = ("", "na", "n/a", "nan")


def number(cells: Mapping[str, str], name: str) -> float:
    """The value of a cell, NaN when it is empty, NA or NaN.

    Raises:
        ValueError: it is no finite number.
    """
    text = cells[name]
    if text.lower() in MISSING:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} is {text!r}, expected a number, or nothing when it is missing")
    return value


def integer(cells: Mapping[str, str], name: str) -> int:
    """The value of a cell such as '7' or '7.0'. Raises ValueError when it is none."""
    try:
        value = number(cells, name)
    except ValueError:
        value = math.nan
    if not value.is_integer():  # NaN neither
        raise ValueError(f"{name} is {cells[name]!r}, expected an integer")
    return int(value)


def file_below(cells: Mapping[str, str], name: str) -> str:
    """A cell that names a file below some folder. Raises ValueError when it is outside."""
    file = cells[name]
    path = pathlib.PurePosixPath(file)
    if not file or path.is_absolute() or ".." in path.parts or "\0" in file:
        raise ValueError(f"{name} is {file!r}, expected the path of a file below the input folder")
    return file


KNOWN_LABELS = DISEASES + PHENOTYPES + DEMOGRAPHICS


def declared_label(path: str | os.PathLike, column: str) -> Label:
    """The label of a column: a known one by name, or 'name:binary' or 'name:regression:unit'.

    Raises:
        ValueError: the column is neither; the message says what to write.
    """
    for label in KNOWN_LABELS:
        if label.name == column:
            return label
    name, *rest = (part.strip() for part in column.split(":"))
    if not name or not 1 <= len(rest) <= 2 or rest[0] not in ("binary", "regression"):
        raise ValueError(
            f"{path}: column {column!r} is no known label; remove it, or declare it in the header "
            f"line as {name or 'name'}:binary or {name or 'name'}:regression:unit"
        )
    return Label(name, rest[0], "table", *rest[1:])


def truth(cells: Mapping[str, str], name: str) -> float:
    """1 or 0 for a cell such as '1' or 'True', NaN when it is missing.

    Raises:
        ValueError: it is neither.
    """
    text = cells[name].lower()
    value = float(text == "true") if text in ("true", "false") else number(cells, name)
    if value not in (0, 1) and not math.isnan(value):
        raise ValueError(f"{name} is {cells[name]!r}, expected 0 or 1")
    return value


def label_values(cells: Mapping[str, str], labels: Mapping[str, Label]) -> dict[str, float]:
    """The labels of a row that are known. Raises ValueError naming a value that is none.

    Args:
        labels: by column.
    """
    values = {}
    for column, label in labels.items():
        value = (truth if label.kind == "binary" else number)(cells, column)
        low, high = limits(label)
        if value < low or value > high:
            raise ValueError(
                f"{column} is {cells[column]!r}, expected {low:g} to {high:g} {label.unit}".rstrip()
            )
        if not math.isnan(value):
            values[label.name] = value
    return values
