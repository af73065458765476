"""UK Biobank's main table, as CSV or Parquet, read row by row and only where it is needed.

The table has a row per participant and a column per field, instance (visit) and array index, named
`31-0.0` or `f.31.0.0` by the older exports and `p31` or `p21003_i2` by the Research Analysis
Platform. There are half a million rows and often thousands of columns, so the columns asked for are
read in blocks and the rows of other participants are dropped at once.
"""

import ast
import collections
import csv
import datetime
import io
import math
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

try:
    import pyarrow
    import pyarrow.compute
    import pyarrow.csv
    import pyarrow.parquet
except ImportError as error:
    raise ImportError(
        "the table of UK Biobank needs pyarrow: pip install 'mmcl_jax[ukb]'"
    ) from error


class Column(NamedTuple):
    """What the name of a column says: field, instance and array index, 0 where it has none.

    `joined`: the name has no array index, so that a cell may hold a whole array.
    """

    field: int
    instance: int
    array: int
    joined: bool


class Row(NamedTuple):
    """One participant.

    Attributes:
        eid: the participant.
        cells: the array of a (field, instance): texts, '' where a value between others is missing.
            A field without any value is absent.
        problem: why the row cannot be used; '' where it can.
    """

    eid: str
    cells: Mapping[tuple[int, int], Sequence[str]]
    problem: str = ""


def parse_name(name: str) -> Column | None:
    """What a column is called, None when the name is not one of a field."""
    match = _OLD_NAME.fullmatch(name) or _PLATFORM_NAME.fullmatch(name)
    if match is None:
        return None
    field, instance, array = (match[key] for key in ("field", "instance", "array"))
    return Column(int(field), int(instance or 0), int(array or 0), joined=array is None)


class UkbTable:
    """The table of a file: which fields it has, and its rows.

    Args:
        path: `.parquet`, or text with commas or tabs (`.csv`, `.tsv`, `.tab`, `.txt`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another kind, unreadable, or without a column of participants.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is absent; expected UK Biobank's main table")
        self._parquet = self.path.suffix.lower() == ".parquet"
        if not self._parquet and self.path.suffix.lower() not in _TEXT:
            raise ValueError(
                f"{self.path}: expected a name that ends in .parquet, {', '.join(_TEXT)}"
            )
        if self._parquet:
            names = _readable(self.path, lambda: pyarrow.parquet.read_schema(self.path).names)
        else:
            names, self._separator = _header(self.path)
        self._names = names
        self._eid = next((name for name in names if name in _EID_NAMES), "")
        if not self._eid:
            raise ValueError(
                f"{self.path}: no column {' or '.join(_EID_NAMES)} among its {len(names)} columns"
            )
        self._columns = {name: column for name in names if (column := parse_name(name))}

    def instances(self, field: int) -> set[int]:
        """The instances of a field that the table has columns for."""
        return {column.instance for column in self._columns.values() if column.field == field}

    def rows(
        self, fields: Collection[tuple[int, int]], participants: Collection[str]
    ) -> Iterator[Row]:
        """The rows of some participants with some fields, in the order of the file.

        Args:
            fields: pairs of field and instance; those that the table lacks give no cells.
            participants: wanted values of the column of participants.

        Raises:
            ValueError: a wanted column occurs twice, or the file is damaged.
        """
        columns = {name: column for name, column in self._columns.items() if column[:2] in fields}
        columns = dict(sorted(columns.items(), key=lambda item: item[1]))
        wanted = [self._eid, *columns]
        counts = collections.Counter(self._names)
        if repeated := [name for name in wanted if counts[name] > 1]:
            raise ValueError(f"{self.path}: columns that occur twice: {', '.join(repeated[:10])}")
        places: dict[tuple[int, int, int], str] = {}
        for name, column in columns.items():
            if (other := places.setdefault(column[:3], name)) != name:
                raise ValueError(f"{self.path}: columns {other} and {name} are the same")
        broken: list[str] = []
        batches = self._batches(wanted, broken)
        keep = pyarrow.array(sorted(participants), pyarrow.string())
        while (batch := _readable(self.path, lambda: next(batches, None))) is not None:
            eids = _readable(self.path, lambda batch=batch: _as_text(batch.column(self._eid)))
            mask = pyarrow.compute.is_in(eids, value_set=keep)
            kept = [batch.column(name).filter(mask).to_pylist() for name in columns]
            for position, eid in enumerate(eids.filter(mask).to_pylist()):
                values = [column[position] for column in kept]
                yield _row(eid, columns, values)
        wanted_eids = set(participants)
        for text in broken:
            yield from self._broken_row(text, wanted_eids)

    def _batches(self, names: list[str], broken: list[str]) -> Iterator[pyarrow.RecordBatch]:
        """The columns in blocks; text rows of another length go to `broken`."""
        if self._parquet:
            file = _readable(self.path, lambda: pyarrow.parquet.ParquetFile(self.path))
            yield from file.iter_batches(batch_size=_ROWS, columns=names)
            return

        def skip(row: pyarrow.csv.InvalidRow) -> str:
            broken.append(row.text)
            return "skip"

        reader = pyarrow.csv.open_csv(
            self.path,
            read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=self._separator, invalid_row_handler=skip
            ),
            # Bytes: a byte that is no UTF-8 concerns its own cell, not the whole file.
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=names,
                column_types=dict.fromkeys(names, pyarrow.binary()),
                strings_can_be_null=False,
            ),
        )
        with reader:
            yield from reader

    def _broken_row(self, text: str, participants: Collection[str]) -> Iterator[Row]:
        cells = next(csv.reader([text], delimiter=self._separator), [])
        position = self._names.index(self._eid)
        eid = cells[position].strip() if position < len(cells) else ""
        if eid in participants:
            yield Row(eid, {}, f"its row has {len(cells)} cells, expected {len(self._names)}")


_EID_NAMES = ("eid", "f.eid", "participant.eid")
_OLD_NAME = re.compile(r"(f\.|X)?(?P<field>\d+)[.-](?P<instance>\d+)\.(?P<array>\d+)")
_PLATFORM_NAME = re.compile(
    r"(participant\.)?p(?P<field>\d+)(_i(?P<instance>\d+))?(_a(?P<array>\d+))?"
)
_TEXT = (".csv", ".tsv", ".tab", ".txt")
_BLOCK = 4 * 2**20  # bytes of text, more than a row of the widest export
_ROWS = 4096
_MISSING = frozenset(("", "NA", "NaN", "nan", "None", "null"))
# A cell that lists an array: ["I10","I251"] or I10|I251.
_LIST = re.compile(r"\[.*\]", re.DOTALL)


def _readable(path: pathlib.Path, action):
    """The result of `action`, with what pyarrow raises for damaged files as one error."""
    try:
        return action()
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a readable table: {first}") from error


def _header(path: pathlib.Path) -> tuple[list[str], str]:
    """Names of the columns of a text file, and what separates them."""
    with open(path, "rb") as file:
        line = file.readline(_BLOCK)
    text = _readable(path, lambda: line.decode("utf-8-sig")).rstrip("\r\n")
    separator = "\t" if "\t" in text else ","
    names = next(csv.reader(io.StringIO(text), delimiter=separator), [])
    return names, separator


def _as_text(column: pyarrow.Array) -> pyarrow.Array:
    """Participants as text, whatever the type of their column."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pyarrow.types.is_floating(column.type):
        column = column.cast(pyarrow.int64())
    # Text of one participant that is no UTF-8 must not stop the others.
    options = pyarrow.compute.CastOptions(pyarrow.string(), allow_invalid_utf8=True)
    return pyarrow.compute.ascii_trim_whitespace(column.cast(options=options))


def _row(eid: str, columns: Mapping[str, Column], values: Sequence[Any]) -> Row:
    cells: dict[tuple[int, int], list[str]] = {}
    for (name, column), value in zip(columns.items(), values, strict=True):
        if value is None or value == b"" or value == "":
            continue
        if column.joined:
            try:
                array = _array(value)
            except ValueError as error:
                return Row(eid, {}, f"{name}: {error}")
        else:
            text = _text(value)
            array = [""] * column.array + [text] if text else []
        if any(array):
            known = cells.setdefault(column[:2], [])
            known += array[len(known) :]
    return Row(eid, cells)


def _array(value: Any) -> list[str]:
    """The texts of a cell that may hold a list."""
    if isinstance(value, list):
        return [_text(item) for item in value]
    text = _text(value)
    if _LIST.fullmatch(text):
        try:
            items = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"{text[:40]!r} is no readable list") from error
        return [_text(item) for item in items]
    return [_text(item) for item in text.split("|")] if text else []


def _text(value: Any) -> str:
    """A value as text, '' when it is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, datetime.datetime):
        value = value.date()
    text = str(value).strip()
    return "" if text in _MISSING else text
