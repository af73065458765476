"""The files beside the program, the choice of stages, and running without this package."""

import csv
import dataclasses
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
from export_files import assert_close, content, error_of, load, recordings
from made_up_stage import made_up

import mmcl_jax
from mmcl_jax.data.cohort import settings_hash
from mmcl_jax.experiment import Experiment
from mmcl_jax.export import __main__ as command
from mmcl_jax.export import exported
from mmcl_jax.export import folder as export_folder
from mmcl_jax.inference import models as inference_models
from mmcl_jax.inference.models import Group

FILES = {
    "model.jaxexport", "model.json", "load.py", "check.npz", "model_card.json", "model_card.md",
}  # fmt: skip


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

    found = export_folder._columns_json(Program)
    assert [entry["class"] for entry in found] == ["SR", "SR", "AF", "AF", "VT", "VT"]
    assert [entry["statistic"] for entry in found] == ["mean", "sd"] * 3


def test_a_stage_of_pre_training_embeds(run, tmp_path):
    for number, arguments in enumerate((["--stage", "mdm"], ["--embedding"])):
        folder = tmp_path / str(number)
        command.main([str(run), "--output", str(folder), *arguments])
        assert content(folder)["stages"] == ["mdm"]
        assert content(folder)["output"]["shape"] == ["b", 16]
        ecg = recordings(run)[:3]
        expected = mmcl_jax.load(run).embedder(ecg)
        assert_close(np.asarray(load(folder).call(ecg)["embedding"]), expected)
        card = content(folder, "model_card.json")
        assert card["model"]["labels"] == []
        assert not card["metrics"]["rows"]


def test_one_target_of_several(run, tmp_path):
    command.main([str(run), "--output", str(tmp_path / "out"), "--stage", "finetune/CAD"])
    (column,) = content(tmp_path / "out")["output"]["columns"]
    assert column["name"] == "CAD_probability"
    assert column["stages"] == ["finetune/CAD/0"]


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


def test_too_many_weights_are_refused(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exported, "MOST_BYTES", 1000)
    assert "choose fewer with --stage" in error_of(capsys, run, "--output", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_overwrite_replaces_its_own_files_only(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "model_card.md").write_text("old")
    command.main([str(run), "--output", str(out), "--card-only", "--overwrite"])
    assert {file.name for file in out.iterdir()} == {
        "notes.txt", "model_card.md", "model_card.json",
    }  # fmt: skip
    assert (out / "model_card.md").read_text().startswith("# Model card: ")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
