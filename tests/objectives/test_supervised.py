import warnings

import jax
import numpy as np
import pytest
import tiny
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from mmcl_jax.objectives import supervised


def test_label_smoothing_by_hand():
    logits = np.log(np.array([[0.7, 0.3], [0.2, 0.8]], np.float32))
    losses = supervised.cross_entropy(logits, np.array([0.0, 1.0]), 0.2)
    # True class 0.9, the other 0.1.
    expected = [-(0.9 * np.log(0.7) + 0.1 * np.log(0.3)), -(0.9 * np.log(0.8) + 0.1 * np.log(0.2))]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_two_class_softmax_and_sigmoid_agree():
    logit = np.linspace(-3, 3, 7, dtype=np.float32)
    labels = np.array([0, 1, 0, 1, 1, 0, 1], np.float32)
    pairs = np.stack([np.zeros_like(logit), logit], axis=1)
    softmax = supervised.cross_entropy(pairs, labels, 0.1)
    sigmoid = supervised.binary_cross_entropy(logit[:, None], labels[:, None], 0.1)[:, 0]
    np.testing.assert_allclose(softmax, sigmoid, rtol=1e-5)


def objective_loss(labels, label_valid, valid=None, **settings):
    objective, views = tiny.objective("supervised", kind="regression", **settings)
    rows = tiny.batch(len(labels))
    rows.update(labels=labels, label_valid=label_valid)
    rows["valid"] = np.ones(len(labels), np.float32) if valid is None else valid
    batch = tiny.clean(views, rows)
    variables = objective.init(jax.random.key(0), batch, train=False)
    prediction = objective.apply(variables, batch, method="predict")["prediction"]
    return float(objective.apply(variables, batch, train=False)[0]), np.asarray(prediction)


def test_missing_labels_are_left_out():
    labels = np.array([[1.0, 0.0], [2.0, 3.0], [0.5, -1.0]], np.float32)
    known = np.array([[1, 0], [1, 1], [0, 1]], np.float32)
    loss, prediction = objective_loss(labels, known)
    errors = np.square(prediction - labels)
    assert loss == pytest.approx(errors[known > 0].mean(), rel=1e-5)
    loss, _ = objective_loss(labels, known, missing="zero")
    assert loss == pytest.approx((errors * known).mean(), rel=1e-5)


def test_padding_rows_are_left_out():
    labels = np.array([[1.0, 0.0], [2.0, 3.0], [9.0, 9.0]], np.float32)
    loss, prediction = objective_loss(labels, np.ones_like(labels), np.array([1, 1, 0], np.float32))
    assert loss == pytest.approx(np.square(prediction - labels)[:2].mean(), rel=1e-5)


def summarise(kind, prediction, labels, known=None):
    objective, _ = tiny.objective("supervised", kind=kind)
    known = np.ones_like(labels) if known is None else known
    return objective.summarise({"prediction": prediction}, {"labels": labels, "label_valid": known})


def test_auroc_equals_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (50, 2)).astype(np.float32)
    scores = generator.random((50, 2))
    known = (generator.random((50, 2)) > 0.3).astype(np.float32)
    expected = np.mean(
        [roc_auc_score(labels[known[:, k] > 0, k], scores[known[:, k] > 0, k]) for k in (0, 1)]
    )
    found = summarise("multilabel", scores, labels, known)
    assert found["auroc"] == pytest.approx(expected)


def test_multiclass_auroc_is_one_versus_rest():
    generator = np.random.default_rng(1)
    classes = generator.integers(0, 3, (60, 1)).astype(np.float32)
    scores = generator.dirichlet(np.ones(3), 60)
    expected = roc_auc_score(classes[:, 0], scores, multi_class="ovr")
    assert summarise("multiclass", scores, classes)["auroc"] == pytest.approx(expected)


def test_multiclass_accuracies_equal_scikit_learn():
    generator = np.random.default_rng(2)
    classes = generator.integers(0, 3, (60, 1)).astype(np.float32)
    scores = generator.dirichlet(np.ones(4), 60)  # class 3 does not occur
    known = (np.arange(60) < 50).astype(np.float32)[:, None]
    found = summarise("multiclass", scores, classes, known)
    truth, predicted = classes[:50, 0], scores[:50].argmax(axis=1)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a predicted class that does not occur
        expected = balanced_accuracy_score(truth, predicted)
    assert found["balanced_accuracy"] == pytest.approx(expected)
    assert set(found) == {"auroc", "accuracy", "balanced_accuracy"}
    assert summarise("multiclass", scores, classes, np.zeros_like(known)) == {}


def test_multiclass_loss_and_probabilities():
    objective, views = tiny.objective("supervised", kind="multiclass", outputs=3)
    rows = tiny.batch(4)
    rows["labels"] = np.array([[0], [2], [1], [0]], np.float32)
    rows["label_valid"] = np.array([[1], [1], [1], [0]], np.float32)
    batch = tiny.clean(views, rows)

    @jax.jit
    def both(key):
        variables = objective.init(key, batch, train=False)
        loss, _ = objective.apply(variables, batch, train=False)
        return loss, objective.apply(variables, batch, method="predict")["prediction"]

    loss, probability = map(np.asarray, both(jax.random.key(0)))
    assert probability.shape == (4, 3)
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-5)
    assert loss == pytest.approx(-np.log(probability[[0, 1, 2], [0, 2, 1]]).mean(), rel=1e-5)


def test_r_is_the_mean_over_labels():
    generator = np.random.default_rng(2)
    labels = generator.standard_normal((40, 3))
    prediction = labels + generator.standard_normal((40, 3))
    known = np.ones((40, 3))
    known[:, 2] = 0
    expected = np.mean([np.corrcoef(labels[:, k], prediction[:, k])[0, 1] for k in (0, 1)])
    assert summarise("regression", prediction, labels, known)["r"] == pytest.approx(expected)


def test_a_constant_prediction_counts_as_no_correlation():
    labels = np.random.default_rng(3).standard_normal((40, 2))
    prediction = labels.copy()
    prediction[:, 1] = 0.5
    assert summarise("regression", prediction, labels)["r"] == pytest.approx(0.5)


def test_one_class_only_gives_no_auroc():
    assert summarise("binary", np.random.default_rng(0).random((9, 1)), np.zeros((9, 1))) == {}


def test_unknown_kind_is_an_error():
    objective, views = tiny.objective("supervised", kind="ordinal")
    with pytest.raises(ValueError, match="binary, multiclass, multilabel, regression"):
        objective.init(jax.random.key(0), tiny.clean(views, tiny.batch(2)), train=False)


def test_zero_filled_labels_also_enter_r():
    generator = np.random.default_rng(4)
    labels = generator.standard_normal((40, 1))
    prediction = labels + generator.standard_normal((40, 1))
    known = (np.arange(40) < 25).astype(float)[:, None]
    objective, _ = tiny.objective("supervised", kind="regression", missing="zero")
    arrays = {"labels": labels * known, "label_valid": known}
    expected = np.corrcoef((labels * known)[:, 0], (prediction * known)[:, 0])[0, 1]
    assert objective.summarise({"prediction": prediction}, arrays)["r"] == pytest.approx(expected)


def test_unknown_treatment_of_missing_labels_is_an_error():
    labels = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match="'zeros'; known: exclude, zero"):
        objective_loss(labels, labels, missing="zeros")
