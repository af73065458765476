import os
import pickle
import re

import numpy as np
import pytest
from wfdb_records import ecg, write_record

from mmcl_jax import prepare
from mmcl_jax.data import cohort
from mmcl_jax.data.sources.wfdb import Wfdb
from mmcl_jax.data.subject import RefusedRecord, assign_split


def by_record(source):
    return {task.record: task for task in source.tasks}


def test_every_header_below_the_folder_is_a_record_of_its_own(tmp_path):
    write_record(tmp_path / "b.1", ecg(0), comments=("Age: 56", "Sex: Male"))
    write_record(tmp_path / "deep" / "er" / "a", ecg(1), comments=("Age: -1",))
    (tmp_path / "README").write_text("no record")
    source = pickle.loads(pickle.dumps(Wfdb(tmp_path, seed=3)))
    assert list(by_record(source)) == ["b.1", "deep/er/a"]
    first, second = (source.load(task) for task in source.tasks)
    assert (first.record, first.subject, first.split_assigned) == ("b.1", "b.1", True)
    assert first.split == assign_split("b.1", 3)
    assert first.labels == {"age": 56, "sex": 1}
    assert (first.ecg.shape, first.ecg.dtype, first.flags) == ((12, 5000), np.float32, ())
    assert second.labels == {}
    assert second.flags == ("age left out: '-1' in the header",)
    assert [label.name for label in source.labels] == ["age", "sex"]


def test_a_table_names_subjects_splits_and_labels(tmp_path):
    for name in ("a", "b", "c", "d"):
        write_record(tmp_path / "r" / name, ecg(0), comments=("Age: 50", "Sex: F"))
    (tmp_path / "t.csv").write_text(
        "record,subject,split,LVEF,lvh:binary,age\n"
        "a.hea,p1,train,61.5,1,\n"
        "b,p1,train,,0,70\n"
        "c,p2,,,,\n"
        "lost,p3,,,,\n"
    )
    source = Wfdb(tmp_path / "r", tmp_path / "t.csv")
    assert [label.name for label in source.labels] == ["LVEF", "lvh", "age", "sex"]
    tasks = by_record(source)
    a, b, c = (source.load(tasks[name]) for name in "abc")
    assert a.labels == {"LVEF": 61.5, "lvh": 1, "age": 50, "sex": 0}
    assert b.labels == {"lvh": 0, "age": 70, "sex": 0}  # the table knows better than the header
    assert (a.subject, a.split, a.split_assigned) == ("p1", "train", False)
    assert (c.split, c.split_assigned) == (assign_split("p2"), True)
    with pytest.raises(RefusedRecord, match=r"d\.hea: the table has no row for this record"):
        source.load(tasks["d"])
    with pytest.raises(RefusedRecord, match=r"lost\.hea: the header is absent"):
        source.load(tasks["lost"])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a,p,somewhere,", "split is 'somewhere', expected one of train, val, test, or nothing"),
        ("a,p,,tall", "LVEF is 'tall', expected a number"),
        ("a,p,", r"t\.csv, line 2: 3 cells, the header line has 4"),
        ("a,p,,\na,p,,", r"t\.csv, line 3: a second row for this record"),
        ("../../a,p,,", r"t\.csv, line 2: record is '../../a', expected the path of a file below"),
        ("/etc/passwd,p,,", "expected the path of a file below"),
        (",p,,", "line 2: record is '', expected the path"),
    ],
)
def test_a_bad_row_refuses_its_record(tmp_path, row, reason):
    write_record(tmp_path / "a", ecg(0))
    (tmp_path / "t.csv").write_text(f"record,subject,split,LVEF\n{row}\n")
    source = Wfdb(tmp_path, tmp_path / "t.csv")
    reasons = []
    for task in source.tasks:
        with pytest.raises(RefusedRecord) as refusal:
            source.load(task)
        reasons.append(refusal.value.reason)
    assert any(re.search(reason, text) for text in reasons)


def test_subjects_from_the_path(tmp_path):
    for name in ("patient001/a", "patient001/b", "patient002/c", "other/d"):
        write_record(tmp_path / name, ecg(0))
    tasks = by_record(Wfdb(tmp_path, subject_pattern=r"patient(\d+)"))
    assert tasks["patient001/a"].subject == tasks["patient001/b"].subject == "001"
    assert tasks["patient001/a"].split == tasks["patient001/b"].split
    assert "does not occur in its path" in tasks["other/d"].refusal
    assert by_record(Wfdb(tmp_path, subject_pattern="^[^/]+"))["other/d"].subject == "other"
    with pytest.raises(ValueError, match="subject pattern"):
        Wfdb(tmp_path, subject_pattern="(")


def test_what_makes_the_whole_source_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        Wfdb(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match=r"holds no \.hea file"):
        Wfdb(tmp_path)
    write_record(tmp_path / "a", ecg(0))
    write_record(tmp_path / "b", ecg(0))
    table = tmp_path / "t.csv"
    table.write_text("record,subject,split\na,p,train\nb,p,test\n")
    with pytest.raises(ValueError, match=r"t\.csv: 1 subjects are in more than one split \(p\)"):
        Wfdb(tmp_path, table)
    table.write_text("record,lvh\na,1\n")
    with pytest.raises(ValueError, match="column 'lvh' is no known label; .* lvh:binary"):
        Wfdb(tmp_path, table)


def test_shorter_records_on_request(tmp_path):
    write_record(tmp_path / "a", ecg(0, seconds=8))
    source = Wfdb(tmp_path)
    with pytest.raises(RefusedRecord, match="8 s long, expected at least 10 s"):
        source.load(source.tasks[0])
    source = Wfdb(tmp_path, shortest=7)
    subject = source.load(source.tasks[0])
    assert subject.flags == ("padded: 8.0 s of 10 s",)
    assert not subject.ecg[:, 4000:].any()


def break_records(folder):
    """Records that cannot be used, each in its own way; reason by record."""

    def record(name, **options):
        return write_record(folder / name, ecg(len(os.listdir(folder))), **options)

    def edit(name, old, new):
        header = record(name)
        content = header.read_bytes()
        assert old in content
        header.write_bytes(content.replace(old, new))

    reasons = {}
    record("truncated")
    (folder / "truncated.dat").write_bytes((folder / "truncated.dat").read_bytes()[:-100])
    reasons["truncated"] = "truncated: 120000 bytes expected from the header, 119900 found"
    record("empty_signal")
    (folder / "empty_signal.dat").write_bytes(b"")
    reasons["empty_signal"] = "truncated"
    record("damaged")
    content = bytearray((folder / "damaged.dat").read_bytes())
    content[4000] ^= 1
    (folder / "damaged.dat").write_bytes(content)
    reasons["damaged"] = "checksum of signal"
    record("lost_signal")
    (folder / "lost_signal.dat").unlink()
    reasons["lost_signal"] = "the signal file is absent"
    (folder / "empty.hea").write_bytes(b"")
    reasons["empty"] = "the header is empty"
    (folder / "binary.hea").write_bytes(bytes(range(256)) * 4)
    reasons["binary"] = "unreadable record line"
    (folder / "folder.hea").mkdir()
    edit("fewer", b"fewer 12 500", b"fewer 13 500")
    reasons["fewer"] = "12 signal lines, the first line says 13"
    edit("outside", b"outside.dat", b"../../../etc/passwd")
    reasons["outside"] = "is not a file beside the header"
    edit("absolute", b"absolute.dat", b"/etc/passwd")
    reasons["absolute"] = "is not a file beside the header"
    edit("unit", b"1000/mV 16", b"1000/mmHg 16")
    reasons["unit"] = "unit is 'mmHg', expected mV, uV or V"
    edit("latin", b" 0 V6", b" 0 V\xe9")
    reasons["latin"] = "leads V6 are missing"
    edit("twice", b" 0 V6", b" 0 V5")
    reasons["twice"] = "lead V5 occurs twice"
    edit("segments", b"segments 12", b"segments/3 12")
    reasons["segments"] = "several segments"
    edit("format", b".dat 16 ", b".dat 8 ")
    reasons["format"] = "signal format 8 is not supported"
    edit("rate", b"rate 12 500", b"rate 12 0.001")
    reasons["rate"] = "sampling rate is 0.001 Hz"
    edit("no_rate", b"no_rate 12 500", b"no_rate 12 fast")
    reasons["no_rate"] = "unreadable record line"
    write_record(folder / "short", ecg(1, seconds=9.9))
    reasons["short"] = "9.9 s long"
    write_record(folder / "flat", np.zeros((12, 5000)))
    reasons["flat"] = "every lead is flat"
    write_record(folder / "two", ecg(2)[:2], names=("MLII", "V5"))
    reasons["two"] = "are missing; found MLII, V5"
    holes = ecg(3)
    holes[:4, 1000:] = -32.768
    write_record(folder / "holes", holes)
    reasons["holes"] = "of the samples are missing"
    return reasons


def test_a_folder_of_broken_records_gives_the_good_ones_and_a_reason_for_each_other(
    tmp_path, capsys
):
    folder = tmp_path / "in"
    folder.mkdir()
    reasons = break_records(folder)
    for seed, name in enumerate(("good", "better", os.fsdecode(b"n\xe4me"))):
        write_record(folder / name, ecg(100 + seed))
    output = tmp_path / "out"
    arguments = ["wfdb", "--input", str(folder), "--output", str(output), "--workers", "0"]
    assert prepare.main(arguments) == 0
    listed = {}
    for line in (output / "refused.csv").read_text().splitlines()[1:]:
        record, _, reason = line.split(",", 2)
        listed[record] = reason
    assert listed.keys() == reasons.keys()
    for record, reason in reasons.items():
        assert reason in listed[record], record
    assert sum(cohort.open_cohort(output).splits.values()) == 3
    assert f"read {len(reasons) + 3}, used 3, refused {len(reasons)}" in capsys.readouterr().out
    assert prepare.main([*arguments, "--overwrite", "--strict"]) == 1


def test_real_record_with_15_leads_in_two_files_at_1000_hz(recordings):
    (task,) = Wfdb(recordings / "ptb").tasks
    subject = Wfdb(recordings / "ptb").load(task)
    assert subject.labels == {"age": 81, "sex": 0}
    assert subject.flags == ("resampled from 1000 Hz",)
