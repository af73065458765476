"""From Python: `mmcl_jax.load`, then `embed` and `predict`."""

import json
import shutil
import subprocess
import sys

import made_cardiosoft
import numpy as np
import pytest
from trained_run import CLASSES, N, command

import mmcl_jax
from mmcl_jax import embed, inference
from mmcl_jax.data.signals.ecg import preprocess
from mmcl_jax.experiment import Experiment
from mmcl_jax.inference import models as inference_models
from mmcl_jax.inference.models import Group
from mmcl_jax.port import ported


def test_python_gives_what_the_commands_give(model, data, predicted):
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


def test_python_takes_other_units_rates_and_files(model, data, tmp_path):
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


def test_stages_by_name(run, model, data):
    clip = model.embed(data / "ecg.npy")
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


def test_a_cardiosoft_file(run, model, data, tmp_path):
    pytest.importorskip("defusedxml")
    counts = np.rint(np.load(data / "ecg.npy")[3].astype(np.float64) * 200).astype(int)
    (tmp_path / "1000012_20205_2_0.xml").write_bytes(made_cardiosoft.xml(counts))
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


def test_importing_the_package_is_light():
    code = "import sys, mmcl_jax, mmcl_jax.embed, mmcl_jax.predict; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
