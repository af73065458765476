"""The command `python -m mmcl_jax.prepare`."""

import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tiny_source

from mmcl_jax import prepare
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.images import cmr
from mmcl_jax.data.sources import ptbxl, synthetic


@pytest.fixture
def tiny_ptbxl(monkeypatch):
    """Puts the tiny source, two of its records refused, in the place of PTB-XL."""
    seen = []

    def make(**options):
        seen.append(options)
        return tiny_source.TinySource(count=8, refused=(1, 2))

    monkeypatch.setattr(ptbxl, "PtbXl", make)
    return seen


def test_writes_a_cohort_and_prints_the_summary(tiny_ptbxl, tmp_path, capsys):
    output = tmp_path / "deep" / "cohort"
    arguments = ["ptbxl", "--input", "in", "--output", str(output), "--workers", "0"]
    assert prepare.main(arguments) == 0
    assert tiny_ptbxl == [{"input": "in"}]
    assert cohorts.open_cohort(output).splits == {"train": 5, "val": 1, "test": 0}
    printed = capsys.readouterr()
    assert "read 8, used 6, refused 2" in printed.out
    assert "2 x lead V6 is absent" in printed.out
    assert "8 of 8 records (100 %)" in printed.err

    assert prepare.main(arguments) == 1
    assert capsys.readouterr().err == (
        f"prepare ptbxl: {output} exists; choose another output, or --overwrite to replace\n"
    )
    assert prepare.main([*arguments, "--overwrite"]) == 0


def test_strict(tiny_ptbxl, tmp_path, capsys):
    output = tmp_path / "cohort"
    arguments = ["ptbxl", "--input", "in", "--output", str(output), "--workers", "0", "--strict"]
    assert prepare.main(arguments) == 1
    assert "--strict: 2 records were refused" in capsys.readouterr().err
    assert cohorts.open_cohort(output).splits["train"] == 5


def test_bad_input_is_one_line(tmp_path, capsys):
    output = str(tmp_path / "cohort")
    assert prepare.main(["ptbxl", "--input", str(tmp_path), "--output", output]) == 1
    assert prepare.main(["dicom", "--input", str(tmp_path / "none"), "--output", output]) == 1
    assert prepare.main(["synthetic", "--subjects", "0", "--output", output]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("prepare ptbxl: ")
    assert str(tmp_path / "none") in lines[1]
    assert "subjects is 0" in lines[2]
    assert list(tmp_path.iterdir()) == []


def test_dicom_without_its_reader(monkeypatch, tmp_path, capsys):
    monkeypatch.delitem(sys.modules, "mmcl_jax.data.sources.dicom", raising=False)
    for module in ("images.cine", "formats.dicom_images"):
        monkeypatch.delitem(sys.modules, f"mmcl_jax.data.{module}", raising=False)
        monkeypatch.delattr(f"mmcl_jax.data.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    arguments = ["dicom", "--input", str(tmp_path), "--output", str(tmp_path / "cohort")]
    assert prepare.main(arguments) == 1
    assert "pip install 'mmcl_jax[dicom]'" in capsys.readouterr().err


def test_options_reach_the_synthetic_source(monkeypatch, tmp_path):
    made = []

    def make(**options):
        made.append(options)
        return tiny_source.TinySource(count=2)

    monkeypatch.setattr(synthetic, "Synthetic", make)
    arguments = [
        "--subjects",
        "7",
        "--seed",
        "3",
        "--prevalence",
        "demo",
        "--imaged",
        "0.5",
        "--workers",
        "0",
    ]
    assert prepare.main(["synthetic", "--output", str(tmp_path / "c"), *arguments]) == 0
    expected = {"subjects": 7, "seed": 3, "prevalence": "demo", "imaged": 0.5, "phenotyped": 0.5}
    assert made == [{**expected, "splits": (70, 15, 15)}]


@pytest.mark.parametrize("source", prepare.SOURCES)
def test_help(source, capsys):
    with pytest.raises(SystemExit) as stop:
        prepare.main([source, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"example: python -m mmcl_jax.prepare {source} " in text
    assert "--strict" in text


def test_help_lists_the_sources(capsys):
    with pytest.raises(SystemExit) as stop:
        prepare.main(["--help"])
    assert stop.value.code == 0
    assert "CODE-15%: 345,779 ECGs" in capsys.readouterr().out


def test_a_command_line_with_a_worker_process(tmp_path):
    output = tmp_path / "cohort"
    command = [sys.executable, "-m", "mmcl_jax.prepare", "synthetic"]
    command += ["--subjects", "3", "--prevalence", "demo", "--workers", "1"]
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "read 3, used 3, refused 0" in done.stdout
    cohort = cohorts.open_cohort(output)
    assert sum(cohort.splits.values()) == 3
    assert cohort.settings == json.loads(json.dumps(synthetic.Synthetic().settings))


def test_real_ecgs(recordings, tmp_path):
    source = ptbxl.PtbXl(recordings / "ptbxl")
    source.tasks = source.tasks[:6]
    report = cohorts.write(source, tmp_path / "c", workers=0, progress=False)
    assert report.used == 6
    cohort = cohorts.open_cohort(tmp_path / "c")
    assert [label.name for label in cohort.target("superclass")][:2] == ["NORM", "MI"]
    split = next(name for name, size in cohort.splits.items() if size)
    ecg = cohort.source(split)[0]["ecg"]
    assert ecg.shape == (12, 5000)
    assert abs(ecg[:3].mean()) < 1e-3
    assert ecg[:3].std() == pytest.approx(1, abs=1e-2)


def test_real_pairs_of_cmr_and_ecg(recordings, tmp_path, capsys):
    """The ECGs are those of other people: this tests the path of the data, nothing clinical."""
    pytest.importorskip("pydicom")
    zips = recordings / "sunnybrook" / "dicom_zip"
    # Subject, split, LVEDV, and the expert's contour of the middle slice at ED.
    rows = {
        "SCD0000101_sax_full": ("a", "train", "194.5", "SC-HF-I-1", 119),
        "SCD0000201_sax_3slices": ("b", "val", "", "SC-HF-I-2", 140),
        "SCD0000301_sax_3slices": ("c", "test", "232.7", "SC-HF-I-4", 120),
    }
    pairs = tmp_path / "pairs.csv"
    with pairs.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "cmr", "ecg", "split", "LVEDV"])
        for number, (name, (subject, split, volume, *_)) in enumerate(rows.items(), start=1):
            writer.writerow([subject, f"{name}.zip", f"00000/0000{number}_hr", split, volume])
    output = tmp_path / "cohort"
    arguments = ["dicom", "--input", str(zips), "--pairs", str(pairs), "--output", str(output)]
    arguments += ["--ecg", str(recordings / "ptbxl" / "records500"), "--workers", "0"]
    assert prepare.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "records with: ECG 3, CMR 3, both 3" in printed
    assert "3 x phases by blood-pool area, e.g. ES" in printed
    assert "2 x few slices: 3" in printed
    assert "constant heart box" not in printed
    assert (output / "preview.png").is_file()

    cohort = cohorts.open_cohort(output)
    assert cohort.splits == {"train": 1, "val": 1, "test": 1}
    assert [label.name for label in cohort.labels] == ["LVEDV"]
    assert cohort.statistics == {"LVEDV": (194.5, 1.0)}
    for number, (name, row) in enumerate(rows.items(), start=1):
        subject, split, volume, patient, contour = row
        table = cohort.table(split)
        assert table["record"] == [f"{subject}+{name}+0000{number}_hr"]
        assert table["subject"] == [subject]
        np.testing.assert_allclose(table["labels"], [[float(volume or "nan")]], rtol=1e-6)
        record = cohort.source(split)[0]
        assert record["ecg"].shape == (12, 5000)
        assert record["ecg"][6:].std() == pytest.approx(1, abs=1e-2)
        assert record["cmr"].shape == (210, 210, 3)
        assert record["cmr"].max() == 255
        file = recordings / f"sunnybrook/contours/{patient}/i-contours"
        file = file / f"IM-0001-{contour:04d}-icontour-manual.txt"
        x, y = (np.loadtxt(file) + cmr.offset((256, 256))).T
        top, left, height, width = record["cmr_box"]
        assert left < x.mean() < left + width
        assert top < y.mean() < top + height
        window = record["cmr"][
            int(y.min()) : int(y.max()) + 1, int(x.min()) : int(x.max()) + 1
        ].astype(float)
        # The bright pool fills the box around its contour at ED best at ED, worst at ES.
        es, mid, ed = window.mean(axis=(0, 1))
        assert es < mid < ed


def test_forty_broken_records_and_names_that_are_no_utf_8(monkeypatch, tmp_path, capfdbinary):
    """The good ones are prepared, every bad one is listed, and the exit code is 0."""

    class Broken(tiny_source.TinySource):
        def load(self, task):
            if task < 40:
                path = f"/data/caf\udce9 <{task}>,\n'{task}'.hea"
                raise tiny_source.RefusedRecord(path, f"reason {task}: \udcff <b>&")
            subject = super().load(task)
            subject.record = subject.subject = f"\udcfe{task}"
            subject.flags = ("odd: \udce9",)
            return subject

    monkeypatch.setattr(ptbxl, "PtbXl", lambda **_: Broken(count=50))
    output = str(tmp_path / "cohort")
    arguments = ["ptbxl", "--input", "in", "--output", output, "--workers", "0"]
    assert prepare.main(arguments) == 0
    assert b"read 50, used 10, refused 40" in capfdbinary.readouterr().out
    with open(f"{output}/refused.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 40
    assert rows[7] == {
        "record": "caf\\udce9 <7>,\n'7'",
        "file": "/data/caf\\udce9 <7>,\n'7'.hea",
        "reason": "reason 7: \\udcff <b>&",
    }
    page = (pathlib.Path(output) / "prepare_report.html").read_text(encoding="utf-8")
    assert "reason 0: \\udcff &lt;b&gt;&amp;" in page
    assert prepare.main(["inspect", output]) == 0
    assert prepare.main([*arguments, "--overwrite", "--strict"]) == 1

    capfdbinary.readouterr()
    assert prepare.main([*arguments[:3], "--output", f"{output}\udce9"]) == 1
    assert (
        b"cohort\\udce9, is not UTF-8, which ArrayRecord files need" in capfdbinary.readouterr().err
    )


def test_a_runner_without_beam(monkeypatch, tmp_path, capsys):
    monkeypatch.delitem(sys.modules, "mmcl_jax.data.preparing.beam", raising=False)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    arguments = ["synthetic", "--output", str(tmp_path / "c"), "--runner", "DirectRunner"]
    assert prepare.main(arguments) == 1
    assert "pip install 'mmcl_jax[beam]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_preparation_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    class Interrupted(tiny_source.TinySource):
        def load(self, task):
            raise KeyboardInterrupt

    monkeypatch.setattr(ptbxl, "PtbXl", lambda **_: Interrupted(count=1))
    output = str(tmp_path / "c")
    assert prepare.main(["ptbxl", "--input", "in", "--output", output, "--workers", "0"]) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
