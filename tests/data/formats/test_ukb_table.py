import datetime

import pytest

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
ukb_table = pytest.importorskip("mmcl_jax.data.formats.ukb_table")
Column = ukb_table.Column

FIELDS = {(31, 0), (21003, 2), (41270, 0)}


def write(tmp_path, text, name="ukb.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ukb_table.UkbTable(path)


def read(table, eids=("1", "2", "3"), fields=FIELDS):
    return {row.eid: row.problem or dict(row.cells) for row in table.rows(fields, set(eids))}


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("41270-0.12", Column(41270, 0, 12, False)),
        ("f.41270.0.12", Column(41270, 0, 12, False)),
        ("X41270.0.12", Column(41270, 0, 12, False)),
        ("p41270_i0_a12", Column(41270, 0, 12, False)),
        ("p41280_a12", Column(41280, 0, 12, False)),
        ("p21003_i2", Column(21003, 2, 0, True)),
        ("p41270", Column(41270, 0, 0, True)),
        ("participant.p31", Column(31, 0, 0, True)),
        ("eid", None),
        ("p31_x", None),
        ("31", None),
        ("p31_a0_i2", None),
    ],
)
def test_names_of_columns(name, column):
    assert ukb_table.parse_name(name) == column


EXPECTED = {
    "1": {(31, 0): ["1"], (21003, 2): ["64"], (41270, 0): ["I251", "E119"]},
    "2": {(31, 0): ["0"], (41270, 0): ["I10"]},
    "3": {(31, 0): ["1"], (21003, 2): ["70"]},
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "ukb.csv",
            '"eid","31-0.0","21003-0.0","21003-2.0","41270-0.0","41270-0.1"\n'
            '"1","1","55","64","I251","E119"\n"2","0","60","","I10",""\n"3","1","61","70","",""\n',
        ),
        (
            "ukb.tab",
            "f.eid\tf.41270.0.1\tf.41270.0.0\tf.31.0.0\tf.21003.2.0\r\n"
            "1\tE119\tI251\t1\t64\r\n2\tNA\tI10\t0\tNA\r\n3\tNA\tNA\t1\t70\r\n",
        ),
        ("ukb.csv", "\ufeffeid,p31,p21003_i2,p41270\n1,1,64,I251|E119\n2,0,,I10\n3,1,70,\n"),
        (
            "ukb.csv",
            "participant.eid,participant.p31,participant.p21003_i2,participant.p41270\n"
            '1,1,64,"[""I251"",""E119""]"\n2,0,,"[\'I10\']"\n3,1,70,[]\n',
        ),
    ],
)
def test_exports_as_text(tmp_path, name, text):
    assert read(write(tmp_path, text, name)) == EXPECTED


@pytest.mark.parametrize("eids", [[1, 2, 3, 9], ["1", "2", "3", "9"], [1.0, 2.0, 3.0, 9.0]])
def test_exports_as_parquet(tmp_path, eids):
    path = tmp_path / "ukb.parquet"
    columns = {
        "eid": eids,
        "p31": [1, 0, 1, 1],
        "p21003_i2": [64.0, None, 70.0, 1.0],
        "p21003_i3": [1.0, 1.0, 1.0, 1.0],
        "p41270": [["I251", "E119"], ["I10"], None, []],
    }
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    expected = {eid: dict(cells) for eid, cells in EXPECTED.items()}
    expected["1"][21003, 2], expected["3"][21003, 2] = ["64.0"], ["70.0"]
    table = ukb_table.UkbTable(path)
    assert read(table) == expected
    assert table.instances(21003) == {2, 3}
    assert table.instances(50) == set()


def test_dates_of_parquet(tmp_path):
    path = tmp_path / "ukb.parquet"
    day = datetime.date(2015, 3, 2)
    columns = {
        "eid": [1],
        "p41280_a0": [day],
        "p53_i2": pyarrow.array([datetime.datetime(2015, 3, 2)]),
    }
    parquet.write_table(pyarrow.table(columns), path)
    found = read(ukb_table.UkbTable(path), "1", {(41280, 0), (53, 2)})
    assert found == {"1": {(41280, 0): ["2015-03-02"], (53, 2): ["2015-03-02"]}}


def test_gaps_in_arrays_keep_their_place(tmp_path):
    table = write(tmp_path, "eid,41270-0.2,41270-0.0,41270-0.3\n1,C50,A09,\n2,,,I10\n")
    assert read(table) == {
        "1": {(41270, 0): ["A09", "", "C50"]},
        "2": {(41270, 0): ["", "", "", "I10"]},
    }


def test_other_participants_and_columns_are_not_returned(tmp_path):
    table = write(tmp_path, "eid,31-0.0,50-0.0\n1,1,x\n22,0,y\n3,1,z\n")
    assert read(table, ("22", "7")) == {"22": {(31, 0): ["0"]}}


def test_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(ukb_table, "_BLOCK", 1000)
    rows = "".join(f"{eid},{eid % 2}\n" for eid in range(5000))
    found = read(write(tmp_path, "eid,p31\n" + rows), map(str, range(0, 5000, 7)))
    assert found == {str(eid): {(31, 0): [str(eid % 2)]} for eid in range(0, 5000, 7)}


def test_rows_of_another_length_are_problems(tmp_path):
    table = write(tmp_path, "31-0.0,eid,p50\n1,1,5\n1,2\n0,3,1,1\n1,4\n\n")
    assert read(table) == {
        "1": {(31, 0): ["1"]},
        "2": "its row has 2 cells, expected 3",
        "3": "its row has 4 cells, expected 3",
    }


def test_bytes_that_are_no_utf8_concern_one_cell(tmp_path):
    table = write(tmp_path, b"eid,31-0.0,41270-0.0\n1,\xff,I10\n\xfe2,1,\n3,1,I\xe9\n")
    assert read(table) == {
        "1": {(31, 0): ["\ufffd"], (41270, 0): ["I10"]},
        "3": {(31, 0): ["1"], (41270, 0): ["I\ufffd"]},
    }


def test_an_unreadable_list_is_a_problem(tmp_path):
    table = write(tmp_path, "eid,p41270\n1,[I10\n2,[I10]\n3,\"['I10', f()]\"\n")
    found = read(table)
    assert found["1"] == {(41270, 0): ["[I10"]}
    assert found["2"] == "p41270: '[I10]' is no readable list"
    assert "is no readable list" in found["3"]


def test_absent_and_unknown_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ukb\.csv is absent; expected UK Biobank's main"):
        ukb_table.UkbTable(tmp_path / "ukb.csv")
    with pytest.raises(
        ValueError, match=r"ukb\.dta: expected a name that ends in \.parquet, \.csv"
    ):
        write(tmp_path, "", "ukb.dta")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no column eid or f.eid or participant.eid among its 0 columns"),
        ("id,31-0.0\n1,1\n", "no column eid or .* among its 2 columns"),
        (b"e\xffid,31-0.0\n1,1\n", "not a readable table"),
    ],
)
def test_unusable_headers(tmp_path, text, reason):
    with pytest.raises(ValueError, match=rf"ukb\.csv: {reason}"):
        write(tmp_path, text)


def test_columns_that_occur_twice(tmp_path):
    table = write(tmp_path, "eid,31-0.0,31-0.0,p50,p50\n1,1,0,1,1\n")
    with pytest.raises(ValueError, match=r"columns that occur twice: 31-0\.0$"):
        read(table)
    both = write(tmp_path, "eid,31-0.0,p31\n1,1,0\n")
    with pytest.raises(ValueError, match=r"columns 31-0\.0 and p31 are the same"):
        read(both)


def test_damaged_parquet(tmp_path):
    path = tmp_path / "ukb.parquet"
    path.write_bytes(b"PAR1 no table")
    with pytest.raises(ValueError, match=r"ukb\.parquet: not a readable table"):
        ukb_table.UkbTable(path)
    parquet.write_table(
        pyarrow.table({"eid": list(range(1000)), "p31": [f"{n}x" for n in range(1000)]}), path
    )
    content = bytearray(path.read_bytes())
    content[4:4000] = bytes(3996)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"ukb\.parquet: not a readable table"):
        read(ukb_table.UkbTable(path))
