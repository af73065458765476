"""Values against scikit-learn and scipy, the bootstrap against a plain loop over the same draws."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from mmcl_jax.statistics import metrics
from mmcl_jax.statistics.bootstrap import resample_counts


def _binary_case(n=120, levels=None, seed=0):
    generator = np.random.default_rng(seed)
    label = (generator.random(n) < 0.3).astype(np.float64)
    probability = 1 / (1 + np.exp(-(label + generator.normal(size=n))))
    if levels:
        probability = np.round(probability * levels) / levels
    return label, probability


def _regression_case(n=120, seed=0):
    generator = np.random.default_rng(seed)
    label = 150 + 30 * generator.normal(size=n)
    return label, 150 + 0.5 * (label - 150) + 20 * generator.normal(size=n)


def _sklearn_binary(label, probability):
    predicted = probability >= 0.5
    return {
        "auroc": sklearn.metrics.roc_auc_score(label, probability),
        "ap": sklearn.metrics.average_precision_score(label, probability),
        "f1": sklearn.metrics.f1_score(label, predicted),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(label, predicted),
        "accuracy": sklearn.metrics.accuracy_score(label, predicted),
    }


def _scipy_regression(label, prediction):
    return {
        "r": scipy.stats.pearsonr(label, prediction).statistic,
        "r2": sklearn.metrics.r2_score(label, prediction),
        "mae": sklearn.metrics.mean_absolute_error(label, prediction),
    }


def _same_as_loop(results, reference, label, prediction, seed, resamples):
    n = len(label)
    draws = np.random.default_rng(seed).integers(n, size=(resamples, n))
    loop = [reference(label[rows], prediction[rows]) for rows in draws]
    for name, value in reference(label, prediction).items():
        low, high = np.percentile([values[name] for values in loop], (2.5, 97.5))
        np.testing.assert_allclose(
            (results[name].value, results[name].low, results[name].high),
            (value, low, high),
            rtol=1e-12,
            atol=1e-12,
            err_msg=name,
        )


@pytest.mark.parametrize("levels", [None, 8], ids=["distinct", "ties"])
def test_binary_equals_sklearn_and_a_loop(levels):
    label, probability = _binary_case(levels=levels)
    results = metrics.binary_results(label, probability, resamples=60, seed=3)
    assert tuple(results) == metrics.BINARY
    _same_as_loop(results, _sklearn_binary, label, probability, seed=3, resamples=60)


def _multiclass_case(n=150, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    label = generator.integers(classes, size=n).astype(np.float64)
    scores = generator.normal(size=(n, classes))
    scores[np.arange(n), label.astype(int)] += 1
    return label, np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


def _sklearn_multiclass(label, probability):
    predicted = probability.argmax(axis=1)
    return {
        "macro_auroc": sklearn.metrics.roc_auc_score(label, probability, multi_class="ovr"),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(label, predicted),
        "accuracy": sklearn.metrics.accuracy_score(label, predicted),
    }


def test_multiclass_equals_sklearn_and_a_loop():
    label, probability = _multiclass_case()
    results = metrics.multiclass_results(label, probability, resamples=60, seed=3)
    assert tuple(results) == metrics.MULTICLASS
    _same_as_loop(results, _sklearn_multiclass, label, probability, seed=3, resamples=60)


def test_multiclass_without_some_classes_or_labels():
    label, probability = _multiclass_case(classes=5)
    label[::5] = np.nan
    known = ~np.isnan(label)
    label[label == 3] = 0
    results = metrics.multiclass_results(label, probability, resamples=20)
    assert results == metrics.multiclass_results(label[known], probability[known], resamples=20)
    assert results["accuracy"].n == known.sum() == 120
    present = (0, 1, 2, 4)
    aurocs = [
        sklearn.metrics.roc_auc_score(label[known] == c, probability[known, c]) for c in present
    ]
    assert results["macro_auroc"].value == pytest.approx(np.mean(aurocs))
    # A class that only one record has is lacking in a third of the resamples.
    label[known] = np.arange(120) % 2
    label[0], label[known.argmax()] = np.nan, 4
    results = metrics.multiclass_results(label, probability, resamples=50)
    assert np.isfinite([results["macro_auroc"].low, results["balanced_accuracy"].low]).all()


def test_multiclass_input_that_cannot_be_used():
    label, probability = _multiclass_case(n=20)
    with pytest.raises(ValueError, match=r"must be 0 to 3 or NaN, found \[4.0\]"):
        metrics.multiclass_results(np.where(label == 1, 4, label), probability)
    with pytest.raises(ValueError, match="must lie in"):
        metrics.multiclass_results(label, 2 * probability)
    with pytest.raises(ValueError, match=r"an \[N, C\] array"):
        metrics.multiclass_results(label, probability[:, 0])
    one = metrics.multiclass_results(np.zeros(20), probability, resamples=5)
    assert one["macro_auroc"].reason == "all 20 labels are class 0"
    assert np.isfinite(one["accuracy"].value)
    probability[3, 2] = np.nan
    bad = metrics.multiclass_results(label, probability)["accuracy"]
    assert bad.reason == "1 of 20 predictions are not finite"
    none = metrics.multiclass_results(np.full(20, np.nan), probability)["accuracy"]
    assert none.reason == "no record has this label"


def test_regression_equals_scipy_and_a_loop():
    label, prediction = _regression_case()
    results = metrics.regression_results(label, prediction, resamples=60, seed=5)
    assert tuple(results) == metrics.REGRESSION
    _same_as_loop(results, _scipy_regression, label, prediction, seed=5, resamples=60)


def test_r_survives_a_large_mean():
    label, prediction = _regression_case()
    found = metrics.regression_results(label + 1e6, prediction - 1e6, resamples=0)["r"].value
    assert found == pytest.approx(scipy.stats.pearsonr(label, prediction).statistic, abs=1e-9)


def test_missing_labels_are_left_out():
    label, probability = _binary_case()
    label[::4] = np.nan
    known = ~np.isnan(label)
    results = metrics.binary_results(label, probability, resamples=20)
    assert results["auroc"].n == known.sum() == 90
    assert results == metrics.binary_results(label[known], probability[known], resamples=20)


def test_a_subject_is_drawn_with_all_its_records():
    subject = np.array(["a", "b", "a", "c", "b", "a"])
    (counts,) = resample_counts(6, resamples=50, seed=0, subject=subject)
    assert (counts[:, [0, 0, 1]] == counts[:, [2, 5, 4]]).all()
    np.testing.assert_array_equal(counts[:, [0, 1, 3]].sum(axis=1), 3)
    # Ten copies of every record carry no information, so the interval must not shrink.
    label, probability = _binary_case(n=60)
    once = metrics.binary_results(label, probability)["auroc"]
    copies = metrics.binary_results(
        np.tile(label, 10), np.tile(probability, 10), subject=np.tile(np.arange(60), 10)
    )["auroc"]
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high), abs=1e-9)
    assert copies.n == 600


def test_resamples_come_in_blocks_of_one_stream(monkeypatch):
    monkeypatch.setattr("mmcl_jax.statistics.bootstrap._BLOCK", 35)
    blocks = list(resample_counts(10, resamples=8, seed=1))
    assert [len(block) for block in blocks] == [3, 3, 2]
    draws = np.random.default_rng(1).integers(10, size=(8, 10))
    expected = [np.bincount(row, minlength=10) for row in draws]
    np.testing.assert_array_equal(np.concatenate(blocks), expected)


@pytest.mark.parametrize("value", [0, 1])
def test_one_class_only_is_undefined_with_a_reason(value):
    probability = np.linspace(0, 1, 30)
    results = metrics.binary_results(np.full(30, float(value)), probability, resamples=10)
    assert np.isnan(results["auroc"].value)
    assert np.isnan(results["auroc"].low)
    assert results["auroc"].reason == f"all 30 labels are {value}"
    assert results["accuracy"].value == 0.5
    assert results["accuracy"].reason == ""


def test_resamples_of_one_class_are_left_out():
    label = np.zeros(40)
    label[7] = 1
    result = metrics.binary_results(label, np.linspace(0, 1, 40), resamples=200)["auroc"]
    assert result.value == pytest.approx(7 / 39)
    assert 0 <= result.low < result.value < result.high <= 1


def test_constant_predictions_and_labels():
    label, _ = _regression_case(n=20)
    constant = metrics.regression_results(label, np.full(20, 150.0), resamples=10)
    assert np.isnan(constant["r"].value)
    assert constant["r"].reason == "all 20 predictions are 150"
    assert constant["mae"].value == pytest.approx(np.abs(label - 150).mean())
    flat = metrics.regression_results(np.full(20, 3.0), label, resamples=10)
    assert np.isnan([flat["r"].value, flat["r2"].value]).all()
    assert flat["r2"].reason == "all 20 labels are 3"


def test_nothing_known_and_nothing_finite():
    nothing = metrics.regression_results(np.full(4, np.nan), np.zeros(4))
    assert nothing["r"].n == 0
    assert nothing["r"].reason == "no record has this label"
    broken = metrics.binary_results(np.array([0.0, 1.0]), np.array([0.5, np.nan]))
    assert broken["auroc"].reason == "1 of 2 predictions are not finite"
    assert np.isnan(broken["auroc"].value)


@pytest.mark.parametrize(
    ("label", "probability", "match"),
    [
        ([0, 2], [0.1, 0.2], r"must be 0, 1 or NaN, found \[2.0\]"),
        ([0, 1], [-3.0, 4.0], "apply the sigmoid"),
        ([0, 1], [0.5], r"found \(2,\) and \(1,\)"),
    ],
)
def test_bad_input_is_named(label, probability, match):
    with pytest.raises(ValueError, match=match):
        metrics.binary_results(np.array(label), np.array(probability))


def test_retrieval_equals_a_loop():
    generator = np.random.default_rng(0)
    ecg = generator.normal(size=(50, 6))
    cmr = ecg + 1.5 * generator.normal(size=(50, 6))
    results = metrics.retrieval_results(ecg, cmr, k=(1, 5), resamples=40, seed=2)
    draws = np.random.default_rng(2).integers(50, size=(40, 50))
    similarity = 1 - scipy.spatial.distance.cdist(ecg, cmr, "cosine")
    for direction, table in (("ecg_to_cmr", similarity), ("cmr_to_ecg", similarity.T)):
        ranks = np.array([1 + (row > row[i]).sum() for i, row in enumerate(table)])
        expected = {
            "recall@1": lambda ranks: (ranks <= 1).mean(),
            "recall@5": lambda ranks: (ranks <= 5).mean(),
            "median_rank": np.median,
        }
        for name, function in expected.items():
            found = results[f"{direction}/{name}"]
            loop = np.percentile([function(ranks[rows]) for rows in draws], (2.5, 97.5))
            assert found.value == pytest.approx(function(ranks))
            assert (found.low, found.high) == pytest.approx(tuple(loop))
            assert found.n == 50
    assert len(results) == 6


def test_match_ranks_in_blocks(monkeypatch):
    generator = np.random.default_rng(0)
    query, gallery = generator.normal(size=(2, 17, 4))
    whole = metrics.match_ranks(query, gallery)
    monkeypatch.setattr("mmcl_jax.statistics.metrics._BLOCK", 60)
    np.testing.assert_array_equal(metrics.match_ranks(query, gallery), whole)
    assert (metrics.match_ranks(query, 3 * query) == 1).all()


def test_a_collapsed_encoder_retrieves_nothing():
    same = np.ones((20, 8))
    results = metrics.retrieval_results(same, same, resamples=10)
    assert results["ecg_to_cmr/recall@1"].value == 0
    assert results["ecg_to_cmr/median_rank"].value == 20


def test_retrieval_refuses_what_has_no_direction():
    with pytest.raises(ValueError, match="1 embeddings have length zero"):
        metrics.retrieval_results(np.eye(3) * [1, 0, 1], np.eye(3))
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(2, 3\)"):
        metrics.retrieval_results(np.eye(3), np.ones((2, 3)))
    assert metrics.retrieval_results(np.ones((0, 3)), np.ones((0, 3)))["ecg_to_cmr/recall@1"].n == 0


def test_perfect_and_useless_predictions():
    label = np.tile([0.0, 1.0], 100)
    perfect = metrics.binary_results(label, label)
    assert (perfect["auroc"].value, perfect["auroc"].low, perfect["ap"].high) == (1, 1, 1)
    useless = metrics.binary_results(label, np.random.default_rng(0).random(200))["auroc"]
    assert useless.low < 0.5 < useless.high
