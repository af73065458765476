"""The exported program, the files beside it and the model card, on a tiny run."""

import csv
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from mmcl_jax import default_config, export, exported, inference_models, model_card_markdown
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.cohort import settings_hash
from mmcl_jax.data.labels import Label
from mmcl_jax.data.sources.synthetic import Synthetic
from mmcl_jax.experiment import Experiment
from mmcl_jax.inference_models import Group, Trained
from mmcl_jax.run_dir import RunDir
from mmcl_jax.sharding import make_mesh
from mmcl_jax.stages import Stage
from mmcl_jax.state import initialise, make_predict_step

FILES = {
    "model.jaxexport", "model.json", "load.py", "check.npz", "model_card.json", "model_card.md",
}  # fmt: skip


def make_config(cohort: pathlib.Path) -> dict:
    """MDM, two targets, and a stage that nobody runs."""
    config = default_config.experiment("tiny *run*")
    config.order = ("mdm", "finetune", "later", "evaluate")
    vit = {"width": 16, "depth": 1, "heads": 2, "samples": 500}
    config.models = {
        "ecg_encoder": {"name": "vit", **vit},
        "decoder": {"name": "mae_decoder", **vit},
        "head": {"name": "head"},
    }
    config.data.path = str(cohort)
    common = {
        "ecg_view": {"length": 500},
        "batch_size": 8,
        "epochs": 1,
        "optimizer": {"name": "adamw", "rate": 1e-2, "weight_decay": 0.0},
    }
    mdm = {"ecg_encoder": {"pool": "none"}, "decoder": {}}
    supervised = {
        "towers": {"ecg_encoder": {"pool": "attention"}, "head": {}},
        "init": {"ecg_encoder": "mdm"},
        "new": ("/attention_pool/", "/fc_norm/"),
        "unused": ("/norm/",),
        "select": {"classification": "val/auroc", "regression": "val/r"},
        **common,
    }
    stage = default_config.stage
    config.stages = {
        "mdm": stage("masked_modelling", towers=mdm, **common),
        "finetune": stage("supervised", targets=("CAD", "age"), balanced=True, **supervised),
        "later": stage("masked_modelling", towers=mdm, **common),
        "evaluate": {"splits": ("val", "test"), "crops": 1, "resamples": 20, "batch_size": 8},
    }
    return json.loads(config.to_json())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    source = Synthetic(subjects=48, prevalence="demo", imaged=0.0, phenotyped=0.0)
    cohorts.write(source, folder / "cohort", workers=0, progress=False)
    config = make_config(folder / "cohort")
    RunDir(folder).write_config(config)
    experiment = Experiment(config, RunDir(folder))
    # Compiling takes longer than the few steps.
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        assert experiment.run_all(["mdm", "finetune", "evaluate"])
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    return folder


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The export of all that predicts."""
    folder = tmp_path_factory.mktemp("out") / "export"
    export.main([str(run), "--output", str(folder)])
    return folder


def content(folder: pathlib.Path, name: str = "model.json") -> dict:
    return json.loads((folder / name).read_text())


def load(folder: pathlib.Path) -> jax.export.Exported:
    return jax.export.deserialize(bytearray((folder / "model.jaxexport").read_bytes()))


def recordings(run: pathlib.Path, split: str = "test") -> np.ndarray:
    source = Experiment.open(run).cohort.source(split)
    return np.stack([source[i]["ecg"] for i in range(len(source))])


def assert_close(found, expected, tolerance=1e-6):
    """Relative to the largest value of each column."""
    scale = np.maximum(np.abs(expected).max(axis=0), 1e-30)
    assert np.abs(found - expected).max(initial=0, axis=0).shape == scale.shape
    assert (np.abs(found - expected) / scale).max() <= tolerance


# --- the program ---------------------------------------------------------------------------------


def test_outputs_are_those_of_evaluate(run, whole):
    model, columns = load(whole), content(whole)["output"]["columns"]
    ecg = recordings(run)
    position = {column["name"]: k for k, column in enumerate(columns)}
    found = np.concatenate(
        [model.call(ecg[i : i + 3])["prediction"] for i in range(0, len(ecg), 3)]
    )
    for target, name in (("CAD", "CAD_probability"), ("age", "age_years")):
        file = np.load(run / "evaluate" / "predictions" / f"finetune__{target}__0.npz")
        predicted = file["prediction"][file["split"] == "test"]
        assert_close(found[:, [position[name]]], predicted)


@pytest.mark.parametrize(
    ("kind", "outputs", "dtype", "sizes", "tolerance"),
    [
        ("multiclass", 3, "float32", (3,), 1e-6),
        ("regression", 2, "float32", (1, 3, 8), 1e-6),
        # Two programs of equal steps round to half precision in different places.
        ("multilabel", 2, "bfloat16", (1, 8), 5e-3),
    ],
)
def test_outputs_are_those_of_the_predict_step(kind, outputs, dtype, sizes, tolerance):
    trained, labels = made_up(kind, outputs, dtype)
    group = Group((trained,), labels)
    program = exported.export_groups([group], "predict", crops=1, samples=1000)
    assert program.platforms == ("cpu", "cuda", "tpu")
    step = make_predict_step(trained.objective, trained.views)
    for size in sizes:
        batch = {name: rows for name, rows in tiny.batch(size, size).items() if name != "labels"}
        expected = np.asarray(step(trained.params, trained.extra, batch)["prediction"])
        if kind == "regression":
            expected = expected * [2.0, 3.0] + [100.0, -4.0]
        found = program.call(batch["ecg"])["prediction"]
        assert found.dtype == np.float32
        assert_close(found, expected, tolerance)


def made_up(kind: str, outputs: int, dtype: str) -> tuple[Trained, tuple[Label, ...]]:
    objective, views = tiny.objective("supervised", outputs=outputs, kind=kind)
    encoder = objective.ecg_encoder.clone(dtype=dtype)
    objective = objective.clone(ecg_encoder=encoder)
    params, extra = initialise(objective, views, tiny.batch(2), jax.random.key(1))
    head = jax.tree.map(lambda leaf: leaf * 10, params["head"])
    labels = {
        "binary": (Label("CAD", "binary", "disease"),),
        "multiclass": (Label("rhythm", "multiclass", "", classes=("SR", "AF", "VT")),),
        "multilabel": (Label("a", "binary", ""), Label("b", "binary", "")),
        "regression": (Label("x", "regression", "", "mL"), Label("y", "regression", "", "%")),
    }[kind]
    statistics = {"x": (100.0, 2.0), "y": (-4.0, 3.0)}
    stage = Stage("finetune/x/0", "finetune", {}, 0, "x")
    host = jax.device_get(({**params, "head": head}, extra))
    return Trained(stage, "", objective, views, *host, labels, statistics, {}), labels


def test_seeds_are_combined_as_by_inference():
    first, labels = made_up("regression", 2, "float32")
    second = dataclasses.replace(
        first,
        params=jax.tree.map(lambda leaf: leaf * 0.9, first.params),
        statistics={"x": (101.0, 2.5), "y": (-4.0, 3.0)},
    )
    group = Group((first, second), labels)
    program = exported.export_groups([group, group], "predict", crops=1, samples=1000)
    ecg = tiny.batch(3)["ecg"]
    step = make_predict_step(first.objective, first.views)
    outputs = [step(m.params, m.extra, tiny.batch(3))["prediction"] for m in group.members]
    expected = group.combine(np.stack([np.asarray(output, np.float64) for output in outputs]))
    found = np.asarray(program.call(ecg)["prediction"])
    assert found.shape == (3, 8)
    assert_close(found[:, :4], expected)
    np.testing.assert_array_equal(found[:, :4], found[:, 4:])


def test_several_windows_are_averaged():
    trained, labels = made_up("binary", 2, "float32")
    group = Group((trained,), labels)
    program = exported.export_groups([group], "predict", crops=3, samples=1000)
    batch = tiny.batch(3)
    step = make_predict_step(trained.objective, trained.views)
    found = [step(trained.params, trained.extra, batch, s)["prediction"] for s in (0, 250, 500)]
    assert_close(program.call(batch["ecg"])["prediction"], np.mean(found, axis=0))
    with pytest.raises(ValueError, match="Shape mismatch|shape"):
        program.call(batch["ecg"][:, :, :600])


def test_a_window_alone_gives_what_the_recording_gives(run, whole):
    model, ecg = load(whole), recordings(run)[:2]
    np.testing.assert_allclose(
        model.call(ecg[:, :, :500])["prediction"], model.call(ecg)["prediction"], rtol=1e-6
    )


def test_a_batch_can_be_split_over_devices(run, whole):
    model, ecg = load(whole), np.tile(recordings(run)[:4], (2, 1, 1))
    split = jax.device_put(ecg, NamedSharding(make_mesh(), PartitionSpec("data")))
    assert len(split.sharding.device_set) == jax.device_count() == 8
    found = jax.jit(model.call)(split)["prediction"]
    assert_close(np.asarray(found), np.asarray(model.call(ecg)["prediction"]))


def test_the_weights_are_in_the_file(whole, run):
    size = (whole / "model.jaxexport").stat().st_size
    model = load(whole)
    assert [str(aval.shape) for aval in model.in_avals] == ["(b, 12, t)"]
    assert model.nr_devices == 1
    trained = Experiment.open(run)
    stages = [stage for stage in trained.training_stages() if stage.target]
    leaves = [leaf for stage in stages for leaf in jax.tree.leaves(trained.load(stage).params)]
    weights = sum(leaf.nbytes for leaf in leaves)
    assert weights < size < weights + 200_000


def test_too_many_weights_are_refused(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exported, "MOST_BYTES", 1000)
    assert "choose fewer with --stage" in error_of(capsys, run, "--output", tmp_path / "out")
    assert not list(tmp_path.iterdir())


# --- without this package ------------------------------------------------------------------------

BLOCKED = ("mmcl_jax", "flax", "optax", "orbax", "grain", "ml_collections", "sklearn", "absl")
BLOCKER = f"""
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ImportError(f"blocked: {{name}}")
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_loads_where_only_jax_and_numpy_are(run, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "moved")
    ecg = recordings(run)[:2]
    np.save(tmp_path / "ecg.npy", ecg)
    script = str(tmp_path / "moved" / "load.py")

    def start(*arguments):
        command = [sys.executable, "-c", BLOCKER, script, *arguments]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
        )

    checked = start()
    assert checked.returncode == 0, checked.stderr
    assert float(checked.stdout.rpartition(" ")[2]) < 1e-5
    result = start("ecg.npy")
    assert result.returncode == 0, result.stderr
    header, *rows = csv.reader(result.stdout.splitlines())
    assert header == [column["name"] for column in content(whole)["output"]["columns"]]
    expected = np.asarray(load(whole).call(ecg)["prediction"])
    assert_close(np.array(rows, np.float64), expected, 1e-5)
    np.save(tmp_path / "short.npy", ecg[:, :, :300])
    assert "expected [b, 12, t]" in start("short.npy").stderr.replace("'", "")


def test_model_json_says_what_goes_in_and_comes_out(run, whole):
    assert {file.name for file in whole.iterdir()} == FILES
    found = content(whole)
    assert found["stages"] == ["finetune/CAD/0", "finetune/age/0"]
    assert found["platforms"] == ["cpu", "cuda", "tpu"]
    assert found["input"]["shape"] == ["b", 12, "t"]
    assert found["input"]["least_samples"] == 500
    assert found["input"]["leads"][:4] == ["I", "II", "III", "aVR"]
    assert found["input"]["rate"] == 500
    columns = {column["name"]: column for column in found["output"]["columns"]}
    assert columns["CAD_probability"]["statistic"] == ""
    assert columns["CAD_probability"]["label_kind"] == "binary"
    assert columns["age_years"]["unit"] == "years"
    settings = Experiment.open(run).cohort.settings["ecg"]
    assert found["preprocessing"] == {"ecg": settings, "hash": settings_hash({"ecg": settings})}
    assert found["versions"]["jax"] == jax.__version__


def test_classes_of_a_label_are_named():
    trained, labels = made_up("multiclass", 3, "float32")
    both = [trained, dataclasses.replace(trained, stage=dataclasses.replace(trained.stage, seed=1))]

    class Program:
        groups = (Group(tuple(both), labels),)
        columns = inference_models.columns(groups)

    found = export._columns_json(Program)
    assert [entry["class"] for entry in found] == ["SR", "SR", "AF", "AF", "VT", "VT"]
    assert [entry["statistic"] for entry in found] == ["mean", "sd"] * 3


# --- choice of stages, and errors ----------------------------------------------------------------


def test_a_stage_of_pre_training_embeds(run, tmp_path):
    import mmcl_jax

    for number, arguments in enumerate((["--stage", "mdm"], ["--embedding"])):
        folder = tmp_path / str(number)
        export.main([str(run), "--output", str(folder), *arguments])
        assert content(folder)["stages"] == ["mdm"]
        assert content(folder)["output"]["shape"] == ["b", 16]
        ecg = recordings(run)[:3]
        expected = mmcl_jax.load(run).embedder(ecg)
        assert_close(np.asarray(load(folder).call(ecg)["embedding"]), expected)
        card = content(folder, "model_card.json")
        assert card["model"]["labels"] == []
        assert not card["metrics"]["rows"]


def test_one_target_of_several(run, tmp_path):
    export.main([str(run), "--output", str(tmp_path / "out"), "--stage", "finetune/CAD"])
    (column,) = content(tmp_path / "out")["output"]["columns"]
    assert column["name"] == "CAD_probability"
    assert column["stages"] == ["finetune/CAD/0"]


def error_of(capsys, run, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        export.main([str(run), *map(str, arguments)])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    return error


def test_errors_are_one_line(run, tmp_path, capsys):
    out = tmp_path / "out"
    error = error_of(capsys, run, "--output", out, "--stage", "finetune/DM")
    assert "has no stage 'finetune/DM'; it has mdm, finetune/CAD/0" in error
    error = error_of(capsys, run, "--output", out, "--stage", "later")
    assert "stage later of" in error
    assert "is not done; finished stages: mdm, finetune/CAD/0" in error
    assert "is no run directory" in error_of(capsys, tmp_path, "--output", out)
    assert not out.exists()
    out.mkdir()
    assert f"{out} exists" in error_of(capsys, run, "--output", out)
    (tmp_path / "file").write_text("")
    assert "exists" in error_of(capsys, run, "--output", tmp_path / "file", "--overwrite")


def test_overwrite_replaces_its_own_files_only(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "model_card.md").write_text("old")
    export.main([str(run), "--output", str(out), "--card-only", "--overwrite"])
    assert {file.name for file in out.iterdir()} == {
        "notes.txt", "model_card.md", "model_card.json",
    }  # fmt: skip
    assert (out / "model_card.md").read_text().startswith("# Model card: ")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- the model card ------------------------------------------------------------------------------


def test_the_card_holds_data_training_and_metrics(run, whole):
    card = content(whole, "model_card.json")
    cohort = Experiment.open(run).cohort
    data = card["data"]
    assert data["synthetic"]
    assert {split: s["records"] for split, s in data["splits"].items()} == dict(cohort.splits)
    column = [label.name for label in cohort.labels].index("CAD")
    train = data["splits"]["train"]["labels"]["CAD"]
    known = cohort.table("train")["labels"][:, column]
    assert train["prevalence"] == pytest.approx(np.nanmean(known))
    assert [stage["name"] for stage in card["training"]] == [
        "mdm", "finetune/CAD/0", "finetune/age/0",
    ]  # fmt: skip
    assert card["training"][1]["started_from"] == {"ecg_encoder": "mdm"}
    with (run / "evaluate" / "metrics.csv").open() as file:
        expected = list(csv.DictReader(file))
    assert len(card["metrics"]["rows"]) == len(expected)
    assert card["metrics"]["rows"][0]["metric"] == expected[0]["metric"]
    assert any("as many negative as positive" in limit for limit in card["limits"])
    assert card["licence"]["software"] == "Apache-2.0"


def test_the_card_for_people(whole):
    text = (whole / "model_card.md").read_text()
    assert text.startswith("# Model card: tiny \\*run\\*\n")
    assert "Research use only, not for clinical use." in text
    assert "The training data are simulated." in text
    for part in ("Intended use", "Data", "Training", "Metrics", "Limits", "Licence", "Versions"):
        assert f"\n## {part}\n" in text
    assert "| CAD | test | auroc |" in text
    assert "nan" not in text.split()


def test_what_the_card_cannot_know_it_says(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    config = make_config(tmp_path / "run" / "no cohort")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    done = tmp_path / "run" / "stages" / "finetune" / "CAD" / "0" / "done.json"
    done.write_text(json.dumps({**json.loads(done.read_text()), "id": "another"}))
    export.main([str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--card-only"])
    card = content(tmp_path / "out", "model_card.json")
    assert card["data"]["missing"] == "the cohort is not at hand where the card was written"
    assert "trained anew since" in card["metrics"]["missing"]
    assert not (tmp_path / "run" / "no cohort").exists()
    shutil.rmtree(tmp_path / "run" / "evaluate")
    export.main([str(tmp_path / "run"), "--output", str(tmp_path / "two"), "--card-only"])
    assert "has not been evaluated" in (tmp_path / "two" / "model_card.md").read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", "a\\|b"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("[x](http://e.org)", "\\[x\\](http:\\//e.org)"),
        ("![x](y)", "\\!\\[x\\](y)"),
        ("two\nlines\n# heading", "two lines \\# heading"),
        ("- item", "\\- item"),
        ("1. item", "1\\. item"),
        ("-5.2", "-5.2"),
        ("0.5", "0.5"),
        ("`code` *bold* _it_ \\", "\\`code\\` \\*bold\\* \\_it\\_ \\\\"),
        ("a & b", "a &amp; b"),
    ],
)
def test_text_is_escaped(text, expected):
    assert model_card_markdown.escape(text) == expected


def test_every_text_of_the_card_is_escaped(whole):
    hostile = "x|<b>*\n# y"
    card = content(whole, "model_card.json")
    text = model_card_markdown.to_markdown(poisoned(card, hostile))
    assert "<b>" not in text
    assert "x|" not in text
    assert "\n# y" not in text


def poisoned(value, text):
    """Every text of the card with `text` behind it."""
    if isinstance(value, dict):
        fixed = ("synthetic", "missing")
        return {k: v if k in fixed else poisoned(v, text) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(entry, text) for entry in value]
    return value + text if isinstance(value, str) else value
