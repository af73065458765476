"""Evaluates the trained stages of a run on whole splits: `python -m mmcl_jax.evaluate RUN`.

Writes evaluate/metrics.csv, one row per result, and evaluate/predictions/<stage>.npz.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from mmcl_jax import distributed, tabular
from mmcl_jax.augment.views import Views
from mmcl_jax.data import pipeline
from mmcl_jax.experiment import Experiment, Model
from mmcl_jax.predictions import gather, metric_rows, result_rows, save, to_csv
from mmcl_jax.run_dir import write_atomically
from mmcl_jax.sharding import make_mesh, replicate, shard_batch, to_host
from mmcl_jax.stages import Stage, target_labels
from mmcl_jax.state import make_predict_step
from mmcl_jax.statistics.metrics import retrieval_results

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
    sizes = experiment.cohort.splits
    if empty := [split for split in splits if sizes.get(split) == 0]:
        print(f"  no records in split {', '.join(empty)}: no results of it", flush=True)
        splits = [split for split in splits if split not in empty]
    if not splits:
        raise ValueError(
            f"evaluate: {experiment.cohort.path} has no records in {', '.join(empty)}; name a "
            "split that has some in stages.evaluate.splits"
        )
    folder = experiment.run.make("evaluate/predictions").parent
    rows: list[dict[str, Any]] = []
    written: set[pathlib.Path] = set()
    for stage in experiment.training_stages():
        if experiment.run.done(stage.name) is None:
            continue
        if not stage.target and stage.config["objective"] != "clip":
            continue
        print(f"  {stage.name}", flush=True)
        options = {"crops": crops, "batch_size": batch_size}
        if stage.target:
            if stage.config["objective"] == "tabular":
                arrays = tabular.predict_labels(experiment, stage, splits)
            else:
                model = experiment.load(stage)
                arrays = predict_labels(experiment, stage, model, splits, **options)
            file = folder / "predictions" / f"{stage.name.replace('/', '__')}.npz"
            save(file, arrays)
            written.add(file)
            labels = target_labels(stage, experiment.cohort)
            rows += metric_rows(experiment.config["name"], labels, arrays, resamples)
        else:
            rows += _retrieval_rows(experiment, stage, splits, resamples, options)
    if distributed.is_first():
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
    """Predictions of a supervised stage for every record of `splits`, see `predictions.gather`."""
    cohort = experiment.cohort
    parts = {}
    for split in splits:
        rows = pipeline.select(cohort, split, fields=tuple(stage.config["fields"]))
        outputs = predict(experiment, stage, model, split, rows, crops=crops, batch_size=batch_size)
        prediction = np.array(outputs["prediction"], np.float64)
        for position, label in enumerate(model.labels):
            if label.kind == "regression":
                mean, deviation = cohort.statistics[label.name]
                prediction[:, position] = prediction[:, position] * deviation + mean
        parts[split] = rows, prediction
    return gather(cohort, model.labels, parts, target=stage.target, seed=stage.seed)


def predict(
    experiment: Experiment,
    stage: Stage,
    model: Model,
    split: str,
    rows: Int[np.ndarray, " N"],
    *,
    crops: int = 1,
    batch_size: int = 64,
    method: str = "predict",
) -> dict[str, Float[np.ndarray, "N ..."]]:
    """What `method` of the objective gives for each of `rows`, averaged over `crops` windows.

    The windows start at equal distances from the first sample to the last that leaves a window.
    `batch_size` is rounded up to a multiple of the devices; nothing depends on it but the speed.
    """
    mesh = make_mesh()
    devices = mesh.devices.size
    step = make_predict_step(model.objective, model.views, method)
    params, extra = replicate((model.params, model.extra), mesh)
    batches = pipeline.eval_batches(
        experiment.cohort,
        split,
        rows,
        fields=tuple(stage.config["fields"]),
        labels=(),
        batch_size=-(-batch_size // devices) * devices,
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


def _retrieval_rows(
    experiment: Experiment,
    stage: Stage,
    splits: Sequence[str],
    resamples: int,
    options: dict[str, int],
) -> Iterator[dict[str, Any]]:
    model = experiment.load(stage)
    for split in splits:
        rows = pipeline.select(experiment.cohort, split, fields=tuple(stage.config["fields"]))
        outputs = predict(experiment, stage, model, split, rows, **options)
        results = retrieval_results(
            outputs["ecg_projection"],
            outputs["cmr_projection"],
            subject=experiment.cohort.table(split)["subject"][rows],
            resamples=resamples,
        )
        yield from result_rows(experiment.config["name"], RETRIEVAL, split, results, stage.seed)


def _main() -> None:
    from mmcl_jax.command import run_verb

    run_verb("evaluate", __doc__)


if __name__ == "__main__":
    _main()
