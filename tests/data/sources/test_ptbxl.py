import collections
import pickle

import numpy as np
import pytest

from mmcl_jax.data.sources.ptbxl import PtbXl
from mmcl_jax.data.subject import RefusedRecord

HEADER = "ecg_id,patient_id,age,sex,height,weight,scp_codes,strat_fold,filename_lr,filename_hr"
STATEMENTS = """,description,diagnostic,form,rhythm,diagnostic_class
NORM,normal,1.0,,,NORM
IMI,inferior,1.0,,,MI
LVH,hypertrophy,1.0,,,HYP
ABQRS,abnormal QRS,,1.0,,
SR,sinus rhythm,,,1.0,
"""


def write_tables(folder, rows):
    (folder / "scp_statements.csv").write_text(STATEMENTS)
    (folder / "ptbxl_database.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return folder


def row(number, patient, codes, fold, *, age="56.0", sex="1", height="", weight="63.0"):
    path = f"records500/00000/{number:05d}_hr"
    return f'{number},{patient},{age},{sex},{height},{weight},"{codes}",{fold},x,{path}'


def test_superclasses_demographics_and_folds(tmp_path):
    write_tables(
        tmp_path,
        [
            row(1, "15709.0", "{'NORM': 100.0, 'SR': 0.0}", 3),
            row(2, "7.0", "{'IMI': 0.0, 'LVH': 15.0, 'ABQRS': 0.0}", 9, sex="0", height="180"),
            row(3, "8.0", "{'SR': 0.0}", 10, age="300", weight=""),
        ],
    )
    first, second, third = PtbXl(tmp_path).tasks
    assert (first.record, first.subject, first.split) == ("00001", "15709", "train")
    assert first.labels == {
        **{"NORM": 1, "MI": 0, "STTC": 0, "CD": 0, "HYP": 0},
        **{"age": 56, "sex": 0, "weight": 63},
    }
    assert second.split == "val"
    # Any likelihood counts, 0 (unknown) included.
    assert [name for name in ("NORM", "MI", "STTC", "CD", "HYP") if second.labels[name]] == [
        "MI",
        "HYP",
    ]
    assert (second.labels["sex"], second.labels["height"]) == (1, 180)
    assert third.split == "test"
    # No diagnostic statement, an age that is withheld, no weight.
    assert third.labels.keys() == {"sex"}
    assert third.flags == ("age above 89, withheld by the data set",)


def test_other_folds(tmp_path):
    write_tables(tmp_path, [row(n, n, "{}", n) for n in (1, 2, 3)])
    tasks = PtbXl(tmp_path, folds={"train": (1,), "test": (3,)}).tasks
    assert [(task.record, task.split) for task in tasks] == [("00001", "train"), ("00003", "test")]


def test_a_patient_in_two_splits_is_an_error(tmp_path):
    write_tables(tmp_path, [row(1, 15709, "{}", 3), row(2, 15709, "{}", 9), row(3, 4, "{}", 9)])
    with pytest.raises(ValueError, match=r"1 patients .*patient_id 15709\)"):
        PtbXl(tmp_path)


def test_errors_name_table_and_field(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scp_statements\.csv is absent"):
        PtbXl(tmp_path)
    write_tables(tmp_path, [])
    (tmp_path / "ptbxl_database.csv").write_text("ecg_id,age\n1,5\n")
    with pytest.raises(ValueError, match="columns patient_id, sex, height"):
        PtbXl(tmp_path)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (row(2, 1, "{}", 1, age="old"), "age is 'old', expected a number"),
        (row(2, 1, "[1]", 1), r"scp_codes is '\[1\]', expected a dictionary"),
        (row(2, 1, "{[]: 1}", 1), "scp_codes is"),
        (row(2, 1, "(" * 5000, 1), "scp_codes is"),
        (row(2, "", "{}", 1), "patient_id is '', expected an integer"),
        (row(2, 1, "{}", "NORM"), "strat_fold is 'NORM', expected an integer"),
        (row(2, 1, "{}", 11), "strat_fold is 11, expected 1 to 10"),
        (row(2, 1, "{}", 1, sex="7"), "sex is '7', expected 0 or 1"),
        ("2,1,56", "3 cells, the header line has 10"),
        (row(2, 1, "{}", 1).replace("records500", "../.."), r".*expected the path of a file below"),
    ],
)
def test_a_row_that_cannot_be_used_refuses_its_record_alone(tmp_path, changed, reason):
    source = PtbXl(write_tables(tmp_path, [row(1, 1, "{}", 1), changed]))
    first, second = source.tasks
    assert (first.record, first.refusal) == ("00001", "")
    with pytest.raises(RefusedRecord, match=rf"ptbxl_database\.csv, line 3: {reason}"):
        source.load(second)


def test_tables_that_are_not_utf_8_are_read(tmp_path):
    write_tables(tmp_path, [row(1, 1, "{}", 1)])
    table = tmp_path / "ptbxl_database.csv"
    table.write_bytes(table.read_bytes().replace(b",x,", b",M\xfcller,"))
    assert len(PtbXl(tmp_path).tasks) == 1


def test_a_listed_record_without_files_is_refused(tmp_path):
    source = PtbXl(write_tables(tmp_path, [row(1, 1, "{}", 1)]))
    with pytest.raises(RefusedRecord, match="00001_hr.hea: the header is absent"):
        source.load(source.tasks[0])


def test_real_tables_and_a_record(recordings):
    source = pickle.loads(pickle.dumps(PtbXl(recordings / "ptbxl")))
    assert len(source.tasks) == 400
    splits = collections.Counter(task.split for task in source.tasks)
    assert splits == {"train": 276, "val": 70, "test": 54}
    subject = source.load(source.tasks[0])
    assert (subject.record, subject.subject, subject.split) == ("00001", "15709", "train")
    assert (subject.ecg.shape, subject.ecg.dtype) == ((12, 5000), np.float32)
    assert subject.cmr is None
    assert subject.cmr_box is None
    # A woman of 56 years, 63 kg, normal ECG.
    assert (subject.labels["age"], subject.labels["sex"], subject.labels["NORM"]) == (56, 0, 1)
    assert {label.name for label in source.labels} >= set(subject.labels)
