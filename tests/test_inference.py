"""Embeddings and predictions of files and cohorts, by the commands and from Python."""

import csv
import json
import re
import shutil
import subprocess
import sys

import jax
import made_cardiosoft
import numpy as np
import pytest
from made_up_ecg import made_up

import mmcl_jax
from mmcl_jax import (
    default_config,
    embed,
    evaluate,
    inference,
    inference_models,
    inference_run,
    ported,
    predict,
    stages,
)
from mmcl_jax.checkpoints import Checkpoints
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data import pipeline
from mmcl_jax.data.cohort import settings_hash
from mmcl_jax.data.ecg import preprocess
from mmcl_jax.data.labels import Label
from mmcl_jax.data.sources.table import Table
from mmcl_jax.data.sources.wfdb import Wfdb
from mmcl_jax.experiment import Experiment
from mmcl_jax.inference_models import Group
from mmcl_jax.run_dir import RunDir
from mmcl_jax.state import State, initialise

CLASSES = ("SR", "AF", "VT")
SPLITS = ("train",) * 4 + ("val", "test")
N = 72


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """72 ECGs in an array, with frames and labels, and the cohort of them."""
    folder = tmp_path_factory.mktemp("data")
    np.save(folder / "ecg.npy", made_up(n=N).astype(np.float32))
    generator = np.random.default_rng(1)
    np.save(folder / "cmr.npy", generator.random((N, 3, 32, 32)).astype(np.float32))
    rows = ["record,subject,split,CAD,LVEDV,rhythm"]
    for i in range(N):
        values = f"{i // 6 % 2},{120 + 40 * np.sin(i):.3f},{CLASSES[i // 6 % 3]}"
        rows.append(f"r{i:02d},s{i:02d},{SPLITS[i % 6]},{values}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    source = Table(
        folder / "ecg.npy", rate=500, unit="mV", labels=folder / "labels.csv",
        cmr=folder / "cmr.npy",
        declared={
            "binary": "CAD", "regression": "LVEDV:mL", "multiclass": f"rhythm:{';'.join(CLASSES)}",
        },
    )  # fmt: skip
    cohorts.write(source, folder / "cohort", workers=0, progress=False)
    return folder


class Untrained(Experiment):
    """Leaves stages with random parameters: what they are does not matter here."""

    def train(self, stage):
        objective, views, labels = stages.build(stage, self.config["models"], self.cohort)
        fields = tuple(stage.config["fields"])
        rows = pipeline.select(self.cohort, "val", fields=fields)[:2]
        names = tuple(label.name for label in labels)
        (example,) = pipeline.eval_batches(
            self.cohort, "val", rows, fields=fields, labels=names, batch_size=2
        )
        key = jax.random.key(0)
        shapes = jax.eval_shape(lambda: initialise(objective, views, example, key))
        generator = np.random.default_rng(stage.seed)
        params, extra = jax.tree.map(
            lambda leaf: 0.3 * generator.standard_normal(leaf.shape, np.float32), shapes
        )
        self._write_settings(stage)
        step = np.zeros((), np.int32)
        with Checkpoints(self.run.stage(stage.name)) as saved:
            saved.save_best(State(step=step, params=params, extra=extra, optimizer_state={}))
        return {"hand_on": "best"}


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run as MDM, MMCL and two seeds of three targets leave it."""
    config = default_config.experiment("tiny")
    config.order = ("mdm", "mmcl", "finetune")
    vit = {"width": 16, "depth": 1, "heads": 2, "samples": 500}
    config.models = {
        "ecg_encoder": {"name": "vit", **vit},
        "decoder": {"name": "mae_decoder", **vit},
        "cmr_encoder": {"name": "resnet", "depth": 18, "width": 8},
        "ecg_projector": {"name": "projector", "hidden": 8, "out": 8},
        "cmr_projector": {"name": "projector", "hidden": 8, "out": 8},
        "head": {"name": "head"},
    }
    config.data.path = str(data / "cohort")
    common = {
        "ecg_view": {"length": 500},
        "batch_size": 8,
        "epochs": 1,
        "optimizer": {"name": "adamw", "rate": 1e-3, "weight_decay": 0.0},
    }
    config.stages.mdm = default_config.stage(
        "masked_modelling", towers={"ecg_encoder": {"pool": "none"}, "decoder": {}}, **common
    )
    config.stages.mmcl = default_config.stage(
        "clip",
        towers=dict.fromkeys(("ecg_encoder", "ecg_projector", "cmr_encoder", "cmr_projector"), {}),
        fields=("ecg", "cmr"),
        cmr_view={"size": 32},
        **common,
    )
    config.stages.finetune = default_config.stage(
        "supervised",
        towers={"ecg_encoder": {"pool": "attention"}, "head": {}},
        targets=("CAD", "LVEDV", "rhythm"),
        seeds=(0, 1),
        select={"classification": "val/auroc", "regression": "val/r"},
        **common,
    )
    config.stages.evaluate = {
        "splits": ("val", "test"), "crops": 3, "resamples": 20, "batch_size": 8,
    }  # fmt: skip
    config = json.loads(config.to_json())
    folder = tmp_path_factory.mktemp("run")
    experiment = Untrained(config, RunDir(folder))
    RunDir(folder).write_config(config)
    assert experiment.run_all()
    return folder


@pytest.fixture(scope="module")
def predicted(run, data, tmp_path_factory):
    """predict and embed of the cohort as .npz."""
    folder = tmp_path_factory.mktemp("out")
    for verb in (predict, embed):
        file = folder / f"{verb.__name__.rpartition('.')[2]}.npz"
        assert command(verb, run, data / "cohort", file) == 0
    return folder


def command(verb, run, path, output, *more):
    arguments = ["--run", run, "--input", path, "--output", output, *more]
    return verb.main([str(argument) for argument in arguments])


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


def test_python_gives_what_the_commands_give(run, data, predicted):
    model = mmcl_jax.load(run)
    ecg = np.load(data / "ecg.npy")
    order = np.argsort(np.load(predicted / "embed.npz")["record"])
    theirs = np.load(predicted / "embed.npz")["embedding"][order]
    assert theirs.dtype == np.float32
    assert theirs.std(axis=0).min() > 0
    np.testing.assert_allclose(model.embed(ecg), theirs, atol=1e-6)
    np.testing.assert_allclose(model.embed(ecg[5]), theirs[5], atol=1e-6)
    assert model.embed(ecg[:0]).shape == (0, 16)
    found = model.predict(ecg[:3])
    assert list(found) == [
        "CAD_probability", "CAD_probability_sd", "LVEDV_mL", "LVEDV_mL_sd",
        *(f"rhythm: {c}_probability{s}" for c in CLASSES for s in ("", "_sd")),
    ]  # fmt: skip
    table = np.load(predicted / "predict.npz")
    for name, values in found.items():
        np.testing.assert_allclose(values, table[name][order][:3], rtol=1e-6, atol=1e-6)
    total = sum(found[f"rhythm: {name}_probability"] for name in CLASSES)
    np.testing.assert_allclose(total, 1, atol=1e-6)
    one = model.predict(ecg[1])
    assert one["LVEDV_mL"] == pytest.approx(found["LVEDV_mL"][1], abs=1e-5)


def test_python_takes_other_units_rates_and_files(run, data, tmp_path):
    model = mmcl_jax.load(run)
    ecg = np.load(data / "ecg.npy")[0].astype(np.float64)
    ours = model.embed(ecg)
    np.testing.assert_allclose(model.embed(ecg * 1000, unit="uV"), ours, atol=1e-5)
    np.testing.assert_allclose(model.embed(ecg[[0, 1, *range(6, 12)]], leads=(
        "I", "II", "V1", "V2", "V3", "V4", "V5", "V6")), ours, atol=1e-4)  # fmt: skip
    fast = np.repeat(ecg, 2, axis=1)
    assert np.abs(model.embed(fast, rate=1000) - ours).max() < 0.5
    np.save(tmp_path / "one.npy", ecg)
    np.testing.assert_allclose(model.embed(tmp_path / "one.npy"), ours, atol=1e-6)
    assert model.embed(data / "ecg.npy").shape == (N, 16)
    broken = np.stack([ecg, np.full_like(ecg, np.nan)])
    with pytest.raises(ValueError, match=r"^ecg\[1\]: "):
        model.embed(broken)
    with pytest.raises(ValueError, match=r"^ecg: 5 s long, expected at least 10 s"):
        model.predict(ecg[:, :2500])
    with pytest.raises(ValueError, match=r"shape is \(5000,\), expected \[N, 12, T\]"):
        model.embed(ecg[0])


def test_stages_by_name(run, data):
    clip = mmcl_jax.load(run).embed(data / "ecg.npy")
    mdm = mmcl_jax.load(run, "mdm").embed(data / "ecg.npy")
    np.testing.assert_array_equal(mmcl_jax.load(run, "mmcl").embed(data / "ecg.npy"), clip)
    assert np.abs(clip - mdm).max() > 0.1
    ecg = np.load(data / "ecg.npy")[0]
    one = mmcl_jax.load(run, "finetune/CAD/1").predict(ecg)
    both = mmcl_jax.load(run, "finetune/CAD").predict(ecg)
    assert list(one) == ["CAD_probability"]
    assert list(both) == ["CAD_probability", "CAD_probability_sd"]
    with pytest.raises(
        ValueError, match="no finished stage 'nn' .* takes mdm, mmcl, finetune/CAD/0"
    ):
        mmcl_jax.load(run, "nn").embed(ecg)
    with pytest.raises(ValueError, match="no finished stage 'mdm' that predicts .*finetune/CAD/0"):
        mmcl_jax.load(run, "mdm").predict(ecg)


def test_a_cardiosoft_file(run, data, tmp_path):
    pytest.importorskip("defusedxml")
    counts = np.rint(np.load(data / "ecg.npy")[3].astype(np.float64) * 200).astype(int)
    (tmp_path / "1000012_20205_2_0.xml").write_bytes(made_cardiosoft.xml(counts))
    model = mmcl_jax.load(run)
    found = model.embed(tmp_path / "1000012_20205_2_0.xml")
    np.testing.assert_allclose(found, model.embed(counts * 5.0, unit="uV"), atol=1e-5)
    pattern = ("--subject-pattern", r"^\d+")
    assert command(embed, run, tmp_path, tmp_path / "out.npz", *pattern) == 0
    out = np.load(tmp_path / "out.npz")
    assert (out["record"][0], out["subject"][0]) == ("1000012_20205_2_0", "1000012")
    np.testing.assert_allclose(out["embedding"][0], found, atol=1e-6)


def test_ported_weights_embed(run, data, tmp_path):
    found = ported.read(f"{run}:mmcl").only(["ecg_encoder"])
    ported.write(tmp_path / "ported", found)
    ecg = np.load(data / "ecg.npy")[:4]
    model = mmcl_jax.load(tmp_path / "ported")
    ours = model.embed(ecg)
    # The run averages three windows, weights alone take the first.
    trained = inference_models.encoder(Experiment.open(run))
    program = inference.Program([Group((trained,), ())], inference.embed_batch, 1)
    prepared = np.stack([preprocess(one.astype(np.float64)) for one in ecg])
    np.testing.assert_allclose(ours, program(prepared), atol=1e-6)
    with pytest.raises(ValueError, match="ported weights and no stage that predicts"):
        model.predict(ecg)


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


def test_records_that_cannot_be_read_are_listed(run, data, tmp_path, capsys):
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
    np.testing.assert_allclose(
        out["embedding"][used], mmcl_jax.load(run).embed(ecg[[4, 0, 2]]), atol=1e-6
    )
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


def test_a_run_needs_no_cohort(run, data, tmp_path):
    """A run directory that was copied to where its cohort is not."""
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["path"] = str(tmp_path / "gone")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    ecg = np.load(data / "ecg.npy")[:2]
    ours, theirs = (mmcl_jax.load(x).predict(ecg) for x in (tmp_path / "run", run))
    np.testing.assert_array_equal(ours["LVEDV_mL"], theirs["LVEDV_mL"])
    # Written before labels were kept with a stage.
    for file in (tmp_path / "run" / "stages" / "finetune").rglob("done.json"):
        done = json.loads(file.read_text())
        del done["labels"], done["statistics"]
        file.write_text(json.dumps(done))
    with pytest.raises(FileNotFoundError, match="no cohort at .*gone"):
        mmcl_jax.load(tmp_path / "run").predict(ecg)
    config["data"]["path"] = str(data / "cohort")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    old = mmcl_jax.load(tmp_path / "run").predict(ecg)
    np.testing.assert_array_equal(old["LVEDV_mL"], theirs["LVEDV_mL"])


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


def test_importing_the_package_is_light():
    code = "import sys, mmcl_jax, mmcl_jax.embed, mmcl_jax.predict; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- real recordings -----------------------------------------------------------------------------


def test_files_and_the_cohort_made_of_them_give_the_same(run, recordings, tmp_path):
    """The command as it is run, on one device, with processes that read; here are eight."""
    folder = recordings / "cinc2021"
    cohorts.write(Wfdb(folder), tmp_path / "cohort", workers=0, progress=False)
    assert command(embed, run, tmp_path / "cohort", tmp_path / "cohort.npz") == 0
    arguments = ["--run", run, "--input", folder, "--output", tmp_path / "files.npz"]
    line = [sys.executable, "-m", "mmcl_jax.embed", *arguments, "--workers", "1"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "files.npz: 30 records used, 0 refused" in done.stdout
    files, cohort = (np.load(tmp_path / f"{name}.npz") for name in ("files", "cohort"))
    row_of = {record: row for row, record in enumerate(files["record"].tolist())}
    rows = [row_of[record] for record in cohort["record"].tolist()]
    assert len(rows) >= 29
    np.testing.assert_allclose(files["embedding"][rows], cohort["embedding"], atol=1e-6)
    flags = zip(files["flags"][rows].tolist(), cohort["flags"].tolist(), strict=True)
    assert all(theirs.startswith(ours) or ours in theirs for ours, theirs in flags)
    model = mmcl_jax.load(run)
    one = model.embed(folder / "E07500.hea")
    np.testing.assert_allclose(one, files["embedding"][row_of["E07500"]], atol=1e-6)
    # 15 leads, 1000 Hz, 38 s; by its signal file.
    assert np.isfinite(model.embed(recordings / "ptb" / "s0010_re.dat")).all()
