"""Similarity of the ECG and the CMR of a subject, place by place (paper III-C)."""

import json
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from mmcl_jax.data import pipeline
from mmcl_jax.evaluate import predict
from mmcl_jax.experiment import Experiment
from mmcl_jax.interpret.heart import heart_contrast
from mmcl_jax.predictions import save
from mmcl_jax.run_dir import write_atomically


def run(experiment: Experiment, *, stage: str, split: str, subjects: int) -> dict[str, Any]:
    """Similarities for the first `subjects` records of `split` that have both modalities.

    Of a stage that sees whole frames also `heart_contrast`, over all records of the split.

    Args:
        stage: name of a stage with objective `clip`.

    Returns:
        JSON summary.

    Raises:
        ValueError: there is no such stage, or it is not done.
    """
    found = {candidate.name: candidate for candidate in experiment.training_stages()}
    if stage not in found:
        raise ValueError(f"interpret looks at stage {stage!r}; the run has {', '.join(found)}")
    fields = tuple(found[stage].config["fields"])
    rows = pipeline.select(experiment.cohort, split, fields=fields)[:subjects]
    cmr, ecg = similarity(experiment, stage, split, rows)
    folder = experiment.run.make("interpret")
    save(folder / "cmr_similarity.npz", cmr)
    save(folder / "ecg_similarity.npz", ecg)
    summary = {"subjects": len(rows), "stage": stage, "split": split}
    if not found[stage].config["cmr_view"].get("crop_heart", True):
        summary["heart"] = heart_contrast(experiment, found[stage], split)
        write_atomically(folder / "heart.json", json.dumps(summary["heart"], indent=2) + "\n")
    return summary


def similarity(
    experiment: Experiment, stage: str, split: str, rows: Int[np.ndarray, " N"]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Similarities for rows of a split of the cohort that have both modalities.

    Args:
        stage: name of a finished stage with objective `clip`.

    Returns:
        Of the CMR: the frames that the encoder saw, `whole` ones with the `box` around the heart,
        and `similarity` [N, h, w] of the ECG with each place. Of the ECG: the window that the
        encoder saw, and `similarity` [N, 12, n] of the CMR with each patch. `record` in both.
    """
    (found,) = (s for s in experiment.training_stages() if s.name == stage)
    model, cohort = experiment.load(found), experiment.cohort
    alike = predict(
        experiment,
        found,
        model,
        split,
        rows,
        batch_size=_round_up(len(rows), jax.device_count()),
        method="local_similarity",
    )
    records = [cohort.source(split)[int(row)] for row in rows]
    frames = np.stack([record["cmr"] for record in records]).astype(np.float32) / 255
    boxes = np.stack([record["cmr_box"] for record in records])
    ecg = np.stack([record["ecg"] for record in records])
    names = cohort.table(split)["record"][rows]
    of_cmr = {
        "frames": np.asarray(jax.vmap(model.views.cmr.clean)(frames, boxes)),
        "whole": frames,
        "box": boxes,
        "similarity": alike["cmr"],
        "record": names,
    }
    of_ecg = {
        "ecg": np.asarray(jax.vmap(model.views.ecg.clean)(ecg)),
        "similarity": alike["ecg"].reshape(len(rows), ecg.shape[1], -1),
        "record": names,
    }
    return of_cmr, of_ecg


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
