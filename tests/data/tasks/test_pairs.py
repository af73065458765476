import pathlib

import pytest

from mmcl_jax.data.tasks import pairs

CMR, ECG = pathlib.Path("cmr"), pathlib.Path("ecg")


def read(folder, text):
    path = folder / "pairs.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return pairs.read_pairs(path, CMR, ECG, seed=0)


def test_paths_labels_and_splits(tmp_path):
    labels, tasks = read(
        tmp_path,
        "subject,cmr,ecg,split,CAD,NTproBNP:regression:ng/L\n"
        "p1,a,x/1.hea,train,1,125\np2,b,,test,0,\np3,,2,,,\n",
    )
    assert [(label.name, label.unit) for label in labels] == [("CAD", ""), ("NTproBNP", "ng/L")]
    first, second, third = tasks
    assert (first.record, first.cmr, first.ecg) == ("p1+a+1", CMR / "a", ECG / "x" / "1.hea")
    assert first.labels == {"CAD": 1.0, "NTproBNP": 125.0}
    assert (second.split, second.split_assigned, second.ecg) == ("test", False, None)
    assert (third.split_assigned, third.labels, third.refusal) == (True, {}, "")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("p1,,", "a row needs a subject and a path"),
        (",a,", "a row needs a subject and a path"),
        ("p1,../a,", "expected the path of a file below the input folder"),
        ("p1,a", "2 cells, the header line has 3"),
    ],
)
def test_a_row_that_cannot_be_used_is_a_refused_task(tmp_path, row, reason):
    _, (good, bad) = read(tmp_path, f"subject,cmr,ecg\np0,a,\n{row}\n")
    assert good.refusal == ""
    assert reason in bad.refusal
    assert "line 3" in bad.refusal


def test_unusable_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="pairs.csv is absent"):
        pairs.read_pairs(tmp_path / "pairs.csv", CMR, ECG, seed=0)
    with pytest.raises(ValueError, match="columns ecg are missing"):
        read(tmp_path, "subject,cmr\np1,a\n")
    with pytest.raises(ValueError, match="column 'NTproBNP' is no known label"):
        read(tmp_path, "subject,cmr,ecg,NTproBNP\np1,a,,125\n")
    with pytest.raises(ValueError, match=r"1 subjects are in more than one split [(]p1[)]"):
        read(tmp_path, "subject,cmr,ecg,split\np1,a,,train\np1,b,,test\n")
