"""The tabular baseline: the grid, seeds and splits, and the files that it leaves."""

import csv
import json
import shutil

import numpy as np
import pytest
import xgboost
from tiny_people import TinyPeople

from mmcl_jax import default_config, evaluate, tabular
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data import pipeline
from mmcl_jax.data.targets.shuffled_labels import shuffle_labels
from mmcl_jax.experiment import Experiment
from mmcl_jax.inference.models import able_to_predict
from mmcl_jax.run_dir import RunDir

GRID = {"rounds": (5, 20), "max_depth": (2, 3), "learning_rate": (0.3,), "subsample": (0.5, 1.0)}


def config_of(cohort, **changes):
    config = default_config.experiment("tabular")
    config.order = ("tabular", "evaluate")
    settings = {"inputs": ("age", "sex", "weight", "height")}
    config.stages.tabular = default_config.stage(
        "tabular",
        **{
            "settings": settings, "targets": ("CAD", "rhythm", "LV"), "seeds": (0, 101),
            "balanced": True, "sweep": {"grid": GRID}, **changes,
        },
    )  # fmt: skip
    config.stages.evaluate = {
        "splits": ("val", "test"), "crops": 1, "resamples": 30, "batch_size": 8,
    }  # fmt: skip
    config.data.path = str(cohort)
    return json.loads(config.to_json())


def start(config, folder):
    experiment = Experiment(config, RunDir(folder))
    RunDir(folder).write_config(config)
    return experiment


def results(folder):
    with (folder / "evaluate" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        (row["target"], row["split"], row["metric"], int(row["seed"])): float(row["value"])
        for row in rows
        if row["value"]
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    path = tmp_path_factory.mktemp("people") / "cohort"
    cohorts.write(TinyPeople(), path, workers=0, progress=False)
    return path


@pytest.fixture(scope="module")
def finished(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tabular")
    assert start(config_of(cohort), folder).run_all()
    return folder


def test_trees_predict_nothing_from_an_ecg(finished):
    assert able_to_predict(Experiment.open(finished)) == []


def test_it_learns_what_the_inputs_know(finished):
    found = results(finished)
    assert found["CAD", "test", "auroc", 0] > 0.85
    assert found["rhythm", "test", "macro_auroc", 0] > 0.8
    assert found["LVEDV", "test", "r", 101] > 0.8
    file = np.load(finished / "evaluate" / "predictions" / "tabular__LV__0.npz")
    assert file["names"].tolist() == ["LVEDV"]
    assert file["units"].tolist() == ["mL"]
    assert 110 < np.median(file["prediction"]) < 190
    assert np.isnan(file["label"]).any()
    assert np.isfinite(file["prediction"]).all()
    # Every person of the split, also those who lack the weight.
    assert (file["split"] == "test").sum() == 90


def test_the_best_point_is_that_of_the_validation_split(finished, cohort):
    folder = finished / "sweep" / "tabular" / "CAD"
    best = json.loads((folder / "best.json").read_text())
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == best["points"] == 8
    scores = [float(row["val/auroc"]) for row in rows]
    assert scores[best["point"]] == max(scores) == best["search"][0]
    done = json.loads((finished / "stages" / "tabular" / "CAD" / "0" / "done.json").read_text())
    assert done["chosen"] == best["chosen"]
    assert done["best"] == max(scores)
    # The balanced training set of fine-tuning.
    rows = pipeline.select(cohorts.open_cohort(cohort), "train", target="CAD", balanced=True)
    assert done["records"] == len(rows)
    assert results(finished)["CAD", "val", "auroc", 0] == pytest.approx(done["best"])


def test_a_shorter_run_is_the_beginning_of_a_longer_one(finished, cohort):
    experiment = start(config_of(cohort), finished)
    stage = experiment.stages[0]
    data = tabular._Data(experiment, stage)
    point = {"max_depth": 3, "learning_rate": 0.3, "subsample": 0.5}
    (longer,) = data.fit({**point, "rounds": 20}, seed=1)
    (shorter,) = data.fit({**point, "rounds": 5}, seed=1)
    rows = data.rows["val"]
    cut = data.predict([longer], "val", rows, rounds=5)
    np.testing.assert_array_equal(cut, data.predict([shorter], "val", rows))
    (again,) = data.fit({**point, "rounds": 20}, seed=1)
    assert again.save_raw("ubj") == longer.save_raw("ubj")
    (other,) = data.fit({**point, "rounds": 20}, seed=2)
    assert other.save_raw("ubj") != longer.save_raw("ubj")


def test_the_same_command_again_changes_nothing(finished, cohort, capsys):
    files = [file for file in finished.rglob("*") if file.is_file()]
    before = {file: file.read_bytes() for file in files}
    assert not start(config_of(cohort), finished).run_all()
    # Evaluated again from the saved trees.
    experiment = Experiment.open(finished)
    evaluate.run(experiment, **experiment.config["stages"]["evaluate"])
    for file, content in before.items():
        if file.suffix in (".csv", ".json", ".ubj"):
            assert file.read_bytes() == content, file
    xgboost.Booster(model_file=finished / "stages" / "tabular" / "CAD" / "0" / "0.ubj")


def test_more_seeds_take_the_choice_that_was_made(finished, cohort, tmp_path, capsys):
    folder = tmp_path / "more"
    shutil.copytree(finished, folder)
    assert start(config_of(cohort, seeds=(0, 101, 202)), folder).run_all()
    assert "best of 8 points" not in capsys.readouterr().out
    assert ("CAD", "test", "auroc", 202) in results(folder)


def test_shuffled_labels_bring_chance(cohort, tmp_path):
    """Test AUROC over seven shuffles: what trees learn from the labels of others is nothing."""
    found = []
    for seed in range(7):
        config = config_of(cohort, targets=("CAD",), seeds=(0,))
        config["seed"] = seed
        config["data"]["shuffle_labels"] = True
        start(config, tmp_path / str(seed)).run_all()
        found.append(results(tmp_path / str(seed))["CAD", "test", "auroc", 0])
    assert abs(np.mean(found) - 0.5) < 0.12
    # Labels go to others within their split, the test split keeps its own.
    opened = cohorts.open_cohort(cohort)
    shuffled = shuffle_labels(opened)
    for split in ("train", "val", "test"):
        ours, theirs = shuffled.table(split)["labels"], opened.table(split)["labels"]
        np.testing.assert_array_equal(np.sort(ours, axis=0), np.sort(theirs, axis=0))
        assert np.array_equal(ours, theirs, equal_nan=True) == (split == "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("age",)}, "cannot predict age, which it reads"),
        ({"settings": {"inputs": ("age", "smoking")}}, "has no label smoking, which the tabular"),
        ({"settings": {"input": ("age",)}}, "stages.tabular.settings has no field input"),
        ({"sweep": {"grid": {"rounds": (5,)}}}, "grid has rounds, expected values for rounds, max"),
        ({"targets": (), "seeds": ()}, "stages.tabular has no targets"),
    ],
)
def test_settings_are_checked(cohort, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        start(config_of(cohort, **changes), tmp_path / "run").run_all()
