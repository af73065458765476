import pickle
import re
import shutil

import made_cardiosoft
import numpy as np
import pytest

from mmcl_jax.data.formats import wfdb
from mmcl_jax.data.signals import ecg
from mmcl_jax.data.subject import RefusedRecord, assign_split

for name in ("pyarrow", "pydicom", "defusedxml"):
    pytest.importorskip(name)
ukb = pytest.importorskip("mmcl_jax.data.sources.ukb")

BASIC = ("diseases", "demographics")
HEADER = "eid,31-0.0,21003-2.0,21003-3.0,21002-2.0,50-2.0,41270-0.0,41270-0.1\n"


def visits(folder, *names):
    for name in names:
        field, suffix = ("20205", "xml") if name.startswith("e") else ("20209", "zip")
        eid, instance = name[1:].split("_")
        path = folder / field / f"{eid}_{field}_{instance}_0.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def table(tmp_path, rows, header=HEADER):
    path = tmp_path / "ukb.csv"
    path.write_text(header + rows)
    return path


def test_pairs_have_the_same_instance(tmp_path):
    bulk = visits(tmp_path / "bulk", "e11_2", "c11_2", "e11_3", "c12_3", "e13_2", "c13_3")
    source = pickle.loads(pickle.dumps(ukb.Ukb(bulk)))
    found = [(t.record, t.subject, t.ecg is not None, t.cmr is not None) for t in source.tasks]
    assert found == [
        ("11_2", "11", True, True),
        ("11_3", "11", True, False),
        ("12_3", "12", False, True),
        ("13_2", "13", True, False),
        ("13_3", "13", False, True),
    ]
    task = source.tasks[0]
    assert task.ecg == bulk / "20205" / "11_20205_2_0.xml"
    assert task.cmr == bulk / "20209" / "11_20209_2_0.zip"
    assert (task.split, task.split_assigned) == (assign_split("11", 0), True)
    assert [t.record for t in source.tasks[1:3]] == ["11_3", "12_3"]
    assert source.labels == ()
    assert source.settings["ecg"] == ecg.DEFAULT.as_dict()


def test_labels_are_those_of_the_visit(tmp_path):
    bulk = visits(tmp_path / "bulk", "e11_2", "c11_2", "e11_3", "e12_2")
    rows = "11,1,64,68,80.5,175,I251,E119\n12,0,55,,61,160,,\n13,x,x,x,x,x,x,x\n"
    source = ukb.Ukb(bulk, table(tmp_path, rows), labels=BASIC)
    first, second, third = source.tasks
    diseases = {"CAD": 1, "AF": 0, "DM": 1}
    assert first.labels == {
        **diseases,
        **{"age": 64, "sex": 1, "weight": 80.5, "height": 175},
    }
    assert second.labels == {**diseases, "age": 68, "sex": 1}
    assert third.labels["CAD"] == 0
    assert not any(task.refusal for task in source.tasks)
    assert source.parameters["diseases"]["DM"] == {"codes": ["E10-E14"], "when": "any"}
    assert {label.name for label in source.labels} >= set(first.labels)


def refusals(source):
    return {task.record: task.refusal for task in source.tasks if task.refusal}


def test_every_unusable_row_is_a_refusal(tmp_path):
    bulk = visits(tmp_path / "bulk", *(f"e{eid}_2" for eid in range(11, 20)), "c15_3")
    rows = (
        "11,1,64,,80,175,,\n"
        "12,64,1,,80,175,,\n"  # sex and age swapped
        "13,1,64,,80,175,2015-03-02,\n"  # a date among the diagnoses
        "14,1,64,,80\n"
        "15,1,64,64,80,175,,\n15,1,64,64,80,175,,\n"  # twice
        "16,1,64,,175,80,,\n"  # weight and height swapped
        "17,1,sixty,,80,175,,\n"
        "18,1,64,,80,175,,\n"
    )
    source = ukb.Ukb(bulk, table(tmp_path, rows), labels=BASIC)
    assert refusals(source) == {
        "12_2": "ukb.csv: age (field 21003, instance 2) is '1', expected a number from 18 to 120 "
        "years",
        "13_2": "ukb.csv: diagnoses (field 41270): '2015-03-02' is no ICD-10 code, expected one "
        "such as I251",
        "14_2": "ukb.csv: its row has 5 cells, expected 8",
        "15_2": "ukb.csv: the participant has more than one row",
        "15_3": "ukb.csv: the participant has more than one row",
        "16_2": "ukb.csv: height (field 50, instance 2) is '80', expected a number from 100 to "
        "250 cm",
        "17_2": "ukb.csv: age (field 21003, instance 2) is 'sixty', expected a number from 18 to "
        "120 years",
        "19_2": "ukb.csv: the participant has no row; withdrawn, or left out of it",
    }
    task = next(task for task in source.tasks if task.record == "14_2")
    with pytest.raises(RefusedRecord, match=r"14_20205_2_0\.xml: ukb\.csv: its row has 5 cells"):
        source.load(task)


def test_files_of_other_names_are_refused(tmp_path):
    bulk = visits(tmp_path / "bulk", "e11_2")
    (bulk / "ecg.xml").touch()
    (source_task, other) = ukb.Ukb(bulk).tasks
    assert source_task.record == "11_2"
    assert other.path == bulk / "ecg.xml"
    with pytest.raises(RefusedRecord, match=r"ecg\.xml: the name is not EID_20205"):
        ukb.Ukb(bulk).load(other)


def test_withdrawn_participants_are_refused(tmp_path):
    bulk = visits(tmp_path / "bulk", "e11_2", "c11_3", "e12_2", "e13_2")
    withdrawn = tmp_path / "w.csv"
    withdrawn.write_text('\ufeffeid\n"11"\n\n99\r\n13\n')
    rows = table(tmp_path, "12,1,64,,80,175,,\n")
    source = ukb.Ukb(bulk, rows, labels=BASIC, withdrawn=withdrawn)
    assert refusals(source) == dict.fromkeys(("11_2", "11_3", "13_2"), "withdrawn")
    withdrawn.write_text("11\n12 13\n")
    with pytest.raises(ValueError, match=r"w\.csv, line 2: '12 13', expected one eid per line"):
        ukb.Ukb(bulk, withdrawn=withdrawn)
    with pytest.raises(FileNotFoundError, match="expected the list of withdrawals"):
        ukb.Ukb(bulk, withdrawn=tmp_path / "none")


def test_own_diseases(tmp_path):
    bulk = visits(tmp_path / "bulk", "e11_2")
    toml = tmp_path / "diseases.toml"
    toml.write_text('[HT]\ncodes = ["I10-I15"]\n')
    rows = table(tmp_path, "11,1,64,,80,175,I10,\n")
    source = ukb.Ukb(bulk, rows, labels=("diseases",), diseases=toml)
    assert [label.name for label in source.labels] == ["HT"]
    assert source.tasks[0].labels == {"HT": 1}
    assert source.parameters["diseases"] == {"HT": {"codes": ["I10-I15"], "when": "any"}}
    for arguments in ({}, {"table": rows, "labels": ("demographics",)}):
        with pytest.raises(ValueError, match="definitions of diseases need a table"):
            ukb.Ukb(bulk, diseases=toml, **arguments)


def test_wrong_tables(tmp_path):
    bulk = visits(tmp_path / "bulk", "e11_2")
    with pytest.raises(FileNotFoundError, match="expected UK Biobank's main table"):
        ukb.Ukb(bulk, tmp_path / "none.csv")
    with pytest.raises(ValueError, match="61 fields have no column for instance 2: 24100, 24101"):
        ukb.Ukb(bulk, table(tmp_path, "11,1,64,,80,175,,\n"))
    with pytest.raises(ValueError, match="no row for any of the 1 participants with files"):
        ukb.Ukb(bulk, table(tmp_path, "22,1,64,,80,175,,\n"), labels=BASIC)


def test_splits_follow_the_seed(tmp_path):
    bulk = visits(tmp_path / "bulk", *(f"e{eid}_{i}" for eid in range(100, 160) for i in (2, 3)))
    splits = [[t.split for t in ukb.Ukb(bulk, seed=seed).tasks] for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    # Both visits of a participant are on one side.
    assert splits[0][::2] == splits[0][1::2]


def test_a_refused_half_refuses_the_record(tmp_path):
    bulk = visits(tmp_path / "bulk", "e11_2", "c11_2")
    counts = np.random.default_rng(0).integers(-200, 200, (12, 5000))
    (bulk / "20205" / "11_20205_2_0.xml").write_bytes(made_cardiosoft.xml(counts))
    source = ukb.Ukb(bulk)
    with pytest.raises(RefusedRecord, match=r"11_20209_2_0\.zip: the zip has 0 bytes"):
        source.load(source.tasks[0])


def test_a_real_visit(recordings, tmp_path):
    bulk = visits(tmp_path / "bulk", "e11_2", "c11_2")
    record = recordings / "ptbxl" / "records500" / "00000" / "00003_hr"
    expected = wfdb.read(record)
    counts = np.rint(expected.signal * 1000).astype(int)
    xml = made_cardiosoft.xml(counts, expected.names, resolution="1")
    (bulk / "20205" / "11_20205_2_0.xml").write_bytes(xml)
    zipped = recordings / "sunnybrook" / "dicom_zip" / "SCD0000201_sax_3slices.zip"
    shutil.copy(zipped, bulk / "20209" / "11_20209_2_0.zip")
    source = ukb.Ukb(bulk)
    subject = source.load(source.tasks[0])
    assert (subject.record, subject.subject) == ("11_2", "11")
    np.testing.assert_allclose(subject.ecg, ecg.prepare("a", expected)[0], atol=1e-5)
    assert (subject.cmr.shape, subject.cmr.dtype) == ((210, 210, 3), np.uint8)
    assert subject.lead_statistics.shape == (12, 4)
    assert subject.split_assigned
    (phases,) = [flag for flag in subject.flags if "blood-pool area" in flag]
    assert re.search(r"ED (17|18|19|0|1) of 20 frames", phases)
