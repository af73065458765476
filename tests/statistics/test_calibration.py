"""Calibration against scikit-learn and against a loop over the bins."""

import numpy as np
import pytest
import scipy.stats
import sklearn.calibration
import sklearn.metrics

from mmcl_jax.statistics.calibration import calibration


def _case(n=500):
    generator = np.random.default_rng(0)
    probability = generator.random(n) ** 2
    return (generator.random(n) < 0.6 * probability).astype(float), probability


def test_brier_and_curve_equal_sklearn():
    label, probability = _case()
    found = calibration(label, probability)
    brier = sklearn.metrics.brier_score_loss(label, probability)
    assert found.brier == pytest.approx(brier, abs=1e-12)
    observed, predicted = sklearn.calibration.calibration_curve(label, probability, n_bins=10)
    np.testing.assert_allclose(found.observed, observed, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.predicted, predicted, rtol=0, atol=1e-12)
    assert found.count.sum() == 500


def test_expected_calibration_error_and_intervals_equal_a_loop():
    label, probability = _case()
    found = calibration(label, probability, bins=7)
    total = 0.0
    for number in range(7):
        low, high = number / 7, (number + 1) / 7
        inside = (probability > low) & (probability <= high)
        if number == 0:
            inside |= probability == 0
        assert found.count[number] == inside.sum()
        total += inside.sum() * abs(probability[inside].mean() - label[inside].mean())
        wilson = scipy.stats.binomtest(int(label[inside].sum()), int(inside.sum()))
        ends = wilson.proportion_ci(method="wilson")
        assert (found.low[number], found.high[number]) == pytest.approx(ends, abs=1e-12)
    assert found.ece == pytest.approx(total / 500, abs=1e-12)


def test_extremes_missing_labels_and_empty_bins():
    found = calibration(np.array([0, 1, np.nan, 1]), np.array([0.0, 1.0, 0.5, 1.0]))
    assert found.count.tolist() == [1, *[0] * 8, 2]
    assert (found.brier, found.ece) == (0, 0)
    assert np.isnan(found.observed[1:-1]).all()
    assert np.isnan(found.low[1:-1]).all()
    # An edge belongs to the bin below it.
    assert calibration(np.array([1.0]), np.array([0.5])).count.tolist() == [0] * 4 + [1] + [0] * 5


@pytest.mark.parametrize(
    ("label", "probability", "match"),
    [
        ([0, 2], [0.1, 0.2], "must be 0, 1 or NaN"),
        ([0, 1], [0.1, 1.2], "apply the sigmoid"),
        ([0, 1], [0.1, np.nan], "apply the sigmoid"),
        ([0, 1], [0.1], "two equal"),
        ([np.nan], [0.5], "no record has this label"),
    ],
)
def test_bad_input_is_named(label, probability, match):
    with pytest.raises(ValueError, match=match):
        calibration(np.array(label), np.array(probability))
