import numpy as np
import pytest

from mmcl_jax.data.subject import assign_split
from mmcl_jax.data.targets import label_table

HEADER = "record,subject,split,CAD,LVEF,rhythm,codes,site\n"
ROWS = (
    "a,p1,train,1,55.5,SR,MI;AF,x",
    "b,p1,train,0,NA,AF,-,x",
    "c,p2,train,0,61,SR,MI,y",
    "d,p3,val,,48,AF,,y",
    "e,p4,test,True,nan,SR,AF; MI,y",
)
DECLARED = {"binary": "CAD", "regression": "LVEF:%", "multiclass": "rhythm", "multilabel": "codes"}


def write(folder, rows=ROWS, header=HEADER):
    path = folder / "labels.csv"
    path.write_text(header + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def read(path, declared=DECLARED, **options):
    return label_table.read(path, label_table.columns(declared), **options)


def test_every_kind_of_column(tmp_path):
    table = read(write(tmp_path))
    assert [(x.name, x.kind, x.group, x.unit) for x in table.labels] == [
        ("CAD", "binary", "disease", ""),
        ("LVEF", "regression", "LV", "%"),
        ("rhythm", "multiclass", "rhythm", ""),
        ("AF", "binary", "codes", ""),
        ("MI", "binary", "codes", ""),
    ]
    assert table.labels[2].classes == ("AF", "SR")
    nan = np.nan
    expected = [
        [1, 55.5, 1, 1, 1],
        [0, nan, 0, 0, 0],
        [0, 61, 1, 0, 1],
        [nan, 48, 0, nan, nan],
        [1, nan, 1, 1, 1],
    ]
    np.testing.assert_array_equal(table.values, np.array(expected, np.float32))
    assert table.records == ["a", "b", "c", "d", "e"]
    assert table.subjects == ["p1", "p1", "p2", "p3", "p4"]
    assert table.splits == ["train", "train", "train", "val", "test"]
    assert table.remarks == ("columns that are not declared and not used: site",)
    assert not table.refusals
    assert not any(table.assigned)


def test_without_split_and_subject(tmp_path):
    table = read(write(tmp_path, ("a,1", "b,0"), "record,CAD\n"), {"binary": "CAD"}, seed=7)
    assert table.splits == [assign_split("a", 7), assign_split("b", 7)]
    assert table.subjects == ["a", "b"]
    assert all(table.assigned)
    assert "every record counts as a person" in table.remarks[0]


def test_classes_in_a_given_order(tmp_path):
    declared = {"multiclass": "rhythm:SR;AF;VT", "multilabel": "codes:MI;AF;HYP"}
    table = read(write(tmp_path), declared)
    assert table.labels[0].classes == ("SR", "AF", "VT")
    assert [label.name for label in table.labels[1:]] == ["MI", "AF", "HYP"]
    assert table.values[0].tolist() == [0, 1, 1, 0]
    assert "rhythm: class VT does not occur" in table.remarks
    assert "HYP: all known values of the training split are 0" in table.remarks


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (("10", "9", "2", "", "9"), ("2", "9", "10")),
        (("1.0", "0.0", "2.0", "NA", "1.0"), ("0", "1", "2")),
        (("1.5", "b", "a", "b", "1.5"), ("1.5", "a", "b")),
    ],
)
def test_order_of_the_classes_that_occur(tmp_path, cells, classes):
    path = write(tmp_path, [f"r{i},{c}" for i, c in enumerate(cells)], "record,grade\n")
    table = read(path, {"multiclass": "grade"})
    assert table.labels[0].classes == classes
    names = [classes[int(v)] if v == v else None for v in table.values[:, 0]]
    assert [n or "" for n in names] == [c.removesuffix(".0").replace("NA", "") for c in cells]


def test_rows_that_cannot_be_used_are_refused_by_line(tmp_path):
    rows = (*ROWS, "f,p5,train,maybe,1,SR,MI,", "g,p5,train,1,ten,SR,MI,", ",p6,train,1,1,SR,,")
    rows += ("h,p6,dev,1,1,SR,,", "a,p7,train,1,1,SR,,", "i,p8,train,1", "j,p8,train,1,inf,SR,,")
    table = read(write(tmp_path, rows))
    assert table.refusals == {
        5: "labels.csv, line 7: CAD is 'maybe', expected 0 or 1",
        6: "labels.csv, line 8: LVEF is 'ten', expected a number from 0 to 100 %, or nothing",
        7: "labels.csv, line 9: the cell under record is empty",
        8: "labels.csv, line 10: split is 'dev', expected one of train, val, test, or nothing",
        9: "labels.csv, line 11: record a is on line 2 already",
        10: "labels.csv, line 12: 4 cells, the header line has 8",
        11: "labels.csv, line 13: LVEF is 'inf', expected a number from 0 to 100 %, or nothing",
    }
    assert table.records[7] == "line 9"


def test_unknown_class_and_value(tmp_path):
    declared = {"multiclass": "rhythm:SR;AF", "multilabel": "codes:MI;AF"}
    table = read(
        write(tmp_path, (*ROWS, "f,p5,train,1,1,VT,MI,", "g,p5,train,1,1,,MI;X,")), declared
    )
    assert table.refusals == {
        5: "labels.csv, line 7: rhythm is 'VT', expected one of SR, AF",
        6: "labels.csv, line 8: codes is 'MI;X', expected some of MI, AF separated by ;, or "
        "- for none",
    }


def test_swapped_columns_are_an_error(tmp_path):
    path = write(tmp_path, header=HEADER.replace("CAD,LVEF", "LVEF,CAD"))
    with pytest.raises(ValueError, match="column CAD is declared binary, but 3 of its 3 values"):
        read(path)
    path = write(tmp_path, header=HEADER.replace("LVEF,rhythm", "rhythm,LVEF"))
    with pytest.raises(ValueError, match="line 2: LVEF is 'SR', .*Are columns swapped"):
        read(path, {"regression": "LVEF"})
    rows = [f"r{i},{i / 7:.4f}" for i in range(150)]
    path = write(tmp_path, rows, "record,grade\n")
    with pytest.raises(ValueError, match="grade is declared multiclass and has 150 .*--regression"):
        read(path, {"multiclass": "grade"})


def test_what_no_model_can_learn_is_remarked(tmp_path):
    rows = ("a,train,0,5,SR,1", "b,train,0,5,AF,0", "c,val,1,6,VT,1", "d,test,1,7,SR,0")
    path = write(tmp_path, rows, "record,split,CAD,age,rhythm,LVM\n")
    table = read(path, {"binary": "CAD", "regression": "age,LVM", "multiclass": "rhythm"})
    assert table.remarks[1:] == (
        "CAD: all known values of the training split are 0",
        "age: all known values of the training split are 5",
        "LVM: declared regression, but holds only 0 and 1",
        "rhythm: class VT occurs in val only, so no model can learn it",
    )


def test_a_subject_in_two_splits(tmp_path):
    with pytest.raises(ValueError, match="line 7: subject p1 is in val and in train"):
        read(write(tmp_path, (*ROWS, "f,p1,val,1,1,SR,,")))
    # A refused row decides nothing.
    assert read(write(tmp_path, (*ROWS, "f,p1,val,9,1,SR,,"))).refusals


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"binary": "CADD"}, "columns CADD are missing; found record, subject, split, CAD"),
        ({"binary": "CAD", "regression": "CAD"}, "columns CAD are declared more than once"),
        ({"binary": "CAD:%"}, "--binary: 'CAD:%' cannot be read"),
        ({"regression": "LVEF:"}, "--regression: 'LVEF:' cannot be read"),
        ({"regression": "LVEF:mL"}, "LVEF is known in %, found 'mL'"),
        ({"multiclass": "site:x"}, "site is declared multiclass and has 1 different values"),
        ({"binary": "CAD", "multilabel": "rhythm:CAD;SR"}, "several labels are called CAD"),
    ],
)
def test_declarations_that_do_not_fit(tmp_path, declared, message):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path), declared)


def test_tables_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="is absent; expected a CSV file"):
        read(tmp_path / "none.csv")
    for text, message in (("", "an empty file"), (HEADER, "no row below"), ("a;b\n", "a comma")):
        path = tmp_path / "labels.csv"
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read(path)


def test_an_empty_split_is_assigned(tmp_path):
    table = read(write(tmp_path, ("a,,1", "b,test,0"), "record,split,CAD\n"), {"binary": "CAD"})
    assert table.splits == [assign_split("a"), "test"]
    assert table.assigned == [True, False]


def test_swapped_columns_of_known_labels(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("record,LVEF,LVEDV\na,150,55\nb,170,60\nc,160,\n")
    with pytest.raises(ValueError, match="LVEF is '150', expected a number from 0 to 100 %"):
        label_table.read(path, label_table.columns({"regression": "LVEF,LVEDV"}))


def test_a_row_without_its_file(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("record,ecg\na,a.npy\nb,\n")
    table = label_table.read(path, (), file_column="ecg")
    assert table.refusals == {1: "labels.csv, line 3: the cell under ecg is empty"}
