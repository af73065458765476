"""Rows of metrics.csv from the predictions of a target."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mmcl_jax.data.targets.labels import Label
from mmcl_jax.predictions import metric_rows, validation_score

CLASSES = tuple(Label(name, "binary", "superclass") for name in ("NORM", "MI", "HYP"))


def arrays(n=200, constant=False):
    rng = np.random.default_rng(0)
    label = (rng.random((n, 3)) < (0.5, 0.2, 0.1)).astype(float)
    label[:20, 1] = np.nan
    # Nothing is known of these.
    label[:4] = np.nan
    if constant:
        label[:, 2] = 0
    return {
        "record": np.arange(n).astype(str),
        "subject": (np.arange(n) // 2).astype(str),
        "split": np.full(n, "test"),
        "label": label,
        "prediction": np.clip(0.3 * np.nan_to_num(label) + 0.6 * rng.random((n, 3)), 0, 1),
        "names": np.array([label.name for label in CLASSES]),
        "kinds": np.array(["binary"] * 3),
        "units": np.array([""] * 3),
        "seed": np.array(7),
        "target": np.array("superclass"),
    }


def test_several_labels_have_a_macro_auroc_with_an_interval():
    found = arrays()
    rows = {(r["target"], r["metric"]): r for r in metric_rows("mae", CLASSES, found, 200)}
    known = ~np.isnan(found["label"])
    expected = [
        roc_auc_score(found["label"][known[:, k], k], found["prediction"][known[:, k], k])
        for k in range(3)
    ]
    macro = rows["superclass", "macro_auroc"]
    assert macro["value"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert macro["low"] < macro["value"] < macro["high"] < macro["low"] + 0.3
    assert (macro["n"], macro["seed"], macro["model"], macro["split"]) == (196, 7, "mae", "test")
    assert rows["MI", "auroc"]["value"] == pytest.approx(expected[1], abs=1e-12)
    metric, value = validation_score(CLASSES, found["label"], found["prediction"])
    assert (metric, value) == ("val/auroc", pytest.approx(np.mean(expected)))


def test_a_label_with_one_value_leaves_it_undefined(capsys):
    rows = list(metric_rows("mae", CLASSES, arrays(constant=True), 10))
    (macro,) = [row for row in rows if row["metric"] == "macro_auroc"]
    assert np.isnan(macro["value"])
    assert (
        "macro_auroc is undefined: one of the labels has one value only" in capsys.readouterr().out
    )


def test_one_label_has_none():
    found = arrays()
    one = {**found, "label": found["label"][:, :1], "prediction": found["prediction"][:, :1]}
    one |= {"names": found["names"][:1], "kinds": found["kinds"][:1]}
    metrics = {row["metric"] for row in metric_rows("mae", CLASSES[:1], one, 10)}
    assert "auroc" in metrics
    assert "macro_auroc" not in metrics
