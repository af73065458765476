"""A whole sweep searches, resumes and hands on the members of the best point."""

import csv
import json
import os
import signal

import numpy as np
import pytest
from tiny_experiment import start
from tiny_sweep import GRID, config_of, relative

from mmcl_jax.checkpoints import load
from mmcl_jax.sweep import loop as sweep_loop
from mmcl_jax.sweep import search
from mmcl_jax.train import Interrupted

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def table(folder):
    with (folder / "sweep" / "finetune" / "CAD" / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def swept(cohort_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    config = config_of(cohort_folder, GRID, patience=-1)
    assert start(config, folder).run_all()
    return config, folder


@pytest.mark.slow
def test_a_sweep_trains_every_point_and_then_the_seeds_of_the_best(swept):
    _, folder = swept
    rows = table(folder)
    assert list(rows[0]) == [
        "round", "point", "batch_size", "rate", "seed", "steps", "best_step", "best",
        "stopped_early", "diverged",
    ]  # fmt: skip
    search, chosen = rows[:4], rows[4:]
    found = [(row["round"], row["batch_size"], row["rate"], row["seed"]) for row in search]
    assert found == [
        ("search", size, rate, "0") for size in ("8", "16") for rate in ("3e-06", "0.0005")
    ]
    assert [row["steps"] for row in search] == ["20", "20", "8", "8"]
    best = json.loads((folder / "sweep" / "finetune" / "CAD" / "best.json").read_text())
    assert best["point"] == int(min(search, key=lambda row: float(row["best"]))["point"]) == 1
    assert best["chosen"] == {"batch_size": 8, "rate": 5e-4}
    assert [(row["round"], row["point"], row["seed"]) for row in chosen] == [
        ("chosen", "1", "0"), ("chosen", "1", "101"),
    ]  # fmt: skip
    values = [float(row["best"]) for row in chosen]
    assert best["mean"] == pytest.approx(np.mean(values))
    assert best["sd"] == pytest.approx(np.std(values, ddof=1))
    # The seed of the search is trained again, for its parameters.
    assert values[0] == pytest.approx(float(search[1]["best"]), rel=1e-5)


def test_batch_sizes_of_the_grid_are_checked_before_anything_is_trained(cohort_folder, tmp_path):
    config = config_of(cohort_folder, {"batch_size": (8, 1024)})
    with pytest.raises(ValueError, match="finetune/CAD/0: batch_size is 1024, larger than the"):
        start(config, tmp_path).run_all(["finetune"])
    config = config_of(cohort_folder, GRID, epochs=1)
    with pytest.raises(ValueError, match="finetune.optimizer.warmup_epochs is 1, .* which is 1"):
        start(config, tmp_path).run_all(["finetune"])
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_the_chosen_members_are_stages_like_others(swept, cohort_folder, tmp_path):
    config, folder = swept
    # The same run alone, on all devices, with the settings that were chosen.
    settings = config["stages"]["finetune"]
    optimizer = {k: v for k, v in settings["optimizer"].items() if k != "base_rate"}
    plain = config_of(
        cohort_folder, patience=-1, optimizer={**optimizer, "rate": 5e-4}, seeds=(101,)
    )
    assert start(plain, tmp_path).run_all(["finetune"])
    name = "stages/finetune/CAD/101"
    swept_done, done = (
        json.loads((run / name / "done.json").read_text()) for run in (folder, tmp_path)
    )
    assert swept_done.pop("chosen") == {"batch_size": 8, "rate": 5e-4}
    assert swept_done.keys() == done.keys()
    for field in ("steps", "best_step", "epochs", "select", "hand_on", "records", "stopped_early"):
        assert swept_done[field] == done[field]
    assert swept_done["best"] == pytest.approx(done["best"], rel=1e-5)
    ours, _, step = load(folder / name, "best")
    theirs, _, _ = load(tmp_path / name, "best")
    assert relative(ours, theirs) < 1e-5
    assert step == done["best_step"]
    predictions = np.load(folder / "evaluate" / "predictions" / "finetune__CAD__101.npz")
    assert np.isfinite(predictions["prediction"]).all()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    mine = [line for line in lines if line["stage"] == "finetune/CAD/101"]
    assert [line["step"] for line in mine] == [5, 10, 15, 20]
    assert {"train/loss", "train/learning_rate", "val/loss", "val/auroc"} <= mine[0].keys()


@pytest.mark.slow
def test_a_sweep_that_was_interrupted_goes_on(swept, tmp_path, monkeypatch):
    config, folder = swept
    add = search.Results.add

    def stopping(results, task, record):
        add(results, task, record)
        if task.point == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def stopping_at_once(meter, running, taken):
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(search.Meter, "update", stopping_at_once)
        with pytest.raises(Interrupted, match="0 of 4 members have finished; any under way"):
            start(config, tmp_path).run_all(["finetune"])
    continued = []

    def continuing(saved, member, schedule):
        continued.append((member.name, saved["step"]))
        return go_on(saved, member, schedule)

    go_on = sweep_loop._continued
    with monkeypatch.context() as patched:
        patched.setattr(search.Results, "add", stopping)
        patched.setattr(sweep_loop, "_continued", continuing)
        with pytest.raises(Interrupted, match=r"\(search\) stopped by SIGTERM; 2 of 4 members"):
            start(config, tmp_path).run_all(["finetune"])
    assert continued == [(f"finetune/CAD/0 (search, point {point})", 1) for point in (0, 1)]
    assert len(table(tmp_path)) == 2
    # As if it had been killed while it wrote the third.
    with (tmp_path / "sweep" / "finetune" / "CAD" / "results.jsonl").open("a") as file:
        file.write('{"round": "sea')
    # And killed before it had removed the members of the first batch size.
    (tmp_path / "sweep" / "finetune" / "CAD" / "underway-search-8" / "checkpoints").mkdir(
        parents=True
    )
    trained = []

    def counting(results, task, record):
        trained.append(task)
        add(results, task, record)

    monkeypatch.setattr(search.Results, "add", counting)
    # How many train side by side may change on the way.
    config = json.loads(json.dumps(config))
    config["stages"]["finetune"]["sweep"]["members"] = 16
    assert start(config, tmp_path).run_all(["finetune"])
    assert [(task.round, task.point) for task in trained] == [
        ("search", 2), ("search", 3), ("chosen", 1), ("chosen", 1),
    ]  # fmt: skip
    assert list((tmp_path / "sweep" / "finetune" / "CAD").glob("underway*")) == []
    for one, other in zip(table(tmp_path), table(folder), strict=True):
        assert float(one.pop("best")) == pytest.approx(float(other.pop("best")), rel=1e-5)
        assert one == other


def test_a_finished_sweep_is_not_run_again(swept, monkeypatch):
    config, folder = swept
    monkeypatch.setattr(search, "train_members", None)
    assert not start(config, folder).run_all()
    changed = json.loads(json.dumps(config))
    changed["stages"]["finetune"]["sweep"]["grid"]["rate"] = [1e-4]
    with pytest.raises(ValueError, match=r"other settings: stage.sweep.grid.rate: \["):
        start(changed, folder).run_all()


def test_a_sweep_of_other_records_is_refused(tmp_path):
    def begin(**cohort):
        search.Results(tmp_path, [{"rate": 1e-3}], 8).begin({"stage": {}, "data": {}, **cohort})

    begin(cohort="abc")
    begin(cohort="abc")
    with pytest.raises(ValueError, match="cohort: 'abc' then, 'def' now"):
        begin(cohort="def")


def test_another_grid_in_the_same_folder_is_refused(tmp_path):
    results = search.Results(tmp_path, [{"rate": 1e-3}], 8)
    results.begin({"stage": {"sweep": {"grid": {"rate": [1e-3]}}}, "data": {}})
    with pytest.raises(ValueError, match="other settings: stage.sweep.grid.rate"):
        results.begin({"stage": {"sweep": {"grid": {"rate": [1e-4]}}}, "data": {}})
