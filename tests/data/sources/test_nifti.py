import dataclasses
import pickle

import numpy as np
import pytest

from mmcl_jax.data.images import cmr
from mmcl_jax.data.signals import ecg
from mmcl_jax.data.subject import RefusedRecord

pytest.importorskip("nibabel")
heart_volumes = pytest.importorskip("heart_volumes")
nifti = pytest.importorskip("mmcl_jax.data.sources.nifti")

ED, ES = heart_volumes.ED, heart_volumes.ES
LVEDV = (heart_volumes.classes(ED) == 1).sum() * 1.5 * 1.5 * 8 / 1000


def loaded(source):
    """Subject by record, the reason for a refused one."""
    source = pickle.loads(pickle.dumps(source))
    found = {}
    for task in source.tasks:
        try:
            found[task.record] = source.load(task)
        except RefusedRecord as error:
            found[task.record] = error.reason
    return found


def acdc(folder, patient, part="training", labels=True, info="ED: 1\nES: 5\n"):
    place = folder / part / patient
    info += "Group: DCM\nHeight: 184.0\nNbFrame: 8\nWeight: 95.0\n"
    cycle = heart_volumes.cycle(heart_volumes.pixels)
    heart_volumes.save(place / f"{patient}_4d.nii.gz", cycle)
    for frame in (ED, ES):
        stem = f"{patient}_frame{frame + 1:02d}"
        heart_volumes.save(place / f"{stem}.nii.gz", heart_volumes.pixels(frame))
        if labels:
            classes = heart_volumes.renumber(heart_volumes.classes(frame), 3, 2, 1)
            heart_volumes.save(place / f"{stem}_gt.nii.gz", classes)
    (place / "Info.cfg").write_text(info)


def pair_of(folder, subject, before="", labels=True):
    """The two phases in a folder of their own, or in one folder with the subject in front."""
    for phase, frame in (("ED", ED), ("ES", ES)):
        heart_volumes.save(folder / f"{before}sa_{phase}.nii.gz", heart_volumes.pixels(frame))
        if labels:
            path = folder / f"{before}label_sa_{phase}.nii.gz"
            heart_volumes.save(path, heart_volumes.classes(frame))


def test_acdc(tmp_path):
    acdc(tmp_path, "patient001")
    acdc(tmp_path, "patient101", part="testing")
    source = nifti.Nifti(tmp_path, labels="acdc")
    assert source.settings == {"ecg": ecg.DEFAULT.as_dict(), "cmr": cmr.DEFAULT.as_dict()}
    assert source.parameters["layout"] == "acdc"
    assert source.parameters["labels"] == {"lv": 3, "myocardium": 2, "rv": 1}
    found = loaded(source)
    subject = found["patient001"]
    assert subject.cmr.shape == (210, 210, 3)
    assert "ES 4, mid 2, ED 0 of 8 frames" in subject.flags[0]
    assert subject.labels["LVEDV"] == pytest.approx(LVEDV)
    assert (subject.labels["height"], subject.labels["weight"]) == (184.0, 95.0)
    assert subject.labels["DCM"] == 1.0
    names = {label.name for label in source.labels}
    assert set(subject.labels) <= names
    assert {"LVEF", "RVEF", "WT_1", "WT_global", "LVCO", "DCM"} <= names
    assert (found["patient101"].split, found["patient101"].split_assigned) == ("test", False)
    assert subject.split in ("train", "val")


def test_acdc_without_what_says_the_phases(tmp_path):
    acdc(tmp_path, "patient001")
    acdc(tmp_path, "patient002", info="ED: one\n")
    acdc(tmp_path, "patient003")
    (tmp_path / "training" / "patient003" / "Info.cfg").unlink()
    acdc(tmp_path, "patient004", info="ED: 1\nES: 9\n")
    found = loaded(nifti.Nifti(tmp_path, labels="acdc"))
    assert not isinstance(found["patient001"], str)
    assert found["patient002"].startswith("Info.cfg does not say which frames are ED and ES")
    assert found["patient003"].startswith("Info.cfg is absent beside it")
    # The label map of frame 9 is not there either.
    assert "ED is frame 0 and ES frame 8, expected two of 8" in found["patient004"]


MMS = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
MMS_HEADER = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight\n"


def test_mms(tmp_path):
    rows = (
        "0,A0S9V9,Siemens,A,1,0,4,52,HCM,M,180.0,80.0\n1,A1K2P5,Philips,B,2,0,4,NaN,NOR,F,1.70,\n"
    )
    (tmp_path / MMS).write_text(MMS_HEADER + rows)
    sparse = heart_volumes.cycle(heart_volumes.classes)
    sparse[..., [1, 2, 3, 5, 6, 7]] = 0
    for place, code in (("Training/Labeled", "A0S9V9"), ("Testing", "A1K2P5")):
        folder = tmp_path / place / code
        cycle = heart_volumes.cycle(heart_volumes.pixels)
        heart_volumes.save(folder / f"{code}_sa.nii.gz", cycle)
        heart_volumes.save(folder / f"{code}_sa_gt.nii.gz", sparse)
    source = nifti.Nifti(tmp_path, labels="mms")
    assert source.parameters["layout"] == "mms"
    found = loaded(source)
    first, second = found["A0S9V9"], found["A1K2P5"]
    assert (first.split, second.split) == ("train", "test")
    assert first.labels["LVEDV"] == pytest.approx(LVEDV)
    assert {name: first.labels[name] for name in ("age", "sex", "height", "HCM", "NOR")} == {
        "age": 52.0,
        "sex": 1.0,
        "height": 180.0,
        "HCM": 1.0,
        "NOR": 0.0,
    }
    # A height in metres is not taken for one in centimetres.
    assert "height" not in second.labels
    assert "height left out: '1.70', expected 50 to 250" in second.flags
    (tmp_path / MMS).write_text("External code\n")
    with pytest.raises(ValueError, match="columns ED, ES, Pathology, Age, Sex, Height, Weight are"):
        nifti.Nifti(tmp_path, labels="mms")
    (tmp_path / MMS).unlink()
    with pytest.raises(FileNotFoundError, match="the table of M&Ms"):
        nifti.Nifti(tmp_path, layout="mms", labels="mms")


def test_mms2(tmp_path):
    (tmp_path / "dataset_information.csv").write_text(
        "SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD\n1,NOR,GE,x,1.5\n201,FALL,GE,x,1.5\n"
    )
    for code in ("001", "201"):
        folder = tmp_path / "dataset" / code
        cycle = heart_volumes.cycle(heart_volumes.pixels)
        heart_volumes.save(folder / f"{code}_SA_CINE.nii.gz", cycle)
        heart_volumes.save(folder / f"{code}_LA_ED.nii.gz", heart_volumes.pixels())
        for phase, frame in (("ED", ED), ("ES", ES)):
            stem = f"{code}_SA_{phase}"
            heart_volumes.save(folder / f"{stem}.nii.gz", heart_volumes.pixels(frame))
            heart_volumes.save(folder / f"{stem}_gt.nii.gz", heart_volumes.classes(frame))
    found = loaded(nifti.Nifti(tmp_path, labels="mms"))
    assert set(found) == {"001", "201"}
    assert (found["001"].split, found["201"].split) == ("train", "test")
    assert "ES 4, mid 2, ED 0" in found["201"].flags[0]
    assert (found["201"].labels["FALL"], found["201"].labels["NOR"]) == (1.0, 0.0)


def test_folders_and_names_of_the_uk_biobank_pipeline(tmp_path):
    pair_of(tmp_path / "1000012_20209_2_0", "1000012")
    heart_volumes.save(
        tmp_path / "1000012_20209_2_0" / "seg_sa_ED.nii.gz", heart_volumes.classes(ED) * 0
    )
    pair_of(tmp_path / "flat", "p7", before="p7_")
    pair_of(tmp_path / "flat", "p8", before="p8_", labels=False)
    source = nifti.Nifti(tmp_path, labels="ukb", mid="mean")
    assert source.parameters["layout"] == "ukb"
    assert [(task.record, task.subject) for task in source.tasks] == [
        ("1000012_20209_2_0", "1000012"),
        ("p7", "p7"),
        ("p8", "p8"),
    ]
    found = loaded(source)
    # The manual label map goes before the automatic one, which is empty here.
    assert found["1000012_20209_2_0"].labels["LVEDV"] == pytest.approx(LVEDV)
    assert found["p7"].labels == found["1000012_20209_2_0"].labels
    assert found["p8"].labels == {}
    assert found["p8"].split_assigned


def test_a_convention_has_to_be_given(tmp_path):
    pair_of(tmp_path, "p", before="p_")
    with pytest.raises(ValueError, match=r"there are label maps, such as .*: say what .* --labels"):
        nifti.Nifti(tmp_path)
    with pytest.raises(ValueError, match="labels are 'brats', expected one of"):
        nifti.Nifti(tmp_path, labels="brats")
    source = nifti.Nifti(tmp_path, labels="none", mid="mean")
    assert source.labels == ()
    assert loaded(source)["p"].labels == {}
    reason = loaded(nifti.Nifti(tmp_path, labels="acdc", mid="mean"))["p"]
    assert "label 3 cannot be the left ventricle" in reason


def test_absent_and_ambiguous_inputs(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        nifti.Nifti(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no NIfTI files named as in layout ukb"):
        nifti.Nifti(tmp_path)
    pair_of(tmp_path / "p1" / "2", "", labels=False)
    with pytest.raises(FileNotFoundError, match="named as in layout acdc"):
        nifti.Nifti(tmp_path, layout="acdc")
    pair_of(tmp_path / "p2" / "2", "", labels=False)
    with pytest.raises(ValueError, match="two examinations are called 2 .* --pairs whose they are"):
        nifti.Nifti(tmp_path)
    acdc(tmp_path, "patient001", labels=False)
    with pytest.raises(ValueError, match="files of several layouts; choose one with --layout"):
        nifti.Nifti(tmp_path)
    assert [task.record for task in nifti.Nifti(tmp_path, layout="acdc").tasks] == ["patient001"]


def test_what_is_incomplete_is_refused(tmp_path):
    for name in ("good", "no_es", "twice", "only_labels", "damaged"):
        pair_of(tmp_path / name, name)
    (tmp_path / "no_es" / "sa_ES.nii.gz").unlink()
    heart_volumes.save(tmp_path / "twice" / "sa_ED.nii", heart_volumes.pixels(ED))
    for phase in ("ED", "ES"):
        (tmp_path / "only_labels" / f"sa_{phase}.nii.gz").unlink()
    damaged = tmp_path / "damaged" / "sa_ES.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    found = loaded(nifti.Nifti(tmp_path, labels="ukb", mid="mean"))
    assert not isinstance(found.pop("good"), str)
    assert found.pop("no_es") == "the volume of ES is absent, and there is no cine"
    assert found.pop("twice") == "several files for one thing: sa_ED.nii, sa_ED.nii.gz"
    assert found.pop("only_labels").startswith("no image: only label maps")
    assert found.pop("damaged").startswith("damaged gzip file")
    assert not found


def test_pairs_with_ecgs(recordings, tmp_path):
    folder = recordings / "sunnybrook" / "nifti_derived"
    table = tmp_path / "pairs.csv"
    table.write_text(
        "subject,cmr,ecg,split,CAD\n"
        "p1,SCD0000101,s0010_re.hea,val,1\n"
        "p2,SCD0000999,,train,0\n"
        "p3,SCD0000201,../x.hea,train,0\n"
        "p4,,s0010_re,val,\n"
    )
    source = nifti.Nifti(
        folder, labels="sunnybrook", mid="mean", pairs=table, ecg_input=recordings / "ptb"
    )
    found = loaded(source)
    subject = found["p1+SCD0000101+s0010_re"]
    assert (subject.split, subject.ecg.shape, subject.ecg.dtype) == ("val", (12, 5000), np.float32)
    assert subject.cmr.shape == (210, 210, 3)
    assert subject.labels["CAD"] == 1.0
    assert subject.labels["LVEF"] == pytest.approx(26.0, rel=0.05)
    assert found["p4+s0010_re"].cmr is None
    assert found["p2+SCD0000999"] == "no NIfTI files of this examination in the input folder"
    assert "ecg is '../x.hea'" in found["p3+SCD0000201+x"]
    assert found["SCD0000301"] == "pairs.csv has no row with this examination"
    # Two ways to know one label would be a guess.
    table.write_text("subject,cmr,ecg,LVEF\np1,SCD0000101,,50\n")
    with pytest.raises(ValueError, match="columns LVEF also follow from the files"):
        nifti.Nifti(folder, labels="sunnybrook", mid="mean", pairs=table)
    assert nifti.Nifti(folder, labels="none", pairs=table).tasks[0].labels == {"LVEF": 50.0}


def test_real_patients_look_as_from_dicom(recordings):
    """The slices, frames and heart box of a zip and of the derived volumes of one patient."""
    dicom = pytest.importorskip("mmcl_jax.data.sources.dicom")
    folder = recordings / "sunnybrook"
    source = nifti.Nifti(folder / "nifti_derived", labels="sunnybrook", mid="mean")
    (task,) = [task for task in source.tasks if task.record == "SCD0000101"]
    ours = source.load(task)
    zips = dicom.DicomZips(folder / "dicom_zip")
    (task,) = [task for task in zips.tasks if task.record == "SCD0000101_sax_full"]
    theirs = zips.load(dataclasses.replace(task))
    # Frames of ED and ES lie up to two apart, so that the pictures are alike, not equal.
    for channel in (0, 2):
        pair = np.stack([ours.cmr[..., channel].ravel(), theirs.cmr[..., channel].ravel()])
        assert np.corrcoef(pair)[0, 1] > 0.97
    centres = [np.array(box[:2]) + np.array(box[2:]) / 2 for box in (ours.cmr_box, theirs.cmr_box)]
    assert np.abs(centres[0] - centres[1]).max() * 1.37 < 12  # mm
