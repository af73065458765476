"""The commands `embed` and `predict`: what they write, and what they refuse."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from trained_run import CLASSES, N, command

from mmcl_jax import embed, evaluate, predict, stages
from mmcl_jax.data.cohort import settings_hash
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.experiment import Experiment
from mmcl_jax.inference import models as inference_models
from mmcl_jax.inference import run as inference_run
from mmcl_jax.inference.models import Group


def test_predictions_equal_those_of_evaluate(run, predicted):
    ours = np.load(predicted / "predict.npz")
    row_of = {record: row for row, record in enumerate(ours["record"].tolist())}
    experiment = Experiment.open(run)
    stage_of = {stage.name: stage for stage in experiment.stages}
    for target, names in {
        "CAD": ["CAD_probability"],
        "LVEDV": ["LVEDV_mL"],
        "rhythm": [f"rhythm: {name}_probability" for name in CLASSES],
    }.items():
        theirs = []
        for seed in (0, 1):
            stage = stage_of[f"finetune/{target}/{seed}"]
            options = {"splits": ("val", "test"), "crops": 3, "batch_size": 8}
            model = experiment.load(stage)
            theirs.append(evaluate.predict_labels(experiment, stage, model, **options))
        rows = [row_of[record] for record in theirs[0]["record"].tolist()]
        seeds = np.stack([file["prediction"] for file in theirs])
        for k, name in enumerate(names):
            np.testing.assert_allclose(ours[name][rows], seeds[:, :, k].mean(0), rtol=1e-6)
            sd = seeds[:, :, k].std(0, ddof=1)
            np.testing.assert_allclose(ours[f"{name}_sd"][rows], sd, atol=2e-6 * seeds.max())
        assert ours["subject"][rows].tolist() == theirs[0]["subject"].tolist()
        assert ours["split"][rows].tolist() == theirs[0]["split"].tolist()


def test_formats_hold_the_same(run, data, predicted, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    for verb in (predict, embed):
        name = verb.__name__.rpartition(".")[2]
        arrays = np.load(predicted / f"{name}.npz")
        for suffix in ("csv", "parquet"):
            assert command(verb, run, data / "cohort", tmp_path / f"{name}.{suffix}") == 0
        with (tmp_path / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        table = pq.read_table(tmp_path / f"{name}.parquet")
        assert [row["record"] for row in rows] == arrays["record"].tolist()
        assert table["record"].to_pylist() == arrays["record"].tolist()
        if verb is embed:
            vectors = np.array(table["embedding"].to_pylist(), np.float32)
            np.testing.assert_array_equal(vectors, arrays["embedding"])
            assert float(rows[7]["e3"]) == pytest.approx(arrays["embedding"][7, 3], rel=1e-8)
        else:
            np.testing.assert_array_equal(table["LVEDV_mL"], arrays["LVEDV_mL"])
            assert table.schema.field("LVEDV_mL").metadata[b"unit"] == b"mL"
            assert float(rows[7]["LVEDV_mL"]) == pytest.approx(arrays["LVEDV_mL"][7], rel=1e-8)
        about = json.loads((tmp_path / f"{name}.csv.json").read_text())
        assert (about["records"], about["refused"], about["windows_per_record"]) == (N, 0, 3)
    about = json.loads((predicted / "predict.npz.json").read_text())
    volume = about["columns"][2]
    assert (volume["name"], volume["unit"], volume["statistic"]) == ("LVEDV_mL", "mL", "mean")
    assert volume["stages"] == ["finetune/LVEDV/0", "finetune/LVEDV/1"]


def test_records_that_cannot_be_read_are_listed(run, model, data, tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    ecg = np.load(data / "ecg.npy")
    several = ecg[:3].copy()
    several[1] = np.nan
    np.save(folder / "deeper" / "three.npy", several)
    np.save(folder / "one.npy", ecg[4])
    (folder / "empty.hea").write_text("")
    (folder / "torn.npz").write_bytes(b"PK\x03\x04")
    (folder / "notes.txt").write_text("not an ECG")
    options = ["--rate", 500, "--unit", "mV", "--subject-pattern", r"\w+$|\w+(?=\[)"]
    assert command(embed, run, folder, tmp_path / "out.npz", *options, "--strict") == 1
    assert "3 records were refused" in capsys.readouterr().err
    out = np.load(tmp_path / "out.npz")
    assert out["record"].tolist() == [
        "empty", "one", "torn", "deeper/three[0]", "deeper/three[1]", "deeper/three[2]",
    ]  # fmt: skip
    assert out["subject"].tolist() == ["empty", "one", "torn", "three", "three", "three"]
    used = np.array([False, True, False, True, False, True])
    assert (out["refused"] == "").tolist() == used.tolist()
    assert (np.isfinite(out["embedding"]).all(axis=1) == used).all()
    assert np.isnan(out["embedding"][~used]).all()
    assert out["file"][1] == str(folder / "one.npy")
    np.testing.assert_allclose(out["embedding"][used], model.embed(ecg[[4, 0, 2]]), atol=1e-6)
    # Without --strict they are no error.
    again = [*options, "--overwrite"]
    assert command(embed, run, folder, tmp_path / "out.npz", *again) == 0
    assert command(predict, run, folder, tmp_path / "out.csv", *options) == 0
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["CAD_probability"] == ""
    assert rows[0]["refused"]
    # An array among other files may be something else.
    assert command(embed, run, folder, tmp_path / "undeclared.npz") == 1
    reasons = np.load(tmp_path / "undeclared.npz")["refused"].tolist()
    assert sum("neither its rate nor its unit" in reason for reason in reasons) == 3
    capsys.readouterr()
    nothing = folder / "empty.hea"
    assert command(embed, run, nothing, tmp_path / "nothing.npz") == 1
    assert "none of the records can be used" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [embed, predict])
def test_an_interrupted_output_ends_as_an_uninterrupted_one(
    run, data, tmp_path, monkeypatch, capsys, verb
):
    name = verb.__name__.rpartition(".")[2]
    program_of = {"embed": lambda r: r.embedder, "predict": lambda r: r.predictor}[name]
    options = {"run": run, "input": data / "ecg.npy", "rate": 500.0, "unit": "mV"}
    options |= {"batch_size": 8, "part_rows": 16, "workers": 0}
    inference_run.run(name, program_of, output=tmp_path / "whole.npz", **options)
    whole = (tmp_path / "whole.npz").read_bytes()

    write, written = inference_run.Parts.write, []

    def stop_after_two(self, number, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        write(self, number, *rest)

    monkeypatch.setattr(inference_run.Parts, "write", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        inference_run.run(name, program_of, output=tmp_path / "cut.npz", **options)
    monkeypatch.undo()
    assert not (tmp_path / "cut.npz").exists()
    with pytest.raises(ValueError, match="beginning of another output: batch_size: 8 then, 16 now"):
        inference_run.run(
            name, program_of, output=tmp_path / "cut.npz", **{**options, "batch_size": 16}
        )
    capsys.readouterr()
    found = inference_run.run(name, program_of, output=tmp_path / "cut.npz", **options)
    assert "going on after 32 of 72 records" in capsys.readouterr().out
    assert found.records == N
    assert (tmp_path / "cut.npz").read_bytes() == whole
    assert {file.name for file in tmp_path.iterdir()} == {
        "whole.npz", "whole.npz.json", "cut.npz", "cut.npz.json",
    }  # fmt: skip


def test_batch_size_and_processes_change_nothing(run, data, tmp_path, predicted):
    theirs = np.load(predicted / "embed.npz")
    order = np.argsort(theirs["record"])
    options = ("--rate", 500, "--unit", "mV", "--batch-size", 20, "--workers", 1)
    assert command(embed, run, data / "ecg.npy", tmp_path / "out.npz", *options) == 0
    ours = np.load(tmp_path / "out.npz")
    assert ours["record"].tolist() == [f"ecg[{row}]" for row in range(N)]
    np.testing.assert_allclose(ours["embedding"], theirs["embedding"][order], atol=1e-6)


def test_a_split_of_a_cohort(run, data, tmp_path):
    assert command(embed, run, data / "cohort", tmp_path / "out.npz", "--split", "test") == 0
    assert set(np.load(tmp_path / "out.npz")["split"].tolist()) == {"test"}


def test_a_cohort_of_another_preprocessing_is_refused(run, data, tmp_path, capsys):
    shutil.copytree(data / "cohort", tmp_path / "cohort")
    marker = tmp_path / "cohort" / "cohort.json"
    content = json.loads(marker.read_text())
    content["settings"]["ecg"]["clip"] = 3.0
    content["settings_hash"] = settings_hash(content["settings"])
    marker.write_text(json.dumps(content))
    assert command(predict, run, marker.parent, tmp_path / "out.npz") == 1
    assert "ecg.clip: found 3.0, expected 4.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--output": "out.txt"}, "--output is .*out.txt, expected a file of .parquet, .csv, .npz"),
        ({"--input": "nowhere"}, "there is no .*nowhere"),
        ({"--input": "labels.csv"}, "expected a folder or a file of .hea"),
        ({"--input": "ecg.npy"}, "--rate and --unit missing"),
        ({"--run": "."}, "is no run directory"),
        ({"--split": "val", "--input": "ecg.npy", "--rate": "500"}, "--unit missing|for cohorts"),
        ({"--rate": "500"}, "--rate: for files"),
        ({"--batch-size": "0"}, "batch size 0"),
    ],
)
def test_what_does_not_fit_is_one_line(run, data, tmp_path, capsys, change, message):
    options = {"--run": run, "--input": data / "cohort", "--output": tmp_path / "out.npz"}
    for name, value in change.items():
        in_data = name in ("--input", "--run")
        options[name] = data / value if in_data else tmp_path / value if "out" in name else value
    assert embed.main([str(x) for pair in options.items() for x in pair]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("embed: ")
    assert re.search(message, line)


def test_an_output_is_not_replaced_by_accident(run, data, tmp_path, capsys):
    (tmp_path / "out.npz").write_text("mine")
    assert command(embed, run, data / "cohort", tmp_path / "out.npz") == 1
    assert "exists; use another --output" in capsys.readouterr().err
    assert (tmp_path / "out.npz").read_text() == "mine"
    assert command(embed, run, data / "cohort", tmp_path / "out.npz", "--overwrite") == 0


def test_columns_have_different_names():
    def group(target, *labels):
        stage = stages.Stage(f"finetune/{target}/0", "finetune", {}, 0, target)
        member = inference_models.Trained(stage, "", None, None, None, None, labels, {}, {})
        return Group((member,), labels)

    volume, fraction = (Label(*x) for x in (
        ("LVEDV", "regression", "LV", "mL"), ("LVEF", "regression", "LV", "%")))  # fmt: skip
    index = Label("LVMi", "regression", "LV", "g/m2")
    found = inference_models.columns([group("LV", volume, fraction), group("some", volume, index)])
    assert [column.name for column in found] == [
        "finetune/LV/LVEDV_mL", "LVEF_percent", "finetune/some/LVEDV_mL", "LVMi_g_per_m2",
    ]  # fmt: skip
