"""Linear probe and nearest neighbours on frozen embeddings."""

import csv
import json
import types

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from tiny_people import RHYTHM, TinyPeople

from mmcl_jax import default_config, probe
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data import pipeline
from mmcl_jax.data.targets.labels import DISEASES, PHENOTYPES
from mmcl_jax.experiment import Experiment
from mmcl_jax.run_dir import RunDir


class Averages:
    """In place of a trained encoder: the mean of each lead, and numbers that say nothing."""

    def __init__(self, settings):
        stage = types.SimpleNamespace(name="mmcl", seed=0)
        member = types.SimpleNamespace(stage=stage, id="a", settings=settings)
        self.groups = [types.SimpleNamespace(members=(member,))]

    def __call__(self, ecg):
        noise = np.random.default_rng(len(ecg)).normal(size=(len(ecg), 8))
        return np.concatenate([ecg.mean(axis=2), noise], axis=1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    path = tmp_path_factory.mktemp("people") / "cohort"
    cohorts.write(TinyPeople(), path, workers=0, progress=False)
    return cohorts.open_cohort(path)


@pytest.fixture
def experiment(cohort, tmp_path, monkeypatch):
    config = default_config.experiment("mmcl")
    config.data.path = str(cohort.path)
    plain = json.loads(config.to_json())
    RunDir(tmp_path).write_config(plain)
    trained = types.SimpleNamespace(embedder=Averages(cohort.settings["ecg"]))
    monkeypatch.setattr(probe, "TrainedRun", lambda experiment, stage: trained)
    return Experiment(plain, RunDir(tmp_path))


def rows_of(folder):
    with (folder / "metrics.csv").open() as file:
        return {
            (row["model"], row["target"], row["split"], row["metric"]): row
            for row in csv.DictReader(file)
        }


def test_probes_find_what_embeddings_hold(experiment, cohort):
    summary = probe.run(experiment, resamples=30)
    folder = experiment.run.path / "probe" / "mmcl"
    assert summary["folder"] == str(folder)
    found = rows_of(folder)
    for model in ("mmcl linear", "mmcl neighbours"):
        row = found[model, "CAD", "test", "auroc"]
        assert float(row["value"]) > 0.8
        assert float(row["low"]) < float(row["value"]) < float(row["high"])
        assert float(found[model, "rhythm", "test", "macro_auroc"]["value"]) > 0.75
        assert float(found[model, "LVEDV", "test", "r"]["value"]) > 0.7
    assert ("mmcl linear", "age", "test", "r") not in found
    about = json.loads((folder / "probe.json").read_text())
    assert about["chosen"]["linear"]["CAD"]["setting"] in probe.INVERSE_PENALTIES
    assert about["chosen"]["neighbours"]["LVEDV"]["setting"] in probe.NEIGHBOURS
    balanced = pipeline.select(cohort, "train", target="CAD", balanced=True)
    assert about["chosen"]["linear"]["CAD"]["records"] == len(balanced)
    arrays = np.load(folder / "predictions" / "linear__CAD.npz")
    truth, prediction = arrays["label"][:, 0], arrays["prediction"][:, 0]
    test = arrays["split"] == "test"
    auroc = float(found["mmcl linear", "CAD", "test", "auroc"]["value"])
    assert auroc == pytest.approx(roc_auc_score(truth[test], prediction[test]), abs=1e-12)
    # The embeddings are those of the records, whatever their order.
    assert arrays["record"].tolist() == [
        name for split in ("val", "test") for name in cohort.table(split)["record"].tolist()
    ]


def test_shuffled_labels_bring_chance(experiment, cohort):
    found = []
    for seed in range(5):
        probe.run(experiment, labels=("CAD",), resamples=0, shuffle=seed)
        rows = rows_of(experiment.run.path / "probe" / f"mmcl__shuffled_labels_{seed}")
        found.append(
            [
                float(rows[f"mmcl {p}", "CAD", "test", "auroc"]["value"])
                for p in ("linear", "neighbours")
            ]
        )
    assert (abs(np.mean(found, axis=0) - 0.5) < 0.13).all()


def test_probes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    x, other = rng.normal(size=(80, 5)), rng.normal(size=(30, 5))
    truth = (x[:, 0] + 0.5 * rng.normal(size=80) > 0).astype(float)
    scaler = StandardScaler().fit(x)
    for inverse, predict in probe.linear(x, truth, DISEASES[0]):
        theirs = LogisticRegression(C=inverse, max_iter=5000).fit(scaler.transform(x), truth)
        expected = theirs.predict_proba(scaler.transform(other))[:, 1:]
        np.testing.assert_allclose(predict(other), expected, atol=1e-9)
    for k, predict in probe.neighbours(x, truth, DISEASES[0]):
        theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(x, truth)
        np.testing.assert_allclose(predict(other), theirs.predict_proba(other)[:, 1:])
    assert [k for k, _ in probe.neighbours(x, truth, DISEASES[0])] == [1, 5, 10, 20, 50]


def test_a_class_that_is_never_seen_has_probability_zero():
    x = np.random.default_rng(0).normal(size=(40, 3))
    truth = np.where(x[:, 0] > 0, 2.0, 0.0)
    for fit in (probe.linear, probe.neighbours):
        _, predict = next(iter(fit(x, truth, RHYTHM)))
        found = predict(x[:7])
        assert found.shape == (7, 3)
        np.testing.assert_array_equal(found[:, 1], 0)
        np.testing.assert_allclose(found.sum(axis=1), 1)
    _, predict = next(iter(probe.linear(x, x[:, 1], PHENOTYPES[0])))
    assert predict(x[:7]).shape == (7, 1)


def test_command_line(experiment, monkeypatch, capsys):
    folder = experiment.run.path
    probe.main(["--run", f"{folder}:mmcl", "--labels", "CAD", "--resamples", "5"])
    assert (folder / "probe" / "mmcl" / "metrics.csv").is_file()
    command = ["--run", str(folder), "--labels", "CAD", "--resamples", "5", "--shuffle-labels"]
    probe.main(command)
    probe.main([*command, "7"])
    about = []
    for name in ("mmcl", "mmcl__shuffled_labels_0", "mmcl__shuffled_labels_7"):
        assert (folder / "probe" / name / "metrics.csv").is_file()
        about.append(json.loads((folder / "probe" / name / "probe.json").read_text()))
    assert [probe["shuffle_seed"] for probe in about] == [None, 0, 7]
    assert [probe["shuffled"] for probe in about] == [False, True, True]
    assert not any(probe["other_cohort"] for probe in about)
    partial = ["--fraction", "0.5", "--selection-seed", "3", "--unbalanced"]
    probe.main([*command[:-1], *partial])
    about = folder / "probe" / "mmcl__unbalanced__50pct__selection_3" / "probe.json"
    found = json.loads(about.read_text())
    assert found["selection"] == {"balanced": False, "fraction": 0.5, "seed": 3}
    with pytest.raises(SystemExit) as stopped:
        probe.main(["--run", str(folder), "--labels", "HCM"])
    assert stopped.value.code == 1
    assert "no label called HCM" in capsys.readouterr().err
