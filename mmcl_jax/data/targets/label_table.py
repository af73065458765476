"""A user's CSV of labels: which columns are labels of which kind, and what each row says.

Kinds of columns:

    binary      0 or 1, also true and false
    regression  a number
    multiclass  the name of one class
    multilabel  names of all that apply, as 'A;B', '-' for none; each becomes a binary label

An empty cell, NA and nan are missing values.
"""

import argparse
import collections
import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from mmcl_jax.data.formats.csv_table import KNOWN_LABELS, MISSING, CsvTable, Row
from mmcl_jax.data.subject import SPLITS, assign_split
from mmcl_jax.data.targets.labels import Label, limits

KINDS = ("binary", "regression", "multiclass", "multilabel")


@dataclasses.dataclass(frozen=True)
class Column:
    """A declared column.

    Attributes:
        name: in the header line.
        kind: one of `KINDS`.
        unit: of a regression column; '' for that of the known label of this name, or none.
        classes: of a multi-class column, or values of a multi-label one; () for those that occur.
    """

    name: str
    kind: str
    unit: str = ""
    classes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class LabelTable:
    """The rows of a table in their order; `refusals` says which cannot be used, and why.

    Attributes:
        labels: in the order of the declared columns.
        values: in the labels' own units, NaN where missing.
        files: cell of the column that names a file, '' without one.
        assigned: whether the split of a row comes from `assign_split`.
        remarks: what deserves a look, for people.
    """

    labels: tuple[Label, ...]
    records: list[str]
    subjects: list[str]
    splits: list[str]
    files: list[str]
    values: Float32[np.ndarray, "N K"]
    refusals: Mapping[int, str]
    assigned: list[bool]
    remarks: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that declare columns."""
    for kind, form, text in (
        ("binary", "A,B", "columns that hold 0 or 1"),
        ("regression", "A:UNIT,B:UNIT", "columns that hold numbers; known labels have their unit"),
        ("multiclass", "A,B:X;Y;Z", "columns that hold one of several classes; after the colon the "
         "classes in their order, default: those that occur, sorted"),
        ("multilabel", "A,B:X;Y;Z", "columns that hold all that apply, as X;Y, or - for none; each "
         "becomes a binary label"),
    ):  # fmt: skip
        parser.add_argument(f"--{kind}", default="", metavar=form, help=text)


def columns(options: Mapping[str, str]) -> tuple[Column, ...]:
    """Columns by the text of each option. Raises ValueError naming what cannot be read."""
    found = []
    for kind in KINDS:
        for part in filter(None, (part.strip() for part in options.get(kind, "").split(","))):
            name, colon, extra = (text.strip() for text in part.partition(":"))
            if not name or bool(colon) != bool(extra) or (extra and kind == "binary"):
                raise ValueError(f"--{kind}: {part!r} cannot be read as a column")
            classes = tuple(text.strip() for text in extra.split(";"))
            found.append(
                Column(name, kind, unit=extra)
                if kind == "regression"
                else Column(name, kind, classes=classes if extra else ())
            )
    names = [column.name for column in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"columns {', '.join(repeated)} are declared more than once")
    return tuple(found)


def read(
    path: str | os.PathLike, declared: Sequence[Column], *, file_column: str = "", seed: int = 0
) -> LabelTable:
    """Reads a table with the column `record`, and `subject` and `split` where it has them.

    A row that cannot be used is refused with its line. Where more than half of the values of a
    column cannot be of its kind, the column is another one.

    Args:
        file_column: column that names the file of a row.
        seed: of the splits, where the table names none.

    Raises:
        FileNotFoundError: the table is absent.
        ValueError: a column is missing or is of another kind, or a subject is in two splits.
    """
    needed = ["record", *([file_column] if file_column else []), *(c.name for c in declared)]
    table = CsvTable(path, needed)
    path = table.path
    rows = list(table)
    if not rows:
        raise ValueError(f"{path}: no row below the header line")
    refusals: dict[int, str] = {}
    labels: list[Label] = []
    parts: list[np.ndarray] = []
    for column in declared:
        found, values, problems = _read_column(path, column, rows)
        labels += found
        parts.append(values)
        for position, problem in problems.items():
            refusals.setdefault(position, problem)
    if file_column:
        for position, row in enumerate(rows):
            if not row.cells[file_column]:
                refusals.setdefault(position, f"the cell under {file_column} is empty")
    _check_names(path, labels)
    splits = _identities(table, rows, refusals, seed)
    used = {"record", "subject", "split", *needed}
    remarks = []
    if unused := [name for name in table.columns if name not in used]:
        remarks.append(f"columns that are not declared and not used: {', '.join(unused)}")
    if "subject" not in table.columns:
        remarks.append("no column subject: every record counts as a person of its own")
    values = np.concatenate([np.empty((len(rows), 0)), *parts], axis=1).astype(np.float32)
    usable = np.array([position not in refusals for position in range(len(rows))])
    remarks += _label_remarks(labels, values[usable], np.array(splits)[usable])
    return LabelTable(
        labels=tuple(labels),
        records=[row.cells["record"] or f"line {row.line}" for row in rows],
        subjects=[row.cells.get("subject") or row.cells["record"] for row in rows],
        splits=splits,
        files=[row.cells[file_column] if file_column else "" for row in rows],
        values=values,
        refusals={
            position: f"{path.name}, line {rows[position].line}: {problem}"
            for position, problem in refusals.items()
        },
        assigned=[not row.cells.get("split") for row in rows],
        remarks=tuple(remarks),
    )


def unlabelled(count: int, seed: int = 0) -> LabelTable:
    """A table of `count` records without labels, called by their row."""
    records = [f"row{row:06d}" for row in range(count)]
    return LabelTable(
        labels=(),
        records=records,
        subjects=records,
        splits=[assign_split(record, seed) for record in records],
        files=[""] * count,
        values=np.empty((count, 0), np.float32),
        refusals={},
        assigned=[True] * count,
        remarks=("no table of labels: every record counts as a person of its own",),
    )


_TRUTH = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}
_NONE = "-"
_MOST_CLASSES = 100


def _read_column(
    path: pathlib.Path, column: Column, rows: Sequence[Row]
) -> tuple[tuple[Label, ...], np.ndarray, dict[int, str]]:
    """Labels, values [N, their number], and the problem of each row whose value is none."""
    cells = {
        position: row.cells[column.name]
        for position, row in enumerate(rows)
        if not row.problem and row.cells[column.name].lower() not in MISSING
    }
    labels, read, expected = _reader(path, column, cells.values())
    values = np.full((len(rows), len(labels)), np.nan)
    problems = {}
    for position, text in cells.items():
        try:
            values[position] = read(text)
        except (ValueError, KeyError):
            problems[position] = f"{column.name} is {text[:60]!r}, expected {expected}"
    if len(problems) > len(cells) / 2:
        position, problem = next(iter(problems.items()))
        raise ValueError(
            f"{path}: column {column.name} is declared {column.kind}, but {len(problems):,} of its "
            f"{len(cells):,} values cannot be; line {rows[position].line}: {problem}. Are columns "
            "swapped?"
        )
    return labels, values, problems


def _reader(
    path: pathlib.Path, column: Column, cells: Iterable[str]
) -> tuple[tuple[Label, ...], Callable[[str], Any], str]:
    """Labels of a column, what reads a cell of it, and what it expects."""
    if column.kind == "binary":
        return (_label(path, column),), lambda text: _TRUTH[text.lower()], "0 or 1"
    if column.kind == "regression":
        label = _label(path, column)
        low, high = limits(label)
        expected = "a number, or nothing when it is missing"
        if math.isfinite(high):
            expected = f"a number from {low:g} to {high:g} {label.unit}, or nothing"

        def between(text: str) -> float:
            value = float(text)
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(text)
            return value

        return (label,), between, expected
    if column.kind == "multiclass":
        names = column.classes or _sorted_classes(set(cells))
        _check_count(path, column, names, at_least=2)
        label = Label(column.name, "multiclass", column.name, classes=tuple(map(_tidy, names)))
        number = {name: float(place) for place, name in enumerate(label.classes)}
        return (label,), lambda text: number[_tidy(text)], f"one of {_some(label.classes)}"
    names = column.classes or tuple(sorted({v for text in cells for v in _members(text)}))
    _check_count(path, column, names, at_least=1)
    labels = tuple(Label(name, "binary", column.name) for name in names)

    def members(text: str) -> list[float]:
        present = _members(text)
        if unknown := present - set(names):
            raise ValueError(unknown)
        return [float(name in present) for name in names]

    return labels, members, f"some of {_some(names)} separated by ;, or - for none"


def _label(path: pathlib.Path, column: Column) -> Label:
    for known in KNOWN_LABELS:
        if known.name == column.name and known.kind == column.kind:
            if column.unit not in ("", known.unit):
                raise ValueError(
                    f"{path}: column {known.name} is known in {known.unit}, found "
                    f"{column.unit!r}; convert it or give the column another name"
                )
            return known
    return Label(column.name, column.kind, "table", column.unit)


def _members(text: str) -> set[str]:
    return {part.strip() for part in text.split(";") if part.strip() not in ("", _NONE)}


def _sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Classes that occur, numbers by value, else by name."""
    names = sorted({_tidy(name) for name in names})
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(names)


def _tidy(name: str) -> str:
    """'3.0', as tables with missing values write the number of a class, is '3'."""
    whole, dot, rest = name.partition(".")
    return whole if dot and rest.strip("0") == "" and whole.lstrip("-").isdigit() else name


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _check_count(path: pathlib.Path, column: Column, names: Sequence[str], at_least: int) -> None:
    if not at_least <= len(names) <= _MOST_CLASSES:
        hint = "; is it a number? then declare it --regression" if len(names) > 1 else ""
        raise ValueError(
            f"{path}: column {column.name} is declared {column.kind} and has {len(names):,} "
            f"different values, expected {at_least} to {_MOST_CLASSES}{hint}"
        )


def _check_names(path: pathlib.Path, labels: Sequence[Label]) -> None:
    counts = collections.Counter(label.name for label in labels)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise ValueError(
            f"{path}: several labels are called {', '.join(repeated)}; values of multi-label "
            "columns are labels, so they need names of their own"
        )


def _identities(
    table: CsvTable, rows: Sequence[Row], refusals: dict[int, str], seed: int
) -> list[str]:
    """Split of every row; adds the rows without a usable name or split to `refusals`.

    Raises:
        ValueError: a subject is in two splits.
    """
    lines: dict[str, int] = {}
    splits, split_of = [], {}
    for position, row in enumerate(rows):
        record, problem = row.cells["record"], row.problem
        split = row.cells.get("split", "")
        if not problem and not record:
            problem = "the cell under record is empty"
        elif not problem and lines.setdefault(record, row.line) != row.line:
            problem = f"record {record} is on line {lines[record]} already"
        elif not problem and split not in (*SPLITS, ""):
            problem = f"split is {split!r}, expected one of {', '.join(SPLITS)}, or nothing"
        if problem:
            refusals[position] = problem
        subject = row.cells.get("subject") or record
        splits.append("" if position in refusals else split or assign_split(subject, seed))
        if splits[-1] and split_of.setdefault(subject, splits[-1]) != splits[-1]:
            raise ValueError(
                f"{table.path}, line {row.line}: subject {subject} is in {splits[-1]} and in "
                f"{split_of[subject]}; give all records of a person the same split"
            )
    return splits


def _label_remarks(labels: Sequence[Label], values: np.ndarray, splits: np.ndarray) -> list[str]:
    """Labels that a model cannot learn from this table."""
    remarks = []
    train = splits == "train"
    for label, column in zip(labels, values.T, strict=True):
        known = ~np.isnan(column)
        found = np.unique(column[known & train])
        if label.kind == "multiclass":
            for number, name in enumerate(label.classes):
                elsewhere = np.unique(splits[column == number])
                if number not in found and len(elsewhere):
                    remarks.append(
                        f"{label.name}: class {name} occurs in {' and '.join(elsewhere)} only, so "
                        "no model can learn it"
                    )
                elif number not in found:
                    remarks.append(f"{label.name}: class {name} does not occur")
        elif len(found) == 0:
            remarks.append(f"{label.name}: no known value in the training split")
        elif len(found) == 1:
            remarks.append(f"{label.name}: all known values of the training split are {found[0]:g}")
        elif label.kind == "regression" and set(found) == {0.0, 1.0}:
            remarks.append(f"{label.name}: declared regression, but holds only 0 and 1")
    return remarks
