"""The paired bootstrap against a plain loop over the same draws, and Holm's adjustment."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from mmcl_jax.statistics.bootstrap import resample_counts
from mmcl_jax.statistics.comparison import holm, mean_statistic, paired_difference


def _ap_case(n=90, seeds=2, levels=None):
    generator = np.random.default_rng(0)
    label = (generator.random((n, 1)) < 0.3).astype(float)
    probability = 1 / (1 + np.exp(-(label + generator.normal(size=(seeds, n, 1)))))
    return label, np.round(probability * levels) / levels if levels else probability


@pytest.mark.parametrize("levels", [None, 6], ids=["distinct", "ties"])
@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        ("ap", sklearn.metrics.average_precision_score),
        ("auroc", sklearn.metrics.roc_auc_score),
    ],
)
def test_mean_of_classification_metrics_equals_sklearn(metric, reference, levels):
    label, probability = _ap_case(levels=levels)
    statistic = mean_statistic(metric, label, probability)
    (counts,) = resample_counts(90, resamples=20, seed=3)
    draws = np.vstack([np.ones((1, 90)), counts]).astype(int)
    rows = [np.repeat(np.arange(90), weight) for weight in draws]
    expected = [np.mean([reference(label[row, 0], p[row, 0]) for p in probability]) for row in rows]
    np.testing.assert_allclose(statistic(draws.astype(float)), expected, rtol=0, atol=1e-12)


def test_mean_of_r_over_labels_with_gaps_equals_scipy():
    generator = np.random.default_rng(0)
    label = 150 + 30 * generator.normal(size=(80, 3))
    prediction = label + 20 * generator.normal(size=(2, 80, 3))
    label[:20, 0], label[::3, 2] = np.nan, np.nan
    statistic = mean_statistic("r", label, prediction)
    draws = np.random.default_rng(4).integers(80, size=(10, 80))
    counts = np.stack([np.bincount(row, minlength=80) for row in draws]).astype(float)
    expected = []
    for row in draws:
        values = []
        for column in range(3):
            known = row[~np.isnan(label[row, column])]
            for guess in prediction:
                values.append(scipy.stats.pearsonr(label[known, column], guess[known, column])[0])
        expected.append(np.mean(values))
    np.testing.assert_allclose(statistic(counts), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grouped", [False, True])
def test_paired_difference_equals_a_loop(grouped):
    label, first = _ap_case(n=60)
    second = 0.5 * first + 0.5 * np.random.default_rng(5).random(first.shape)
    subject = np.arange(60) // 2 if grouped else None
    statistics = [mean_statistic("ap", label, prediction) for prediction in (first, second)]
    found = paired_difference(*statistics, 60, subject, resamples=200, seed=1)
    units = 30 if grouped else 60
    draws = np.random.default_rng(1).integers(units, size=(200, units))
    differences = []
    for row in draws:
        records = np.concatenate([2 * row, 2 * row + 1]) if grouped else row
        scores = [
            np.mean(
                [
                    sklearn.metrics.average_precision_score(label[records, 0], p[records, 0])
                    for p in prediction
                ]
            )
            for prediction in (first, second)
        ]
        differences.append(scores[0] - scores[1])
    differences = np.array(differences)
    low, high = np.percentile(differences, (2.5, 97.5))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    assert found.p == pytest.approx(min(1, 2 * (tail + 1) / 201))
    assert found.n == 60
    assert found.low < found.value < found.high


def test_a_model_does_not_differ_from_itself():
    label, probability = _ap_case()
    statistic = mean_statistic("ap", label, probability)
    same = paired_difference(statistic, statistic, 90, None, resamples=50)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_undefined_metrics_carry_a_reason():
    constant = np.full((1, 30, 1), 3.0)
    label = np.random.default_rng(0).normal(size=(30, 1))
    statistics = [mean_statistic("r", label, constant), mean_statistic("r", label, label[None])]
    found = paired_difference(*statistics, 30, None, resamples=10)
    assert np.isnan([found.value, found.p]).all()
    assert found.reason == "a metric is undefined"
    with pytest.raises(ValueError, match="metric is 'f1', expected one of auroc, ap, r"):
        mean_statistic("f1", label, constant)


def test_holm_adjusts_step_by_step():
    p = np.array([0.04, 0.01, np.nan, 0.03, 0.5])
    # Sorted: 0.01 * 4, 0.03 * 3, 0.04 * 2 raised to the one before, 0.5.
    np.testing.assert_allclose(holm(p), [0.09, 0.04, np.nan, 0.09, 0.5])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1, 1])
