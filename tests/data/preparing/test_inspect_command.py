"""`python -m mmcl_jax.prepare inspect`: on made and on real files, and on what it cannot read."""

import json
import os

import made_cardiosoft
import numpy as np
import pytest
import tiny_source

from mmcl_jax import prepare
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.preparing import inspection
from mmcl_jax.data.signals.leads import LEADS


def inspect(capsys, path, code=0):
    """The JSON and the text of a path that can be read."""
    assert prepare.main(["inspect", str(path), "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert prepare.main(["inspect", str(path)]) == code
    return found, capsys.readouterr().out


def error(capsys, path):
    assert prepare.main(["inspect", str(path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("prepare inspect: ")
    assert printed.err.count("\n") == 1
    return printed.err


def write_wfdb(folder, name, signal, names=LEADS, unit="mV", rate=500):
    """Format 16, 1000 steps per unit; NaN is a missing sample."""
    digital = np.where(np.isnan(signal), -32768, np.rint(np.nan_to_num(signal) * 1000))
    (folder / f"{name}.dat").write_bytes(digital.T.astype("<i2").tobytes())
    lines = [f"{name} {len(signal)} {rate} {signal.shape[1]}"]
    lines += [f"{name}.dat 16 1000/{unit} 16 0 0 0 0 {lead}" for lead in names]
    checksums = digital.astype("<i2").sum(axis=1, dtype=np.int64) % 65536
    lines[1:] = [
        line.replace(" 0 0 0 0 ", f" 0 0 {c} 0 ")
        for line, c in zip(lines[1:], checksums, strict=True)
    ]
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")
    return folder / f"{name}.hea"


@pytest.fixture
def signal():
    beats = np.random.default_rng(0).normal(size=(12, 5000)) * 0.2
    beats[4] = 0
    beats[6, :50] = np.nan
    return beats


def test_a_wfdb_record(tmp_path, capsys, signal):
    names = ("I", "ii", "Lead III", *LEADS[3:])
    path = write_wfdb(tmp_path, "r1", signal, names)
    found, text = inspect(capsys, path)
    assert (found["kind"], found["rate"], found["seconds"], found["samples"]) == (
        "ecg",
        500,
        10,
        5000,
    )
    assert [lead["lead"] for lead in found["leads"]] == list(LEADS)
    assert found["leads"][1]["name"] == "ii"
    for row, lead in ((0, found["leads"][0]), (6, found["leads"][6])):
        assert lead["mean"] == pytest.approx(np.nanmean(signal[row]), abs=1e-3)
        assert lead["sd"] == pytest.approx(np.nanstd(signal[row]), abs=1e-3)
    assert found["leads"][6]["missing"] == 0.01
    assert found["usable"]
    assert "flat: aVL" in found["flags"]
    assert "12 signals, 500 Hz, 10 s (5,000 samples)" in text
    assert "Lead III            III    mV" in text
    assert "remark: flat: aVL" in text
    for other in (tmp_path / "r1", tmp_path / "r1.dat"):
        assert inspect(capsys, other)[0]["leads"] == found["leads"]


def test_a_record_that_would_be_refused(tmp_path, capsys, signal):
    path = write_wfdb(tmp_path, "r2", signal[:, :2500], ("I", "pressure", *LEADS[2:]), unit="uV")
    found, text = inspect(capsys, path)
    assert not found["usable"]
    assert "usable: no, " in text
    assert found["leads"][1]["lead"] is None
    assert found["leads"][0]["sd"] == pytest.approx(np.std(signal[0, :2500]) / 1000, rel=1e-2)
    path = write_wfdb(tmp_path, "r3", signal, unit="mmHg")
    found, text = inspect(capsys, path)
    assert found["leads"][0]["statistics_in"] == "mmHg"
    assert "in mmHg" in text
    assert "unit is 'mmHg'" in found["reason"]


def test_a_cardiosoft_file(tmp_path, capsys):
    pytest.importorskip("defusedxml")
    counts = np.random.default_rng(0).integers(-100, 100, (12, 5000))
    (tmp_path / "ecg.xml").write_bytes(made_cardiosoft.xml(counts))
    found, text = inspect(capsys, tmp_path / "ecg.xml")
    assert (found["rate"], found["samples"]) == (500, 5000)
    assert found["leads"][7]["unit"] == "uV"
    # 5 uV per step, shown in mV.
    assert found["leads"][7]["sd"] == pytest.approx(0.005 * counts[7].std(), rel=1e-4)
    assert "usable: yes" in text


def test_arrays(tmp_path, capsys, signal):
    ecgs = np.stack([signal.T] * 3)
    np.save(tmp_path / "ecg.npy", ecgs)
    found, text = inspect(capsys, tmp_path / "ecg.npy")
    array = found["arrays"][""]
    assert array["shape"] == [3, 5000, 12]
    assert array["lead_axis"] == 2
    assert array["leads"][4]["sd"] == 0
    assert array["leads"][6]["missing"] == 0.01
    assert "[:, :, 4]" in text
    assert "rate, unit and lead names are not in it" in text

    np.savez(tmp_path / "both.npz", x=np.zeros((2000, 3)), names=np.array(["a", "b"]))
    found, text = inspect(capsys, tmp_path / "both.npz")
    assert found["arrays"]["x"]["looked_at"] == 1000
    assert found["arrays"]["names"] == {"shape": [2], "dtype": "<U1"}
    assert "x: float64 [2000, 3], over the first 1,000" in text


def test_hdf5(tmp_path, capsys):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "exams.hdf5", "w") as file:
        file["group/tracings"] = np.ones((4, 4096, 12), np.float32)
        file["exam_id"] = np.arange(4)
    found, _ = inspect(capsys, tmp_path / "exams.hdf5")
    assert found["arrays"]["group/tracings"]["lead_axis"] == 2
    assert found["arrays"]["exam_id"]["max"] == 3


def test_a_cohort(tmp_path, capsys):
    source = tiny_source.TinySource(without_ecg=(11,))
    cohorts.write(source, tmp_path / "c", workers=0, progress=False)
    found, text = inspect(capsys, tmp_path / "c")
    cohort = cohorts.open_cohort(tmp_path / "c")
    assert found["settings_hash"] == cohort.settings_hash
    assert found["settings"] == cohort.settings
    assert found["splits"]["train"] == {"records": 28, "subjects": 28, "ecg": 27, "cmr": 28}
    volumes = cohort.table("train")["labels"][:, 1]
    assert found["labels"]["LVEDV"]["splits"]["train"]["known"] == (~np.isnan(volumes)).sum()
    mean, deviation = cohort.statistics["LVEDV"]
    assert found["labels"]["LVEDV"]["splits"]["train"]["mean"] == pytest.approx(mean, rel=1e-5)
    assert found["labels"]["LVEDV"]["splits"]["train"]["sd"] == pytest.approx(deviation, rel=1e-5)
    assert "cohort from source 'tiny'" in text
    assert f"sha256: {cohort.settings_hash}" in text
    assert "28 / 8 (28.6 %)" in text


def test_real_recordings(recordings, capsys):
    wfdb = pytest.importorskip("wfdb")
    path = recordings / "ptbxl" / "records500" / "00000" / "00001_hr"
    found, _ = inspect(capsys, path)
    expected = wfdb.rdrecord(str(path))
    assert [lead["name"] for lead in found["leads"]] == expected.sig_name
    np.testing.assert_allclose(
        [lead["mean"] for lead in found["leads"]], expected.p_signal.mean(0), rtol=1e-4, atol=1e-7
    )
    pytest.importorskip("pydicom")
    zips = recordings / "sunnybrook" / "dicom_zip"
    found, text = inspect(capsys, zips / "SCD0000101_sax_full.zip")
    assert (found["slices"], found["frames"], found["rows"]) == (12, 20, 256)
    assert found["slice_distance"] == pytest.approx(10, abs=0.1)
    assert "remark: phases by blood-pool area" in text


def test_nifti(tmp_path, capsys):
    nibabel = pytest.importorskip("nibabel")
    values = np.zeros((40, 36, 8), np.int16)
    values[10:20, 10:20, 2:6] = 3
    image = nibabel.Nifti1Image(values, np.diag([1.5, 1.5, 8.0, 1.0]))
    nibabel.save(image, tmp_path / "seg.nii.gz")
    found, text = inspect(capsys, tmp_path / "seg.nii.gz")
    assert (found["slices"], found["frames"]) == (8, 1)
    assert (found["pixel_size"], found["slice_distance"]) == (1.5, 8.0)
    assert "values: 0, 3" in text


def test_what_cannot_be_read_is_one_line(tmp_path, capsys):
    assert "there is no" in error(capsys, tmp_path / "none")
    assert "without cohort.json; give a cohort, or a file" in error(capsys, tmp_path)
    for name, content in (
        ("a.npy", b""),
        ("b.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False"),
        ("c.npz", b"PK\x03\x04"),
        ("d.zip", b""),
        ("e.xml", b"<?xml version='1.0'?><a"),
        ("f.nii", b"1234"),
        ("g.h5", b"no"),
        ("h.pt", b"\x80\x02."),
        ("i.hea", b"i 12 x\n"),
        ("j.docx", b""),
    ):
        (tmp_path / name).write_bytes(content)
        assert name in error(capsys, tmp_path / name)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    assert "Python objects" in error(capsys, tmp_path / "objects.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    assert "it is no file" in error(capsys, tmp_path / "pipe.npy")
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "cohort.json").write_text("{}")
    assert "is not a cohort" in error(capsys, tmp_path / "cohort")


def test_a_bomb_is_not_unpacked(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inspection, "_LARGEST", 10_000)
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros((2, 2)), b=np.zeros((100, 1000)))
    assert "b.npy is compressed and of 0.0 GiB; save it" in error(capsys, tmp_path / "bomb.npz")
    np.savez(tmp_path / "stored.npz", b=np.zeros((100, 1000)))
    assert inspect(capsys, tmp_path / "stored.npz")[0]["arrays"]["b"]["shape"] == [100, 1000]
