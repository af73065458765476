import pickle

import numpy as np
import pytest
from wfdb_records import ecg, write_record

from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.data.sources.mimic_iv_ecg import MimicIvEcg
from mmcl_jax.data.subject import RefusedRecord, assign_split

# The order in which the data set stores the leads: aVF before aVL.
ORDER = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
STUDIES = ((40689238, 10000032), (44458630, 10000032), (49036311, 10000117))
MEASURES = "subject_id,study_id,cart_id,report_0,rr_interval,p_onset,p_end,qrs_onset,qrs_end"
MEASURES += ",t_end,p_axis,qrs_axis,t_axis\n"


def path_of(study, subject):
    return f"files/p{subject // 10000}/p{subject}/s{study}/{study}"


@pytest.fixture
def folder(tmp_path):
    rows = ["subject_id,study_id,file_name,ecg_time,path"]
    for seed, (study, subject) in enumerate(STUDIES):
        rows.append(f"{subject},{study},{study},2180-07-23 08:44:00,{path_of(study, subject)}")
        signal = ecg(seed)[[LEADS.index(name) for name in ORDER]]
        write_record(tmp_path / path_of(study, subject), signal, names=ORDER, gain=200)
    (tmp_path / "record_list.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_records_subjects_and_leads_by_name(folder):
    source = pickle.loads(pickle.dumps(MimicIvEcg(folder)))
    assert [(task.record, task.subject) for task in source.tasks] == [
        (str(study), str(subject)) for study, subject in STUDIES
    ]
    first, second, third = source.tasks
    assert first.split == second.split == assign_split("10000032")
    assert third.split == assign_split("10000117")
    assert source.labels == ()
    subject = source.load(first)
    assert subject.flags == ()  # aVL and aVF would contradict I and II if they were taken by place
    write_record(folder / "plain", ecg(0), gain=200)
    (folder / "record_list.csv").write_text("subject_id,study_id,path\n1,2,plain\n")
    plain = MimicIvEcg(folder)
    np.testing.assert_array_equal(plain.load(plain.tasks[0]).ecg, subject.ecg)


def test_measurements_of_the_cart(folder):
    (folder / "machine_measurements.csv").write_text(
        MEASURES
        + '10000032,40689238,6848296,"Sinus rhythm, normal",659,40,128,170,258,518,81,77,-10\n'
        + "10000032,44458630,6848296,AF,29999,29999,29999,170,258,29999,29999,77,29999\n"
    )
    source = MimicIvEcg(folder, measurements=True)
    first, second, third = (task.labels for task in source.tasks)
    assert first == {
        **{"rr_interval": 659, "pr_interval": 130, "qrs_duration": 88, "qt_interval": 348},
        **{"p_axis": 81, "qrs_axis": 77, "t_axis": -10},
    }
    assert second == {"qrs_duration": 88, "qrs_axis": 77}
    assert third == {}
    assert {label.name for label in source.labels} == set(first)


def test_labels_by_study_or_by_subject(folder):
    table = folder / "labels.csv"
    table.write_text("subject_id,study_id,AF,k:regression:mmol/L\n1,44458630,1,\n2,49036311,0,4\n")
    tasks = MimicIvEcg(folder, table).tasks
    assert [task.labels for task in tasks] == [{}, {"AF": 1}, {"AF": 0, "k": 4}]
    table.write_text("subject_id,sex\n10000032,1\n")
    assert [task.labels for task in MimicIvEcg(folder, table).tasks] == [{"sex": 1}] * 2 + [{}]
    table.write_text("study_id,sex\n44458630,3\n49036311,1\n49036311,0\n")
    tasks = MimicIvEcg(folder, table).tasks
    assert tasks[0].refusal == ""
    assert "line 2: sex is '3', expected 0 or 1" in tasks[1].refusal
    assert "line 4: a second row for study_id 49036311" in tasks[2].refusal


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,AF\n1,1\n", r"column study_id or subject_id is missing; found id, AF"),
        ("study_id,AF\nx,1\n", r"labels\.csv, line 2: study_id is 'x', expected an integer"),
        ("study_id,AF\n7,1\n", r"no study_id of it is in record_list\.csv"),
        ("study_id,x\n7,1\n", "column 'x' is no known label"),
        ("study_id,qrs_axis:regression\n40689238,1\n", "labels qrs_axis occur more than once"),
    ],
)
def test_tables_of_labels_that_cannot_be_used(folder, content, message):
    (folder / "labels.csv").write_text(content)
    (folder / "machine_measurements.csv").write_text(MEASURES)
    with pytest.raises(ValueError, match=message):
        MimicIvEcg(folder, folder / "labels.csv", measurements="qrs_axis" in content)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("10000032,99,99,,files/p1/99", "99.hea: the header is absent"),
        ("10000032,99,99,,../../etc/passwd", "path is '../../etc/passwd', expected the path"),
        ("10000032,99,99,,/etc/passwd", "path is '/etc/passwd', expected the path"),
        ("files/p1/99,99,99,,10000032", "subject_id is 'files/p1/99', expected an integer"),
        (",99,99,,files/p1/99", "subject_id is '', expected an integer"),
        ("10000032,99", r"record_list\.csv, line 5: 2 cells, the header line has 5"),
    ],
)
def test_a_bad_row_refuses_its_record(folder, row, reason):
    with (folder / "record_list.csv").open("a") as file:
        file.write(row + "\n")
    source = MimicIvEcg(folder)
    assert [task.refusal for task in source.tasks[:3]] == [""] * 3
    with pytest.raises(RefusedRecord, match=reason):
        source.load(source.tasks[3])


def test_absent_tables(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"record_list\.csv is absent"):
        MimicIvEcg(folder / "files")
    with pytest.raises(FileNotFoundError, match=r"machine_measurements\.csv is absent"):
        MimicIvEcg(folder, measurements=True)
