"""Maps of one ECG: what the command writes, and what it refuses."""

import json

import numpy as np
import pytest
from trained_run import N

from mmcl_jax.data.signals.ecg import preprocess
from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.interpret import __main__ as command
from mmcl_jax.port import ported


def start(*arguments):
    return command.main([str(argument) for argument in arguments])


def test_maps_of_a_prediction(run, model, data, tmp_path, capsys):
    out = tmp_path / "maps"
    options = ("--rate", 500, "--unit", "mV", "--stage", "finetune/LVEDV", "--seconds", 2.5)
    code = start(run, "--input", data / "ecg.npy", "--record", "ecg[3]", "--output", out, *options)
    assert code == 0
    printed = capsys.readouterr().out
    assert "LVEDV_mL" in printed
    assert "most changed" in printed
    assert {file.name for file in out.iterdir()} == {"attention.png", "occlusion.png", "maps.npz"}
    for file in out.glob("*.png"):
        content = file.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert b"not for clinical use" in content
    found = np.load(out / "maps.npz")
    ecg = np.load(data / "ecg.npy")[3]
    np.testing.assert_allclose(found["measured_mV"], ecg, atol=1e-6)
    prepared = preprocess(ecg.astype(np.float64))
    np.testing.assert_array_equal(found["ecg"], prepared)
    assert found["columns"].tolist() == ["LVEDV_mL"]
    assert found["units"].tolist() == ["mL"]
    assert found["values"][0] == pytest.approx(model.predict(ecg)["LVEDV_mL"], rel=1e-6)
    # The run averages three windows, which reach over all 10 s.
    assert found["occlusion"].shape == (1, 12, 4)
    np.testing.assert_allclose(found["occlusion_edges"], [0, 2.5, 5, 7.5, 10])
    hidden = prepared.copy()
    hidden[7, 1250:2500] = np.median(prepared[7])
    column = [column.name for column in model.predictor.columns].index("LVEDV_mL")
    both = model.predictor(np.stack([prepared, hidden]))[:, column]
    assert found["occlusion"][0, 7, 1] == pytest.approx(both[1] - both[0], rel=1e-4, abs=1e-5)
    attention = found["attention/0/rollout"]
    assert attention.shape == (3, 12, 5)
    np.testing.assert_allclose(found["attention/0/start"], [0, 4.5, 9])
    assert ((attention > 0) & (attention < 1)).all()


def test_a_record_of_the_cohort_of_the_run(run, tmp_path, capsys):
    """With CMR also the similarity of the two; the cohort has no mV."""
    out = tmp_path / "maps"
    options = ("--stage", "finetune/rhythm/0", "--column", "rhythm: AF_probability")
    code = start(run, "--record", "r05", "--output", out, "--seconds", 5, *options)
    assert code == 0
    assert capsys.readouterr().out.count("most changed") == 1
    assert {file.name for file in out.iterdir()} == {
        "attention.png", "occlusion.png", "cmr_similarity.png", "ecg_similarity.png", "maps.npz",
    }  # fmt: skip
    found = np.load(out / "maps.npz")
    assert "measured_mV" not in found
    assert found["leads"].tolist() == list(LEADS)


def test_maps_of_an_embedding(run, data, tmp_path):
    ported.write(tmp_path / "ported", ported.read(f"{run}:mmcl").only(["ecg_encoder"]))
    np.save(tmp_path / "one.npy", np.load(data / "ecg.npy")[0])
    options = ("--input", tmp_path / "one.npy", "--rate", 500, "--unit", "mV", "--seconds", 1)
    assert start(tmp_path / "ported", *options, "--output", tmp_path / "maps") == 0
    found = np.load(tmp_path / "maps" / "maps.npz")
    assert found["columns"].tolist() == ["embedding"]
    assert np.isnan(found["values"]).all()
    # The first second alone is read by this encoder.
    assert found["occlusion"].shape == (1, 12, 1)
    assert (found["occlusion"] >= -1e-6).all()
    assert found["occlusion"].max() > 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--record", "r05"), "--output is missing"),
        (("--record", "nobody", "--output", "out"), "no record 'nobody'; name one of them with"),
        (("--input", "ecg.npy", "--output", "out"), "--rate and --unit missing"),
        (
            ("--input", "ecg.npy", "--rate", "500", "--unit", "mV", "--output", "out"),
            f"the input has {N} records, and none is named",
        ),
        (("--record", "r05", "--output", "out", "--column", "age"), "no column age; the model has"),
        (("--record", "r05", "--output", "out", "--seconds", "11"), "windows of 11 s: expected up"),
        (("--record", "r05", "--output", "out", "--stage", "nn"), "no finished stage 'nn'"),
        (("--record", "r05", "--output", "taken"), "taken exists"),
        (("--input", "nowhere", "--output", "out"), "there is no"),
    ],
)
def test_what_does_not_fit_is_one_line(
    run, data, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "ecg.npy").symlink_to(data / "ecg.npy")
    assert start(run, *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("interpret: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_record_that_is_refused(run, tmp_path, capsys):
    np.save(tmp_path / "flat.npy", np.zeros((12, 5000), np.float32))
    options = ("--rate", 500, "--unit", "mV", "--output", tmp_path / "out")
    assert start(run, "--input", tmp_path / "flat.npy", *options) == 1
    assert "flat.npy: every lead is flat" in capsys.readouterr().err


def test_a_run_without_that_stage_points_to_the_maps_of_one_ecg(run, tmp_path, capsys):
    config = json.loads((run / "config.json").read_text())
    config["order"] = [stage for stage in config["order"] if stage != "interpret"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        start(tmp_path)
    error = capsys.readouterr().err
    assert "has no stage 'interpret'; maps of one ECG are made with --input" in error
