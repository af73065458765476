import csv
import pickle

import pytest
from wfdb_records import ecg, write_record

from mmcl_jax.data.sources.cinc import SCORED, Cinc
from mmcl_jax.data.subject import RefusedRecord, assign_split


def load(folder, *comments, **options):
    write_record(folder / "g1" / "A1", ecg(0), comments=comments)
    source = Cinc(folder, **options)
    return source.load(source.tasks[0])


def positive(subject):
    return {name for name, value in subject.labels.items() if value == 1} - {"age", "sex"}


def test_codes_age_and_sex_of_a_header(tmp_path):
    subject = load(tmp_path, "Age: 71", "Sex: Male", "Dx: 59118001,426177001", "Rx: Unknown")
    assert (subject.record, subject.subject) == ("A1", "A1")
    assert (subject.split, subject.split_assigned) == (assign_split("A1"), True)
    assert positive(subject) == {"RBBB", "SB"}
    assert (subject.labels["age"], subject.labels["sex"], subject.labels["AF"]) == (71, 1, 0)
    assert len(subject.labels) == 26 + 2
    assert subject.flags == ()


@pytest.mark.parametrize(
    ("codes", "name"),
    [
        ("713427006,59118001", "RBBB"),
        ("733534002,164909002", "LBBB"),
        ("284470004,63593006", "PAC"),
        ("427172004,17338001", "PVC"),
    ],
)
def test_codes_that_the_challenge_takes_for_equal_are_one_class(tmp_path, codes, name):
    for code in codes.split(","):
        assert positive(load(tmp_path, f"Dx: {code}")) == {name}


def test_unknown_codes_are_said_and_a_record_without_diagnosis_has_no_such_labels(tmp_path):
    subject = load(tmp_path, "Dx: 426783006, 7,99, 7")
    assert positive(subject) == {"NSR"}
    assert subject.flags == ("codes without a class: 7, 99",)
    for comments in ((), ("Dx: Unknown",), ("Dx:",)):
        subject = load(tmp_path, "Age: 50", *comments)
        assert subject.labels == {"age": 50}
        assert subject.flags == ("no diagnosis in the header, its labels are missing",)


def test_classes_of_ones_own(tmp_path):
    table = tmp_path / "c.csv"
    table.write_text("code,name\n1,any block\n2,any block\n3,NSR\n")
    subject = load(tmp_path, "Dx: 2,426783006", classes=table)
    assert subject.labels == {"any block": 1, "NSR": 0}
    assert subject.flags == ("codes without a class: 426783006",)
    for content, message in (
        ("code,name\n1,a\n1,b\n", "line 3: code 1 is b and a"),
        ("code,name\n1,\n", "line 2: a row needs a code and a name"),
        ("code,name\n1,age\n", "line 2: age is the name of another label"),
        ("code,name\n", "no classes"),
        ("Dx,Code\n", "columns code, name are missing"),
    ):
        table.write_text(content)
        with pytest.raises(ValueError, match=message):
            Cinc(tmp_path, table)


def test_the_scored_classes_are_those_of_the_challenge(recordings):
    with open(recordings / "cinc2021" / "dx_mapping_scored.csv", newline="") as file:
        published = {row["SNOMEDCTCode"]: row["Abbreviation"] for row in csv.DictReader(file)}
    class_of = {code: name for name, _, codes in SCORED for code in codes}
    assert class_of.keys() == published.keys()
    merged = {"CLBBB": "LBBB", "CRBBB": "RBBB", "SVPB": "PAC", "VPB": "PVC"}
    assert class_of == {code: merged.get(name, name) for code, name in published.items()}


def test_real_records(recordings):
    source = pickle.loads(pickle.dumps(Cinc(recordings / "cinc2021")))
    assert len(source.tasks) == 30
    subjects = {task.record: source.load(task) for task in source.tasks}
    assert positive(subjects["E07509"]) == {"RBBB", "SB"}
    assert (subjects["HR06000"].labels["age"], subjects["HR06000"].labels["sex"]) == (59, 0)
    assert (subjects["E07509"].ecg == subjects["E07510"].ecg).all()


def test_a_mat_file_of_another_version_is_refused(tmp_path):
    header = write_record(tmp_path / "A1", ecg(0), comments=("Dx: 1",))
    header.write_text(header.read_text().replace(".dat 16 ", ".dat 16x1+24 "))
    (tmp_path / "A1.dat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(120_024, b"\1"))
    source = Cinc(tmp_path)
    with pytest.raises(RefusedRecord, match="checksum"):
        source.load(source.tasks[0])
