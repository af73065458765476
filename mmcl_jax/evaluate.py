"""Evaluates the trained stages of a run on whole splits: `python -m mmcl_jax.evaluate RUN`.

Writes evaluate/metrics.csv, one row per result, and evaluate/predictions/<stage>.npz.
"""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from mmcl_jax.augment.views import Views
from mmcl_jax.bootstrap import Result
from mmcl_jax.data import pipeline
from mmcl_jax.data.labels import Label
from mmcl_jax.experiment import Experiment, Model
from mmcl_jax.metrics import (
    binary_results,
    multiclass_results,
    regression_results,
    retrieval_results,
)
from mmcl_jax.run_dir import write_atomically
from mmcl_jax.sharding import make_mesh, replicate, shard_batch, to_host
from mmcl_jax.stages import Stage
from mmcl_jax.state import make_predict_step

COLUMNS = ("model", "target", "split", "metric", "value", "low", "high", "n", "seed")
RETRIEVAL = "ECG-CMR"


def run(
    experiment: Experiment,
    *,
    splits: Sequence[str],
    crops: int,
    resamples: int,
    batch_size: int,
) -> dict[str, Any]:
    """Evaluates every stage that is done.

    Args:
        splits: such as `val` and `test`.
        crops: windows of a record whose predictions are averaged; 1 takes its first 5 s.
        resamples: of the bootstrap.
        batch_size: records at a time, over all devices.

    Returns:
        JSON summary.
    """
    if crops < 1 or batch_size < 1:
        raise ValueError(f"evaluate: crops is {crops}, batch_size {batch_size}; at least 1 each")
    folder = experiment.run.path / "evaluate"
    rows: list[dict[str, Any]] = []
    written: set[pathlib.Path] = set()
    for stage in experiment.training_stages():
        if experiment.run.done(stage.name) is None:
            continue
        if not stage.target and stage.config["objective"] != "clip":
            continue
        print(f"  {stage.name}", flush=True)
        model = experiment.load(stage)
        options = {"crops": crops, "batch_size": batch_size}
        if stage.target:
            arrays = predict_labels(experiment, stage, model, splits, **options)
            file = folder / "predictions" / f"{stage.name.replace('/', '__')}.npz"
            _save(file, arrays)
            written.add(file)
            rows += _label_rows(experiment.config["name"], model.labels, arrays, resamples)
        else:
            rows += _retrieval_rows(experiment, stage, model, splits, resamples, options)
    for file in set((folder / "predictions").glob("*.npz")) - written:
        # Of a stage that the configuration no longer has.
        file.unlink()
    write_atomically(folder / "metrics.csv", to_csv(rows))
    return {"results": len(rows)}


def predict_labels(
    experiment: Experiment,
    stage: Stage,
    model: Model,
    splits: Sequence[str],
    *,
    crops: int,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Predictions of a supervised stage for every record of `splits`.

    Returns:
        record, subject, split [N] text; names, kinds, units [K] text; label [N, K] in its own unit,
        NaN where missing; prediction [N, K], a probability or in the label's unit; seed; target.
        A multi-class label has one column per class, `name: class`, with 0 or 1 and a probability.
    """
    cohort = experiment.cohort
    columns = [cohort.labels.index(label) for label in model.labels]
    outputs_of = [(label, name) for label in model.labels for name in label.outputs]
    parts: dict[str, list[np.ndarray]] = {}
    for split in splits:
        rows = pipeline.select(cohort, split, fields=tuple(stage.config["fields"]))
        outputs = predict(experiment, stage, model, split, rows, crops=crops, batch_size=batch_size)
        prediction = np.array(outputs["prediction"], np.float64)
        for position, label in enumerate(model.labels):
            if label.kind == "regression":
                mean, deviation = cohort.statistics[label.name]
                prediction[:, position] = prediction[:, position] * deviation + mean
        table = cohort.table(split)
        found = {
            "record": table["record"][rows],
            "subject": table["subject"][rows],
            "split": np.full(len(rows), split),
            "label": _per_output(table["labels"][rows][:, columns], model.labels),
            "prediction": prediction,
        }
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    return {
        **{name: np.concatenate(values) for name, values in parts.items()},
        "names": np.array([name for _, name in outputs_of]),
        "kinds": np.array([label.kind for label, _ in outputs_of]),
        "units": np.array([label.unit for label, _ in outputs_of]),
        "seed": np.array(stage.seed),
        "target": np.array(stage.target),
    }


def predict(
    experiment: Experiment,
    stage: Stage,
    model: Model,
    split: str,
    rows: Int[np.ndarray, "N"],
    *,
    crops: int = 1,
    batch_size: int = 64,
    method: str = "predict",
) -> dict[str, Float[np.ndarray, "N ..."]]:
    """What `method` of the objective gives for each of `rows`, averaged over `crops` windows.

    The windows start at equal distances from the first sample to the last that leaves a window.
    """
    mesh = make_mesh()
    step = make_predict_step(model.objective, model.views, method)
    params, extra = replicate((model.params, model.extra), mesh)
    batches = pipeline.eval_batches(
        experiment.cohort,
        split,
        rows,
        fields=tuple(stage.config["fields"]),
        labels=(),
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    parts: list[dict[str, np.ndarray]] = []
    for batch in batches:
        on_device = shard_batch(batch, mesh)
        starts = window_starts(model.views, batch, crops)
        found = [step(params, extra, on_device, start) for start in starts]
        mean = jax.tree.map(lambda *values: sum(values) / len(values), *found)
        mean, valid = to_host((mean, on_device["valid"]))
        parts.append({name: values[valid > 0] for name, values in mean.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def window_starts(views: Views, batch: Mapping[str, np.ndarray], crops: int) -> list[int]:
    """First samples of the windows of a recording whose predictions are averaged."""
    if views.ecg is None or crops == 1:
        return [0]
    last = batch["ecg"].shape[-1] - views.ecg.length
    return [int(start) for start in np.linspace(0, last, crops)]


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


def _per_output(
    values: Float[np.ndarray, "N L"], labels: Sequence[Label]
) -> Float[np.ndarray, "N K"]:
    """Labels as their predictions are: class numbers become one column of 0 and 1 per class."""
    if labels[0].kind != "multiclass":
        return values
    classes = np.arange(len(labels[0].classes))
    return np.where(np.isnan(values), np.nan, (values == classes[None, :]).astype(values.dtype))


def _label_rows(
    model: str, labels: Sequence[Label], arrays: dict[str, np.ndarray], resamples: int
) -> Iterator[dict[str, Any]]:
    for split in dict.fromkeys(arrays["split"].tolist()):
        here = arrays["split"] == split
        truth, prediction = arrays["label"][here], arrays["prediction"][here]
        options = {"subject": arrays["subject"][here], "resamples": resamples}
        found: dict[str, dict[str, Result]] = {}
        if labels[0].kind == "multiclass":
            number = np.where(np.isnan(truth[:, 0]), np.nan, truth.argmax(axis=1))
            found[labels[0].name] = multiclass_results(number, prediction, **options)
        for column, (name, kind) in enumerate(zip(arrays["names"], arrays["kinds"], strict=True)):
            compute = regression_results if kind == "regression" else binary_results
            results = compute(truth[:, column], prediction[:, column], **options)
            if kind == "multiclass":
                # A threshold of 0.5 is not how a class is chosen.
                results = {metric: results[metric] for metric in ("auroc", "ap")}
            found[str(name)] = results
        for target, results in found.items():
            yield from _rows(model, target, split, results, int(arrays["seed"]))


def _retrieval_rows(
    experiment: Experiment,
    stage: Stage,
    model: Model,
    splits: Sequence[str],
    resamples: int,
    options: dict[str, int],
) -> Iterator[dict[str, Any]]:
    for split in splits:
        rows = pipeline.select(experiment.cohort, split, fields=tuple(stage.config["fields"]))
        outputs = predict(experiment, stage, model, split, rows, **options)
        results = retrieval_results(
            outputs["ecg_projection"],
            outputs["cmr_projection"],
            subject=experiment.cohort.table(split)["subject"][rows],
            resamples=resamples,
        )
        yield from _rows(experiment.config["name"], RETRIEVAL, split, results, stage.seed)


def _rows(
    model: str, target: str, split: str, results: dict[str, Result], seed: int
) -> Iterator[dict[str, Any]]:
    for metric, result in results.items():
        if result.reason:
            print(f"  {target}, {split}: {metric} is undefined: {result.reason}", flush=True)
        named = {"model": model, "target": target, "split": split, "metric": metric}
        values = {k: v for k, v in dataclasses.asdict(result).items() if k != "reason"}
        yield {**named, **values, "seed": seed}


def _save(file: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(file)


def _main() -> None:
    from mmcl_jax.command import run_verb

    run_verb("evaluate", __doc__)


if __name__ == "__main__":
    _main()
