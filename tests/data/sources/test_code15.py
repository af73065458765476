import pickle

import h5py
import numpy as np
import pytest
from wfdb_records import ecg

from mmcl_jax.data.signals.ecg import Recording, prepare
from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.data.sources.code15 import Code15
from mmcl_jax.data.subject import RefusedRecord, assign_split

HEADER = "exam_id,age,is_male,nn_predicted_age,1dAVb,RBBB,LBBB,SB,ST,AF,patient_id,death,timey,"
HEADER += "normal_ecg,trace_file"


def row(exam, patient=7, *, age="38", diagnoses="True,False,False,False,False,True", file=None):
    file = file or "exams_part0.hdf5"
    return f"{exam},{age},True,40.1,{diagnoses},{patient},False,2.1,False,{file}"


def frame(seed, samples):
    """[4096, 12] float32 in mV with zeros on both sides of the signal."""
    before = (4096 - samples) // 2
    signal = np.zeros((4096, 12), np.float32)
    signal[before : before + samples] = ecg(seed, seconds=samples / 400, rate=400).T
    return signal


def write(folder, rows, tracings, ids=None, name="exams_part0.hdf5"):
    (folder / "exams.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    with h5py.File(folder / name, "w") as file:
        file["exam_id"] = np.arange(1, len(tracings) + 1) if ids is None else ids
        file["tracings"] = np.stack(tracings)
    return folder


def reason(source, position=0):
    with pytest.raises(RefusedRecord) as refusal:
        source.load(source.tasks[position])
    return refusal.value.reason


def test_an_exam_with_its_labels_and_its_patient(tmp_path):
    tracings = [frame(0, 4096), frame(1, 4096), np.zeros((4096, 12), np.float32)]
    rows = [row(22), row(11, 8, age="", diagnoses="0,1,,False,False,False")]
    write(tmp_path, rows, tracings, ids=[11, 22, 0])
    source = pickle.loads(pickle.dumps(Code15(tmp_path)))
    assert len(source.tasks) == 2
    first, second = (source.load(task) for task in source.tasks)
    assert (first.record, first.subject, first.split) == ("22", "7", assign_split("7"))
    assert first.labels == {
        **{"1dAVb": 1, "RBBB": 0, "LBBB": 0, "SB": 0, "ST": 0, "AF": 1, "normal_ecg": 0},
        **{"death": 0, "timey": 2.1, "age": 38, "sex": 1},
    }
    assert "LBBB" not in second.labels
    assert "age" not in second.labels
    assert (second.labels["1dAVb"], second.labels["RBBB"]) == (0, 1)
    # The row of the exam, not its place in the table; mV at 400 Hz; leads in their usual order.
    for found, tracing in ((first, tracings[1]), (second, tracings[0])):
        recording = Recording(tracing.T.astype(np.float64), LEADS, ("mV",) * 12, 400.0)
        np.testing.assert_array_equal(found.ecg, prepare("x", recording)[0])
        assert found.flags == ("resampled from 400 Hz",)


def test_zeros_around_a_signal_are_no_signal(tmp_path):
    write(tmp_path, [row(1), row(2)], [frame(0, 2800), frame(1, 4000)])
    source = Code15(tmp_path)
    assert reason(source) == "7 s long, expected at least 10 s"
    assert source.load(source.tasks[1]).flags == ("resampled from 400 Hz",)
    source = Code15(tmp_path, shortest=7)
    subject = source.load(source.tasks[0])
    assert subject.flags == ("resampled from 400 Hz", "padded: 7.0 s of 10 s")
    assert subject.ecg[:, :3500].any()
    assert not subject.ecg[:, 3500:].any()


def test_exams_that_cannot_be_read(tmp_path):
    rows = [row(1), row(2), row(3, file="exams_part1.hdf5"), row(4, file="exams_part2.hdf5")]
    write(tmp_path, rows, [np.zeros((4096, 12), np.float32)])
    (tmp_path / "exams_part2.hdf5").write_bytes(b"\x89HDF no more")
    source = Code15(tmp_path)
    assert reason(source, 0) == "exam 1 is all zeros"
    assert reason(source, 1) == "holds no exam 2"
    assert reason(source, 2) == "the trace file is absent"
    assert reason(source, 3).startswith("cannot be read: ")


def test_a_table_that_is_one_row_short(tmp_path):
    write(tmp_path, [row(1)], [frame(0, 4096), frame(1, 4096)], ids=[1, 5])
    source = Code15(tmp_path)
    assert (len(source.tasks), source.tasks[1].record) == (2, "5")
    assert reason(source, 1) == "exams.csv has no row for this exam"
    source.load(source.tasks[0])


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (row(2, age="old"), "age is 'old', expected a number"),
        (row(2, patient=""), "patient_id is '', expected an integer"),
        (row(2, diagnoses="x,0,0,0,0,0"), "1dAVb is 'x', expected"),
        (row(2, file="../a.hdf5"), "trace_file is '../a.hdf5', expected the path of a file below"),
        ("2,38", "2 cells, the header line has 15"),
    ],
)
def test_a_bad_row_refuses_its_exam(tmp_path, changed, expected):
    write(tmp_path, [row(1), changed], [frame(0, 4096)])
    assert f"exams.csv, line 3: {expected}" in reason(Code15(tmp_path), 1)


def test_files_of_another_layout(tmp_path):
    def changed(name, change):
        write(tmp_path, [row(1, file=name)], [frame(0, 4096)], name=name)
        with h5py.File(tmp_path / name, "a") as file:
            change(file)
        return reason(Code15(tmp_path))

    assert changed("a", lambda file: file.pop("tracings")) == (
        "has no data set 'tracings' of its own"
    )

    def transpose(file):
        tracings = file.pop("tracings")[:]
        file["tracings"] = tracings.swapaxes(1, 2)

    assert "tracings [1, 12, 4096]; expected [n, samples, 12]" in changed("b", transpose)

    def link(file):
        del file["tracings"]
        file["tracings"] = h5py.ExternalLink(str(tmp_path / "a"), "/exam_id")

    assert "has no data set 'tracings' of its own" in changed("c", link)

    def fewer(file):
        del file["exam_id"]
        file["exam_id"] = [1, 2]

    assert changed("d", fewer).startswith("2 exams, tracings [1, 4096, 12]")


def test_an_absent_table(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"exams\.csv is absent"):
        Code15(tmp_path)
    (tmp_path / "exams.csv").write_text("exam_id,age\n")
    with pytest.raises(ValueError, match="columns patient_id, trace_file, is_male"):
        Code15(tmp_path)
