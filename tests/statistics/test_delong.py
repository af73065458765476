"""DeLong's test against a published example and against brute force over pairs of records."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from mmcl_jax.statistics import delong

# 43 patients with ovarian cancer, the example of DeLong et al. (1988) as the manual of SAS/STAT
# prints it (PROC LOGISTIC, "Comparing Receiver Operating Characteristic Curves"): albumin, total
# protein, K-G score, and 1 for those who survived two months after the operation.
PATIENTS = """
3.0 5.8 10 0   3.2 6.3  5 1   3.9 6.8  3 1   2.8 4.8  6 0   3.2 5.8  3 1   0.9 4.0  5 0
2.5 5.7  8 0   1.6 5.6  5 1   3.8 5.7  5 1   3.7 6.7  6 1   3.2 5.4  4 1   3.8 6.6  6 1
4.1 6.6  5 1   3.6 5.7  5 1   4.3 7.0  4 1   3.6 6.7  4 0   2.3 4.4  6 1   4.2 7.6  4 0
4.0 6.6  6 0   3.5 5.8  6 1   3.8 6.8  7 1   3.0 4.7  8 0   4.5 7.4  5 1   3.7 7.4  5 1
3.1 6.6  6 1   4.1 8.2  6 1   4.3 7.0  5 1   4.3 6.5  4 1   3.2 5.1  5 1   2.6 4.7  6 1
3.3 6.8  6 0   1.7 4.0  7 0   3.7 6.1  5 1   3.3 6.3  7 1   4.2 7.7  6 1   3.5 6.2  5 1
2.9 5.7  9 0   2.1 4.8  7 1   2.8 6.2  8 0   4.0 7.0  7 1   3.3 5.7  6 1   3.7 6.9  5 1
3.6 6.6  5 1
"""


def _patients():
    albumin, protein, score, survived = np.array(PATIENTS.split(), float).reshape(-1, 4).T
    return 1 - survived, np.stack([-albumin, score, -protein])


def test_published_areas_errors_and_contrasts():
    found = delong.areas(*_patients())
    assert (found.positives, found.negatives) == (12, 31)
    np.testing.assert_allclose(found.auroc, [0.7366, 0.7258, 0.6478], atol=5e-5)
    errors = np.sqrt(np.diag(found.covariance))
    np.testing.assert_allclose(errors, [0.0927, 0.1028, 0.1000], atol=5e-5)
    albumin = delong.compare(found, [1, -1, 0])
    expected = (0.0108, -0.1761, 0.1976, 0.9102)
    np.testing.assert_allclose(
        (albumin.value, albumin.low, albumin.high, albumin.p), expected, atol=5e-5
    )
    protein = delong.compare(found, [0, -1, 1])
    expected = (-0.0780, -0.2830, 0.1271, 0.4561)
    np.testing.assert_allclose(
        (protein.value, protein.low, protein.high, protein.p), expected, atol=5e-5
    )
    # All three at once: chi-square of 2 degrees of freedom.
    contrast = np.array([[1, -1, 0], [0, -1, 1]])
    value = contrast @ found.auroc
    spread = contrast @ found.covariance @ contrast.T
    chi2 = value @ np.linalg.solve(spread, value)
    assert chi2 == pytest.approx(2.5340, abs=5e-5)
    assert scipy.stats.chi2.sf(chi2, 2) == pytest.approx(0.2817, abs=5e-5)


@pytest.mark.parametrize("levels", [None, 5], ids=["distinct", "ties"])
def test_areas_equal_brute_force_over_placements(levels):
    generator = np.random.default_rng(0)
    label = (generator.random(70) < 0.3).astype(float)
    score = label + generator.normal(size=(4, 70))
    if levels:
        score = np.round(score * levels / 3)
    found = delong.areas(label, score)
    win = np.array(
        [
            [[(x > y) + (x == y) / 2 for y in row[label == 0]] for x in row[label == 1]]
            for row in score
        ]
    )
    m, n = win.shape[1:]
    mean = win.mean(axis=(1, 2))
    expected = np.zeros((4, 4))
    for a in range(4):
        for b in range(4):
            of_positives = (win[a].mean(1) - mean[a]) @ (win[b].mean(1) - mean[b]) / (m - 1)
            of_negatives = (win[a].mean(0) - mean[a]) @ (win[b].mean(0) - mean[b]) / (n - 1)
            expected[a, b] = of_positives / m + of_negatives / n
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-12, atol=1e-15)
    areas = [sklearn.metrics.roc_auc_score(label, row) for row in score]
    np.testing.assert_allclose(found.auroc, areas, rtol=0, atol=1e-12)


def test_means_over_seeds_are_compared_as_one_contrast():
    generator = np.random.default_rng(1)
    label = (generator.random(200) < 0.4).astype(float)
    score = label + generator.normal(size=(5, 200))
    found = delong.areas(label, score)
    weights = np.array([1 / 3, 1 / 3, 1 / 3, -1 / 2, -1 / 2])
    result = delong.compare(found, weights)
    assert result.value == pytest.approx(found.auroc[:3].mean() - found.auroc[3:].mean())
    deviation = np.sqrt(weights @ found.covariance @ weights)
    assert result.p == pytest.approx(2 * scipy.stats.norm.sf(abs(result.value) / deviation))
    assert result.high - result.low == pytest.approx(2 * 1.959964 * deviation)
    assert result.n == 200


def test_the_level_holds_where_models_are_equally_good():
    generator = np.random.default_rng(2)
    p = []
    for _ in range(400):
        label = np.repeat([0.0, 1.0], [80, 40])
        shared = label + generator.normal(size=120)
        score = shared + 0.7 * generator.normal(size=(2, 120))
        p.append(delong.compare(delong.areas(label, score), [1, -1]).p)
    # 5 % of 400 give 20; the binomial standard deviation is 4.4.
    assert 7 <= np.sum(np.array(p) < 0.05) <= 33


def test_equal_rankings_do_not_differ():
    label = np.array([0, 0, 1, 1, 1.0])
    score = np.array([0.1, 0.4, 0.3, 0.8, 0.9])
    same = delong.compare(delong.areas(label, np.stack([score, 2 * score])), [1, -1])
    assert (same.value, same.p) == (0, 1)
    apart = np.stack([label, 1 - label])
    assert delong.compare(delong.areas(label, apart), [1, -1]).p == 0


@pytest.mark.parametrize(
    ("label", "score", "match"),
    [
        ([0, 1, 1, 2], np.ones((1, 4)), "must be 0 or 1"),
        ([0, 1, 1, 1], np.ones((1, 4)), "two records of each class, found 3 and 1"),
        ([0, 0, 1, 1], np.ones((1, 3)), r"scores must be \[M, 4\], found \(1, 3\)"),
        ([0, 0, 1, 1], np.array([[1, np.nan, 2, 3]]), "1 of 4 records"),
    ],
)
def test_bad_input_is_named(label, score, match):
    with pytest.raises(ValueError, match=match):
        delong.areas(np.array(label), score)
