import numpy as np
import pytest

from mmcl_jax.data.targets.label_summary import summarise, words
from mmcl_jax.data.targets.labels import Label

CAD = Label("CAD", "binary", "disease")
LVEDV = Label("LVEDV", "regression", "LV", "mL")


def test_binary():
    values = np.float32([1, 0, 0, np.nan])
    assert summarise(CAD, values) == {
        "known": 3,
        "missing": 1,
        "positives": 1,
        "prevalence": pytest.approx(1 / 3),
    }
    assert words(CAD, values) == "33.3 %"


def test_regression():
    values = np.float32([100, 140, np.nan])
    expected = {"known": 2, "missing": 1, "mean": 120, "sd": 20, "min": 100, "max": 140}
    assert summarise(LVEDV, values) == expected
    assert words(LVEDV, values) == "120, 20 mL"


def test_multiclass():
    label = Label("rhythm", "multiclass", "rhythm", classes=("sinus", "AF", "flutter"))
    values = np.float32([0, 0, 0, 1, np.nan])
    assert summarise(label, values)["counts"] == {"sinus": 3, "AF": 1, "flutter": 0}
    assert words(label, values) == "sinus 75 %, AF 25 %, flutter 0 %"


def test_nothing_known():
    assert summarise(CAD, np.float32([np.nan])) == {"known": 0, "missing": 1}
    assert words(LVEDV, np.float32([])) == "-"
