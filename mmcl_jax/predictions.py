"""Predictions of whole splits as arrays, and the rows of `metrics.csv` that follow from them.

Every model ends here: fine-tuned networks (`evaluate.py`), boosted trees (`tabular.py`) and probes
(`probe.py`), so that their results are computed and written alike.
"""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from mmcl_jax.data.cohort import Cohort
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.distributed import is_first
from mmcl_jax.objectives.supervised import Objective
from mmcl_jax.retry import retry
from mmcl_jax.stages import objective_kind
from mmcl_jax.statistics.bootstrap import Result, bootstrap, undefined
from mmcl_jax.statistics.metrics import (
    binary_results,
    binary_statistics,
    multiclass_results,
    regression_results,
)

COLUMNS = ("model", "target", "split", "metric", "value", "low", "high", "n", "seed")


def gather(
    cohort: Cohort,
    labels: Sequence[Label],
    parts: Mapping[str, tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n K"]]],
    *,
    target: str,
    seed: int,
) -> dict[str, np.ndarray]:
    """Predictions of some splits with the labels that they are compared to.

    Args:
        cohort: that the records are from.
        labels: what is predicted, of one kind.
        parts: rows and predictions by split; K outputs, one per label or per class (see
            `Label.outputs`): a probability, or a value in the unit of the label.
        target: name of the target that the labels form.
        seed: of the training.

    Returns:
        record, subject, split [N] text; names, kinds, units [K] text; label [N, K] in its own unit,
        NaN where missing; prediction [N, K]; seed; target. A multi-class label has one column per
        class, `name: class`, with 0 or 1 and a probability.
    """
    columns = [cohort.labels.index(label) for label in labels]
    outputs_of = [(label, name) for label in labels for name in label.outputs]
    found: dict[str, list[np.ndarray]] = {}
    for split, (rows, prediction) in parts.items():
        table = cohort.table(split)
        here = {
            "record": table["record"][rows],
            "subject": table["subject"][rows],
            "split": np.full(len(rows), split),
            "label": _per_output(table["labels"][rows][:, columns], labels),
            "prediction": np.asarray(prediction, np.float64),
        }
        for name, values in here.items():
            found.setdefault(name, []).append(values)
    return {
        **{name: np.concatenate(values) for name, values in found.items()},
        "names": np.array([name for _, name in outputs_of]),
        "kinds": np.array([label.kind for label, _ in outputs_of]),
        "units": np.array([label.unit for label, _ in outputs_of]),
        "seed": np.array(seed),
        "target": np.array(target),
    }


def validation_score(
    labels: Sequence[Label], truth: Float[np.ndarray, "n L"], prediction: Float[np.ndarray, "n K"]
) -> tuple[str, float]:
    """What settings are chosen by, as fine-tuning computes it: its name, and its value.

    The mean AUROC or r over the labels (or classes) for which it is defined; NaN without any.
    """
    kind = objective_kind(labels)
    known = {"labels": np.nan_to_num(truth), "label_valid": ~np.isnan(truth)}
    found = Objective(kind=kind).summarise({"prediction": prediction}, known)
    metric = "r" if kind == "regression" else "auroc"
    return f"val/{metric}", found.get(metric, float("nan"))


def metric_rows(
    model: str, labels: Sequence[Label], arrays: Mapping[str, np.ndarray], resamples: int
) -> Iterator[dict[str, Any]]:
    """Rows of `metrics.csv` for what `gather` returned.

    Args:
        model: name in the column `model`.
        labels: as for `gather`.
        resamples: of the bootstrap over subjects.
    """
    for split in dict.fromkeys(arrays["split"].tolist()):
        here = arrays["split"] == split
        truth, prediction = arrays["label"][here], arrays["prediction"][here]
        options = {"subject": arrays["subject"][here], "resamples": resamples}
        found: dict[str, dict[str, Result]] = {}
        if labels[0].kind == "multiclass":
            number = np.where(np.isnan(truth[:, 0]), np.nan, truth.argmax(axis=1))
            found[labels[0].name] = multiclass_results(number, prediction, **options)
        elif len(labels) > 1 and labels[0].kind == "binary":
            found[str(arrays["target"])] = _macro_auroc(truth, prediction, **options)
        for column, (name, kind) in enumerate(zip(arrays["names"], arrays["kinds"], strict=True)):
            compute = regression_results if kind == "regression" else binary_results
            results = compute(truth[:, column], prediction[:, column], **options)
            if kind == "multiclass":
                # A threshold of 0.5 is not how a class is chosen.
                results = {metric: results[metric] for metric in ("auroc", "ap")}
            found[str(name)] = results
        for target, results in found.items():
            yield from result_rows(model, target, split, results, int(arrays["seed"]))


def result_rows(
    model: str, target: str, split: str, results: Mapping[str, Result], seed: int
) -> Iterator[dict[str, Any]]:
    """Rows of `metrics.csv`; a metric that is undefined is printed with its reason."""
    for metric, result in results.items():
        if result.reason:
            print(f"  {target}, {split}: {metric} is undefined: {result.reason}", flush=True)
        named = {"model": model, "target": target, "split": split, "metric": metric}
        values = {k: v for k, v in dataclasses.asdict(result).items() if k != "reason"}
        yield {**named, **values, "seed": seed}


def to_csv(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as CSV; an undefined value is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                name: "" if isinstance(value, float) and not np.isfinite(value) else value
                for name, value in row.items()
            }
        )
    return text.getvalue()


def save(file: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file; a reader sees the old one or the whole new one.

    Of several processes, the first writes.

    Args:
        file: in a folder that is there.
    """
    if not is_first():
        return
    temporary = file.with_suffix(".part.npz")

    def write() -> None:
        np.savez_compressed(temporary, **arrays)
        temporary.replace(file)

    retry(write, f"writing {file}")


def _macro_auroc(
    truth: Float[np.ndarray, "N K"],
    prediction: Float[np.ndarray, "N K"],
    subject: Shaped[np.ndarray, " N"],
    resamples: int,
) -> dict[str, Result]:
    """Mean AUROC of several yes/no labels; resamples in which one is undefined are left out."""
    some = ~np.isnan(truth).all(axis=1)
    truth, prediction, subject = truth[some], prediction[some], subject[some]
    known = ~np.isnan(truth)
    each = [
        (
            rows := np.flatnonzero(known[:, k]),
            binary_statistics(truth[rows, k], prediction[rows, k]),
        )
        for k in range(truth.shape[1])
    ]

    def statistics(counts: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        aurocs = [one(counts[:, rows])["auroc"] for rows, one in each]
        return {"macro_auroc": np.mean(aurocs, axis=0)}

    if not known.any(axis=0).all():
        return undefined(["macro_auroc"], len(truth), "no record has one of the labels")
    reason = "one of the labels has one value only"
    return bootstrap(statistics, len(truth), subject, resamples, 0, reason)


def _per_output(
    values: Float[np.ndarray, "N L"], labels: Sequence[Label]
) -> Float[np.ndarray, "N K"]:
    """Labels as their predictions are: class numbers become one column of 0 and 1 per class."""
    if labels[0].kind != "multiclass":
        return values
    classes = np.arange(len(labels[0].classes))
    return np.where(np.isnan(values), np.nan, (values == classes[None, :]).astype(values.dtype))
