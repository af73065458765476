"""Test metrics with 95 % bootstrap intervals, on the host, on whole-split arrays.

Each metric is a function of how often each record counts (`bootstrap.py`), written once for the
reported value and for its resamples.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from mmcl_jax.statistics.bootstrap import Result, Statistics, bootstrap, undefined

BINARY = ("auroc", "ap", "f1", "balanced_accuracy", "accuracy")
MULTICLASS = ("macro_auroc", "balanced_accuracy", "accuracy")
REGRESSION = ("r", "r2", "mae")
DIRECTIONS = ("ecg_to_cmr", "cmr_to_ecg")

_BLOCK = 1_000_000  # similarities held at once: 8 MB
_TIE = 1e-9  # cosine similarities closer than this are equal


def binary_results(
    label: Float[np.ndarray, " N"],
    probability: Float[np.ndarray, " N"],
    *,
    subject: Shaped[np.ndarray, " N"] | None = None,
    threshold: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Result]:
    """AUROC, average precision, F1, balanced accuracy and accuracy of a binary label.

    Args:
        label: 0 or 1; NaN where missing, which leaves the record out.
        probability: of label 1, in [0, 1].
        subject: the person of each record; a person's records are drawn together. None: one each.
        threshold: at or above it a record counts as predicted positive (F1, accuracies).
        resamples: bootstrap resamples; 0 leaves the interval NaN.
        seed: of the bootstrap.

    Raises:
        ValueError: unequal lengths, a label other than 0, 1 or NaN, a probability outside [0, 1].
    """
    label, probability, subject = _known(label, probability, subject)
    if not np.isin(label, (0, 1)).all():
        found = sorted(set(label.tolist()) - {0.0, 1.0})[:5]
        raise ValueError(f"binary labels must be 0, 1 or NaN, found {found}")
    _check_probabilities(probability)
    reason = _unusable(label, probability)
    if reason:
        return undefined(BINARY, len(label), reason)
    positives = int(label.sum())
    if positives in (0, len(label)):
        reason = f"all {len(label)} labels are {int(label[0])}"
    statistics = binary_statistics(label, probability, threshold)
    return bootstrap(statistics, len(label), subject, resamples, seed, reason)


def multiclass_results(
    label: Float[np.ndarray, " N"],
    probability: Float[np.ndarray, "N C"],
    *,
    subject: Shaped[np.ndarray, " N"] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Result]:
    """Macro AUROC, balanced accuracy and accuracy of a multi-class label.

    Macro AUROC is the mean over the classes that occur of one class against the others. Balanced
    accuracy is the mean over the same classes of the share that is recognised; the predicted class
    is the most probable one. In the bootstrap macro AUROC leaves out resamples that lack a class.

    Args:
        label: number of the class, from 0; NaN where missing, which leaves the record out.
        probability: of each class.
        subject, resamples, seed: see `binary_results`.

    Raises:
        ValueError: unequal lengths, a label that is no class, a probability outside [0, 1].
    """
    probability = np.asarray(probability, np.float64)
    if probability.ndim != 2:
        raise ValueError(f"probabilities must be an [N, C] array, found {probability.shape}")
    label, row, subject = _known(label, np.arange(len(probability)), subject)
    probability, count = probability[row.astype(int)], probability.shape[1]
    if not np.isin(label, np.arange(count)).all():
        found = sorted(set(label.tolist()) - set(range(count)))[:5]
        raise ValueError(f"multi-class labels must be 0 to {count - 1} or NaN, found {found}")
    _check_probabilities(probability)
    if reason := _unusable(label, probability):
        return undefined(MULTICLASS, len(label), reason)
    present = np.unique(label).astype(int)
    if len(present) < 2:
        reason = f"all {len(label)} labels are class {present[0]}"
    statistics = _multiclass_statistics(label, probability, present)
    return bootstrap(statistics, len(label), subject, resamples, seed, reason)


def regression_results(
    label: Float[np.ndarray, " N"],
    prediction: Float[np.ndarray, " N"],
    *,
    subject: Shaped[np.ndarray, " N"] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Result]:
    """Pearson's r, the coefficient of determination R2 and the mean absolute error of one label.

    The mean absolute error has the unit of `label`. A missing label (NaN) leaves the record out;
    the other arguments are those of `binary_results`.

    Raises:
        ValueError: unequal lengths.
    """
    label, prediction, subject = _known(label, prediction, subject)
    reason = _unusable(label, prediction)
    if reason:
        return undefined(REGRESSION, len(label), reason)
    if np.ptp(label) == 0:
        reason = f"all {len(label)} labels are {label[0]:.6g}"
    elif np.ptp(prediction) == 0:
        reason = f"all {len(label)} predictions are {prediction[0]:.6g}"
    statistics = regression_statistics(label, prediction)
    return bootstrap(statistics, len(label), subject, resamples, seed, reason)


def retrieval_results(
    ecg: Float[np.ndarray, "N K"],
    cmr: Float[np.ndarray, "N K"],
    *,
    subject: Shaped[np.ndarray, " N"] | None = None,
    k: Sequence[int] = (1, 5, 10),
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Result]:
    """Recall@k and median rank of the paired record by cosine similarity, in both directions.

    Row i of `ecg` and row i of `cmr` are a pair. The keys are `ecg_to_cmr/recall@1` (the query is
    the ECG, the gallery all N CMR embeddings), ..., `cmr_to_ecg/median_rank`. Rank 1 is the best; a
    tie counts against the model, so a collapsed encoder does not look perfect. By chance recall@k
    is k / N.

    The bootstrap resamples the queries and keeps the gallery of all N records fixed, because
    drawing the gallery with replacement would put copies of the right answer into it.

    Raises:
        ValueError: shapes that differ, an embedding of length zero or that is not finite.
    """
    ecg, cmr = np.asarray(ecg, np.float64), np.asarray(cmr, np.float64)
    if ecg.ndim != 2 or ecg.shape != cmr.shape:
        raise ValueError(
            f"embeddings must be two equal [N, K] arrays, found {ecg.shape} and {cmr.shape}"
        )
    names = [f"recall@{value}" for value in k] + ["median_rank"]
    if not len(ecg):
        names = [f"{direction}/{name}" for direction in DIRECTIONS for name in names]
        return undefined(names, 0, "no pair of ECG and CMR")
    results = {}
    pairs = ((ecg, cmr), (cmr, ecg))
    for direction, (query, gallery) in zip(DIRECTIONS, pairs, strict=True):
        statistics = _retrieval_statistics(match_ranks(query, gallery), k)
        found = bootstrap(statistics, len(ecg), subject, resamples, seed, "")
        results |= {f"{direction}/{name}": result for name, result in found.items()}
    return results


def match_ranks(
    query: Float[np.ndarray, "N K"], gallery: Float[np.ndarray, "N K"]
) -> Int[np.ndarray, " N"]:
    """Rank (1 = best) of gallery row i for query row i, by cosine similarity."""
    query, gallery = _unit_length(query), _unit_length(gallery)
    rows = max(1, _BLOCK // len(gallery))
    ranks = []
    for start in range(0, len(query), rows):
        similarity = query[start : start + rows] @ gallery.T
        here = np.arange(len(similarity))
        own = similarity[here, start + here]
        ranks.append((similarity >= own[:, None] - _TIE).sum(axis=1))
    return np.concatenate(ranks)


def binary_statistics(
    label: Float[np.ndarray, " N"], probability: Float[np.ndarray, " N"], threshold: float = 0.5
) -> Statistics:
    """The metrics of `binary_results` as functions of counts; for labels that are all known."""
    order = np.argsort(probability, kind="stable")
    ascending = probability[order]
    # Records of equal probability form one step of the ROC and precision-recall curves.
    step = np.flatnonzero(np.concatenate([[True], np.diff(ascending) > 0]))
    positive = label[order]
    predicted = probability >= threshold
    cells = np.stack(
        [label * predicted, label * ~predicted, (1 - label) * predicted, (1 - label) * ~predicted],
        axis=1,
    )

    def statistics(counts: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        weight = counts[:, order]
        every = np.add.reduceat(weight, step, axis=1)
        true = np.add.reduceat(weight * positive[None, :], step, axis=1)
        false = every - true
        # The Mann-Whitney form: a positive wins over the negatives below it and halves a tie.
        wins = (true * (np.cumsum(false, axis=1) - false / 2)).sum(axis=1)
        true_above = np.cumsum(true[:, ::-1], axis=1)[:, ::-1]
        every_above = np.cumsum(every[:, ::-1], axis=1)[:, ::-1]
        precision = true_above / np.maximum(every_above, 1)
        hit, miss, alarm, rejection = (counts @ cells).T
        positives, negatives = hit + miss, alarm + rejection
        both = _ratio(hit, positives) + _ratio(rejection, negatives)
        return {
            "auroc": _ratio(wins, positives * negatives),
            "ap": _ratio((true * precision).sum(axis=1), positives),
            # Without a positive recall is undefined, and F1 with it.
            "f1": _ratio(2 * hit, np.where(positives > 0, 2 * hit + miss + alarm, 0)),
            "balanced_accuracy": both / 2,
            "accuracy": _ratio(hit + rejection, positives + negatives),
        }

    return statistics


def regression_statistics(
    label: Float[np.ndarray, " N"], prediction: Float[np.ndarray, " N"]
) -> Statistics:
    """The metrics of `regression_results` as functions of counts; for labels that are all known."""
    # Centred and scaled, so that sums of squares lose no digits to a large mean.
    scale = label.std() or 1.0
    x = (label - label.mean()) / scale
    y = (prediction - prediction.mean()) / (prediction.std() or 1.0)
    error = (label - prediction) / scale
    columns = np.stack(
        [np.ones_like(x), x, y, x * x, y * y, x * y, error**2, np.abs(error)], axis=1
    )

    def statistics(counts: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        n, sx, sy, sxx, syy, sxy, squared, absolute = (counts @ columns).T
        xx, yy, xy = sxx - sx**2 / n, syy - sy**2 / n, sxy - sx * sy / n
        # A resample of one value only leaves rounding noise of about n * 1e-16.
        xx, yy = np.where(xx > 1e-12 * n, xx, 0), np.where(yy > 1e-12 * n, yy, 0)
        return {
            "r": _ratio(xy, np.sqrt(xx * yy)),
            "r2": 1 - _ratio(squared, xx),
            "mae": scale * absolute / n,
        }

    return statistics


def _multiclass_statistics(
    label: Float[np.ndarray, " N"],
    probability: Float[np.ndarray, "N C"],
    present: Int[np.ndarray, " K"],
) -> Statistics:
    members = (label[:, None] == present[None, :]).astype(np.float64)
    hits = members * (probability.argmax(axis=1)[:, None] == present[None, :])
    one_vs_rest = [
        binary_statistics(members[:, k], probability[:, number]) for k, number in enumerate(present)
    ]

    def statistics(counts: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        total, right = counts @ members, counts @ hits
        recall = np.divide(right, total, out=np.zeros_like(right), where=total > 0)
        aurocs = [one(counts)["auroc"] for one in one_vs_rest]
        return {
            "macro_auroc": np.mean(aurocs, axis=0),
            "balanced_accuracy": recall.sum(axis=1) / (total > 0).sum(axis=1),
            "accuracy": right.sum(axis=1) / total.sum(axis=1),
        }

    return statistics


def _retrieval_statistics(ranks: Int[np.ndarray, " N"], k: Sequence[int]) -> Statistics:
    order = np.argsort(ranks, kind="stable")
    ascending = ranks[order].astype(np.float64)
    hits = np.stack([ranks <= value for value in k], axis=1).astype(np.float64)

    def statistics(counts: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        total = counts.sum(axis=1)
        recall = (counts @ hits) / total[:, None]
        reached = np.cumsum(counts[:, order], axis=1)
        # The median of an even number of draws is the mean of the two in the middle.
        lower = (reached <= ((total - 1) // 2)[:, None]).sum(axis=1)
        upper = (reached <= (total // 2)[:, None]).sum(axis=1)
        named = {f"recall@{value}": recall[:, i] for i, value in enumerate(k)}
        return named | {"median_rank": (ascending[lower] + ascending[upper]) / 2}

    return statistics


def _ratio(
    numerator: Float[np.ndarray, " R"], denominator: Float[np.ndarray, " R"]
) -> Float[np.ndarray, " R"]:
    """NaN where the denominator is 0."""
    return np.divide(
        numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0
    )


def _known(label, prediction, subject):
    label, prediction = np.asarray(label, np.float64), np.asarray(prediction, np.float64)
    if label.ndim != 1 or label.shape != prediction.shape:
        raise ValueError(
            f"labels and predictions must be two equal [N] arrays, found {label.shape} and "
            f"{prediction.shape}"
        )
    if subject is not None and np.shape(subject) != label.shape:
        raise ValueError(f"subject must have shape {label.shape}, found {np.shape(subject)}")
    known = ~np.isnan(label)
    return label[known], prediction[known], None if subject is None else np.asarray(subject)[known]


def _check_probabilities(probability: Float[np.ndarray, "..."]) -> None:
    if ((probability < 0) | (probability > 1)).any():
        low, high = np.nanmin(probability), np.nanmax(probability)
        raise ValueError(
            f"probabilities must lie in [0, 1], found {low:.4g} to {high:.4g}; "
            "apply the sigmoid first"
        )


def _unusable(label: Float[np.ndarray, " N"], prediction: Float[np.ndarray, " N"]) -> str:
    if not len(label):
        return "no record has this label"
    bad = int((~np.isfinite(prediction.reshape(len(label), -1)).all(axis=1)).sum())
    return f"{bad} of {len(prediction)} predictions are not finite" if bad else ""


def _unit_length(embedding: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N K"]:
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(length[:, 0]) | (length[:, 0] == 0))
    if bad.size:
        raise ValueError(
            f"{bad.size} embeddings have length zero or are not finite, first row {bad[0]}; cosine "
            "similarity is undefined for them"
        )
    return embedding / length
