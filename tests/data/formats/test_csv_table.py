import math
import os

import pytest

from mmcl_jax.data.formats.csv_table import (
    CsvTable,
    declared_label,
    file_below,
    integer,
    label_values,
    number,
    truth,
)
from mmcl_jax.data.targets.labels import Label


def table(tmp_path, content, required=("a",)):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return CsvTable(path, required)


def test_rows_know_their_line_and_cells_lose_their_spaces(tmp_path):
    found = table(tmp_path, '\ufeffa, b\r\n1, x \r\n\r\n"two\nlines","say ""hi"", you"\r\n')
    assert found.columns == ("a", "b")
    rows = list(found)
    assert [(row.line, dict(row.cells), row.problem) for row in rows] == [
        (2, {"a": "1", "b": "x"}, ""),
        (5, {"a": "two\nlines", "b": 'say "hi", you'}, ""),
    ]
    assert list(found) == rows  # from the start again


def test_a_row_of_another_width_has_a_problem(tmp_path):
    short, long = table(tmp_path, "a,b\n1\n1,2,3\n")
    assert (short.cells, short.problem) == (
        {"a": "1", "b": ""},
        "1 cells, the header line has 2",
    )
    assert long.problem == "3 cells, the header line has 2"


def test_names_that_are_not_utf_8_stay_the_names_of_their_files(tmp_path):
    name = b"caf\xe9.dat"
    (row,) = table(tmp_path, b"a\n" + name + b"\n")
    assert os.fsencode(row.cells["a"]) == name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("b,c\n", r"t\.csv: columns a are missing; found b, c"),
        ("a;b\n1;2\n", r"columns a are missing; found a;b \(a comma separates columns\)"),
        ("", "columns a are missing; found an empty file"),
        ("a,b,a\n", "columns a occur more than once"),
    ],
)
def test_a_header_line_that_cannot_be_used(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        table(tmp_path, content)


def test_an_absent_file_and_an_endless_cell(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.csv is absent; .* columns a, b"):
        CsvTable(tmp_path / "x.csv", ("a", "b"))
    with pytest.raises(ValueError, match=r"t\.csv, line \d+: field larger than"):
        list(table(tmp_path, "a\n" + "x" * 200_000 + "\n"))


def test_cells():
    cells = {"a": "7.0", "b": "", "c": "old", "d": "inf", "e": "NaN", "f": "True", "g": "0"}
    assert number(cells, "a") == 7
    assert integer(cells, "a") == 7
    assert math.isnan(number(cells, "b"))
    assert math.isnan(number(cells, "e"))
    assert (truth(cells, "f"), truth(cells, "g")) == (1, 0)
    assert math.isnan(truth(cells, "b"))
    for name in "cd":
        with pytest.raises(ValueError, match=f"{name} is '{cells[name]}', expected a number"):
            number(cells, name)
    for name in "bce":
        with pytest.raises(ValueError, match=f"{name} is "):
            integer(cells, name)
    with pytest.raises(ValueError, match="a is '7.0', expected 0 or 1"):
        truth(cells, "a")


@pytest.mark.parametrize("file", ["", "/etc/passwd", "../x", "a/../../x", "a\0b"])
def test_files_outside_the_folder_are_refused(file):
    with pytest.raises(ValueError, match="expected the path of a file below"):
        file_below({"path": file}, "path")
    assert file_below({"path": "files/p1/..x"}, "path") == "files/p1/..x"


def test_declared_labels():
    assert declared_label("t.csv", "LVEF").unit == "%"
    assert declared_label("t.csv", "lvh:binary") == Label("lvh", "binary", "table")
    assert declared_label("t.csv", "BNP : regression : ng/L").unit == "ng/L"
    for column in ("lvh", "lvh:multi", ":binary", "a:regression:b:c"):
        with pytest.raises(ValueError, match=r"t\.csv: column .* declare it"):
            declared_label("t.csv", column)
    labels = {"AF": declared_label("t", "AF"), "x:regression": declared_label("t", "x:regression")}
    assert label_values({"AF": "", "x:regression": "3"}, labels) == {"x": 3}
    with pytest.raises(ValueError, match="AF is '2', expected 0 or 1"):
        label_values({"AF": "2", "x:regression": "3"}, labels)


def test_values_that_cannot_be_true():
    """Swapped columns, metres in place of centimetres."""
    labels = {name: declared_label("t", name) for name in ("LVEF", "height")}
    assert label_values({"LVEF": "55", "height": "180"}, labels) == {"LVEF": 55, "height": 180}
    for cells in ({"LVEF": "150", "height": "180"}, {"LVEF": "55", "height": "1.8"}):
        with pytest.raises(ValueError, match=r"expected (0 to 100 %|30 to 250 cm)"):
            label_values(cells, labels)
    own = {"height": Label("height", "regression", "table", "m")}
    assert label_values({"height": "1.8"}, own) == {"height": 1.8}
