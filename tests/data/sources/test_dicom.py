import pickle
import re

import numpy as np
import pytest

from mmcl_jax.data.images import cmr
from mmcl_jax.data.signals import ecg
from mmcl_jax.data.subject import RefusedRecord

pytest.importorskip("pydicom")
dicom = pytest.importorskip("mmcl_jax.data.sources.dicom")

# Frames of ED and ES that the expert chose, counted from 0, and the expert's contour of the left
# ventricle in the middle slice at ED.
EXPERT = {
    "SCD0000101_sax_full": (18, 7, "SC-HF-I-1/i-contours/IM-0001-0119-icontour-manual.txt"),
    "SCD0000201_sax_3slices": (19, 6, "SC-HF-I-2/i-contours/IM-0001-0140-icontour-manual.txt"),
    "SCD0000301_sax_3slices": (19, 6, "SC-HF-I-4/i-contours/IM-0001-0120-icontour-manual.txt"),
}


def test_a_folder_gives_one_subject_per_zip(tmp_path):
    for name in ("1000012_20209_2_0", "1000012_20209_3_0", "patient"):
        (tmp_path / f"{name}.zip").touch()
    source = dicom.DicomZips(tmp_path)
    assert [task.record for task in source.tasks] == [
        "1000012_20209_2_0",
        "1000012_20209_3_0",
        "patient",
    ]
    # Two visits of one participant.
    assert [task.subject for task in source.tasks] == ["1000012", "1000012", "patient"]
    assert source.tasks[0].split == source.tasks[1].split
    assert source.labels == ()
    assert source.settings == {"ecg": ecg.DEFAULT.as_dict(), "cmr": cmr.DEFAULT.as_dict()}


def test_absent_inputs(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        dicom.DicomZips(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no .zip"):
        dicom.DicomZips(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a CSV file with the columns subject"):
        dicom.DicomZips(tmp_path, tmp_path / "pairs.csv")


def table(folder, text):
    path = folder / "pairs.csv"
    path.write_text(text)
    return path


def test_a_table_pairs_labels_and_splits(tmp_path):
    pairs = table(
        tmp_path,
        "subject,cmr,ecg,split,LVEDV,CAD\n"
        "p1,a.zip,x/1.hea,train,150.5,1\n"
        "p1,b.zip,,train,,0\n"
        "p2,,x/2,test,,\n",
    )
    source = dicom.DicomZips(tmp_path, pairs, ecg_input=tmp_path / "ecg")
    first, second, third = source.tasks
    assert (first.record, first.subject, first.split) == ("p1+a+1", "p1", "train")
    assert (first.cmr, first.ecg) == (tmp_path / "a.zip", tmp_path / "ecg" / "x" / "1.hea")
    assert first.labels == {"LVEDV": 150.5, "CAD": 1.0}
    assert (second.record, second.ecg, second.labels) == ("p1+b", None, {"CAD": 0.0})
    assert (third.cmr, third.split, third.labels) == (None, "test", {})
    assert [(label.name, label.kind) for label in source.labels] == [
        ("LVEDV", "regression"),
        ("CAD", "binary"),
    ]


def test_own_labels_can_be_declared(tmp_path):
    pairs = table(tmp_path, "subject,cmr,ecg,NTproBNP\np1,a.zip,,125\n")
    with pytest.raises(ValueError, match="column 'NTproBNP' is no known label; remove it, or dec"):
        dicom.DicomZips(tmp_path, pairs)
    pairs = table(tmp_path, "subject,cmr,ecg,NTproBNP:regression:ng/L\np1,a.zip,,125\n")
    source = dicom.DicomZips(tmp_path, pairs)
    assert [(label.name, label.kind, label.unit) for label in source.labels] == [
        ("NTproBNP", "regression", "ng/L")
    ]
    assert source.tasks[0].labels == {"NTproBNP": 125.0}


def test_zips_without_a_row_are_refused(tmp_path):
    for name in ("a.zip", "b.ZIP"):
        (tmp_path / name).touch()
    # A row that cannot be used is a row all the same.
    source = dicom.DicomZips(tmp_path, table(tmp_path, "subject,cmr,ecg,LVEF\np1,a.zip,,x\n"))
    assert [task.record for task in source.tasks] == ["p1+a", "b"]
    with pytest.raises(RefusedRecord, match=r"b\.ZIP: pairs\.csv has no row with this zip"):
        source.load(source.tasks[1])


def test_splits_follow_the_seed(tmp_path):
    rows = "".join(f"p{number},{number}.zip,\n" for number in range(60))
    pairs = table(tmp_path, "subject,cmr,ecg\n" + rows)
    splits = [[t.split for t in dicom.DicomZips(tmp_path, pairs, seed=s).tasks] for s in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    assert set(splits[0]) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("subject,cmr\np1,a.zip\n", "columns ecg are missing"),
        ("subject,cmr,ecg,cmr\np1,a.zip,,\n", "columns cmr occur more than once"),
        (
            "subject,cmr,ecg,split\np1,a.zip,,train\np1,b.zip,,test\n",
            r"1 subjects are in more than one split \(p1\)",
        ),
    ],
)
def test_unusable_tables(tmp_path, text, reason):
    with pytest.raises(ValueError, match=reason):
        dicom.DicomZips(tmp_path, table(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("subject,cmr,ecg\np1,,\n", "line 2: a row needs a subject"),
        ("subject,cmr,ecg\n,a.zip,\n", "line 2: a row needs a subject"),
        ("subject,cmr,ecg\np1,a.zip\n", "line 2: 2 cells, the header line has 3"),
        ("subject,cmr,ecg\np1,../a.zip,\n", r"line 2: cmr is '\.\./a\.zip', expected the path"),
        ("subject,cmr,ecg\np1,,/etc/x\n", "line 2: ecg is '/etc/x', expected the path"),
        ("subject,cmr,ecg,split\np1,a.zip,,dev\n", "line 2: split is 'dev', expected one of"),
        ("subject,cmr,ecg,LVEF\np1,a.zip,,low\n", "line 2: LVEF is 'low', expected a number"),
        ("subject,cmr,ecg,CAD\np1,a.zip,,2\n", "line 2: CAD is '2', expected 0 or 1"),
    ],
)
def test_unusable_rows_are_refused(tmp_path, text, reason):
    source = dicom.DicomZips(tmp_path, table(tmp_path, text))
    with pytest.raises(RefusedRecord, match=reason):
        source.load(source.tasks[0])


@pytest.mark.parametrize("name", sorted(EXPERT))
def test_real_phases_and_box_agree_with_the_expert(recordings, name):
    folder = recordings / "sunnybrook"
    source = pickle.loads(pickle.dumps(dicom.DicomZips(folder / "dicom_zip")))
    (task,) = [task for task in source.tasks if task.record == name]
    subject = source.load(task)
    assert (subject.cmr.shape, subject.cmr.dtype) == ((210, 210, 3), np.uint8)
    assert subject.ecg is None
    (phases,) = [flag for flag in subject.flags if "blood-pool area" in flag]
    frame = {phase: int(number) for phase, number in re.findall(r"(ED|ES) (\d+)", phases)}
    ed, es, contour = EXPERT[name]
    for found, expected in ((frame["ED"], ed), (frame["ES"], es)):
        away = (found - expected) % 20
        assert min(away, 20 - away) <= 2
    # Contours give x and y of each point in pixels of the frame.
    points = np.loadtxt(folder / "contours" / contour) + cmr.offset((256, 256))
    top, left, height, width = subject.cmr_box
    assert left < points[:, 0].min()
    assert points[:, 0].max() < left + width
    assert top < points[:, 1].min()
    assert points[:, 1].max() < top + height
    centre = points.mean(axis=0)
    assert np.hypot(left + width / 2 - centre[0], top + height / 2 - centre[1]) * 1.37 < 12


def test_a_real_pair(recordings, tmp_path):
    pairs = table(
        tmp_path,
        "subject,cmr,ecg,split,LVEDV\n"
        "SCD0000201,sunnybrook/dicom_zip/SCD0000201_sax_3slices.zip,ptb/s0010_re.hea,val,245.9\n",
    )
    source = dicom.DicomZips(recordings, pairs)
    subject = source.load(source.tasks[0])
    assert (subject.subject, subject.split) == ("SCD0000201", "val")
    assert (subject.ecg.shape, subject.ecg.dtype) == ((12, 5000), np.float32)
    assert subject.cmr.shape == (210, 210, 3)
    assert subject.labels == {"LVEDV": 245.9}
    assert {"few slices: 3", "resampled from 1000 Hz"} <= set(subject.flags)
