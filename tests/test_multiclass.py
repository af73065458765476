"""A multi-class label through the whole program: table, cohort, fine-tuning, evaluation, report."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import sklearn.metrics
import tiny_source
from made_up_ecg import made_up

from mmcl_jax import default_config
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data import pipeline
from mmcl_jax.data.sources.table import Table
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.experiment import Experiment
from mmcl_jax.run_dir import RunDir

CLASSES = ("SR", "AF", "VT")
SPLITS = ("train",) * 4 + ("val", "test")
N = 72


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """72 recordings, 48 of them to train on; every eighth has no rhythm."""
    folder = tmp_path_factory.mktemp("data")
    np.save(folder / "ecg.npy", made_up(n=N).astype(np.float32))
    rows = ["record,split,rhythm"]
    for i in range(N):
        rhythm = "" if i % 8 == 7 else CLASSES[i // 6 % 3]
        rows.append(f"r{i:02d},{SPLITS[i % 6]},{rhythm}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    source = Table(
        folder / "ecg.npy", rate=500, unit="mV", labels=folder / "labels.csv",
        declared={"multiclass": f"rhythm:{';'.join(CLASSES)}"},
    )  # fmt: skip
    cohorts.write(source, folder / "cohort", workers=0, progress=False)
    return cohorts.open_cohort(folder / "cohort")


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    config = default_config.experiment("rhythms")
    config.order = ("finetune", "evaluate", "report")
    config.models = {
        "ecg_encoder": {
            "name": "vit", "width": 16, "depth": 1, "heads": 2, "samples": 500, "pool": "attention",
        },
        "head": {"name": "head"},
    }  # fmt: skip
    config.data.path = str(cohort.path)
    config.stages.finetune = default_config.stage(
        "supervised",
        towers={"ecg_encoder": {}, "head": {}},
        targets=("rhythm",),
        seeds=(0,),
        ecg_view={"length": 500},
        batch_size=8,
        epochs=2,
        optimizer={"name": "adamw", "rate": 1e-3, "weight_decay": 0.0},
        select={"classification": "val/auroc", "regression": "val/r"},
    )
    config.stages.evaluate = {
        "splits": ("val", "test"), "crops": 1, "resamples": 50, "batch_size": 8,
    }  # fmt: skip
    config.stages.report = {}
    config = json.loads(config.to_json())
    folder = tmp_path_factory.mktemp("run")
    directory = RunDir(folder)
    experiment = Experiment(config, directory)
    directory.write_config(config)
    assert experiment.run_all()
    return folder


def test_the_cohort_knows_the_classes(cohort):
    (label,) = cohort.target("rhythm")
    assert (label.kind, label.classes) == ("multiclass", CLASSES)
    assert cohort.statistics == {}
    values = cohort.table("train")["labels"][:, 0]
    assert set(values[~np.isnan(values)]) == {0, 1, 2}


def test_fractions_keep_the_shares_of_the_classes(cohort):
    values = cohort.table("train")["labels"][:, 0]
    whole = [(values == number).sum() for number in range(3)]
    earlier = set()
    for fraction in (0.01, 0.25, 0.5, 1.0):
        rows = pipeline.select(cohort, "train", target="rhythm", fraction=fraction)
        found = [(values[rows] == number).sum() for number in range(3)]
        assert sum(found) == max(len(whole), round(fraction * sum(whole)))
        assert all(abs(n - max(1, fraction * m)) <= 1 for n, m in zip(found, whole, strict=True))
        assert earlier <= set(rows)
        earlier = set(rows)
    with pytest.raises(ValueError, match="balanced=True needs one binary label"):
        pipeline.select(cohort, "train", target="rhythm", balanced=True)


def test_predictions_have_a_column_per_class(run, cohort):
    arrays = np.load(run / "evaluate" / "predictions" / "finetune__rhythm__0.npz")
    assert arrays["names"].tolist() == ["rhythm: SR", "rhythm: AF", "rhythm: VT"]
    assert arrays["kinds"].tolist() == ["multiclass"] * 3
    np.testing.assert_allclose(arrays["prediction"].sum(axis=1), 1, rtol=1e-5)
    test = arrays["split"] == "test"
    expected = cohort.table("test")["labels"][:, 0]
    missing = np.isnan(expected)
    assert missing.any()
    np.testing.assert_array_equal(np.isnan(arrays["label"][test]).all(axis=1), missing)
    np.testing.assert_array_equal(
        arrays["label"][test][~missing].argmax(axis=1), expected[~missing]
    )


def test_metrics_equal_scikit_learn(run):
    arrays = np.load(run / "evaluate" / "predictions" / "finetune__rhythm__0.npz")
    with (run / "evaluate" / "metrics.csv").open() as file:
        rows = {(row["target"], row["split"], row["metric"]): row for row in csv.DictReader(file)}
    known = (arrays["split"] == "test") & ~np.isnan(arrays["label"]).any(axis=1)
    truth, probability = arrays["label"][known].argmax(axis=1), arrays["prediction"][known]
    predicted = probability.argmax(axis=1)
    expected = {
        ("rhythm", "macro_auroc"): sklearn.metrics.roc_auc_score(
            truth, probability / probability.sum(axis=1, keepdims=True), multi_class="ovr"
        ),
        ("rhythm", "accuracy"): sklearn.metrics.accuracy_score(truth, predicted),
        ("rhythm", "balanced_accuracy"): sklearn.metrics.balanced_accuracy_score(truth, predicted),
        ("rhythm: AF", "auroc"): sklearn.metrics.roc_auc_score(truth == 1, probability[:, 1]),
    }
    for (target, metric), value in expected.items():
        row = rows[target, "test", metric]
        assert float(row["value"]) == pytest.approx(value)
        assert float(row["low"]) <= value <= float(row["high"])
        assert int(row["n"]) == known.sum()
    assert ("rhythm: AF", "test", "accuracy") not in rows
    assert ("rhythm", "val", "macro_auroc") in rows


def test_the_best_parameters_are_selected_by_auroc(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "val/auroc" in line]
    assert found
    assert {"val/accuracy", "val/balanced_accuracy"} <= set(found[-1])


def test_the_report_shows_classes(run):
    page = (run / "report" / "index.html").read_text()
    assert "macro AUROC" in page
    assert "Confusion of classes" in page
    assert "<td>rhythm: VT</td>" in page
    assert (run / "report" / "roc.png").exists()
    with (run / "report" / "predictions_rhythm.csv").open() as file:
        row = next(csv.DictReader(file))
    shares = [float(row[f"rhythm: {name} predicted [probability]"]) for name in CLASSES]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    # The summary has one line for the label, not the mean over its classes.
    summary = page[page.index('id="summary"') : page.index('id="run"')]
    assert summary.count("macro AUROC") == 1


def test_the_table_of_confusions(run):
    from mmcl_jax.report.confusion import confusion_section
    from mmcl_jax.report.inputs import read_run

    read = read_run(run)
    (member,) = read.predictions
    truth = np.eye(3)[[0, 0, 1, 2, 1]]
    truth[4] = np.nan
    guess = np.array(
        [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.5, 0.3], [0.6, 0.2, 0.2], [1, 0, 0]]
    )
    names = {field: np.array([field] * 5) for field in ("record", "subject")}
    made = dataclasses.replace(
        member, split=np.array(["test"] * 5), label=truth, prediction=guess, **names
    )
    html = confusion_section(dataclasses.replace(read, predictions=(made,)))
    cells = [row.split("</td>")[:-1] for row in html.split("<tr>")[2:]]
    cells = [[cell.replace("<td>", "") for cell in row] for row in cells]
    assert cells == [
        ["SR", "1", "1", "0", "2", "50 %"],
        ["AF", "0", "1", "0", "1", "100 %"],
        ["VT", "1", "0", "0", "1", "0 %"],
    ]
    assert confusion_section(dataclasses.replace(read, predictions=())) == ""


def test_the_number_of_a_class_that_does_not_exist_is_refused(tmp_path):
    rhythm = Label("rhythm", "multiclass", "rhythm", classes=CLASSES)

    class Source(tiny_source.TinySource):
        labels = (rhythm,)

        def load(self, task):
            subject = super().load(task)
            subject.labels = {"rhythm": 3.0 if task == 2 else 0.5 if task == 3 else float(task % 3)}
            return subject

    found = cohorts.write(Source(count=10), tmp_path / "cohort", workers=0, progress=False)
    assert [(entry.record, entry.reason) for entry in found.refused] == [
        ("r002", "label rhythm is 3, expected the number of a class, 0 to 2"),
        ("r003", "label rhythm is 0.5, expected the number of a class, 0 to 2"),
    ]
