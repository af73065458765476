"""Which regions of one modality resemble the other: `python -m mmcl_jax.interpret RUN`.

The passive module of paper III-C on a contrastive stage: cosine similarity of the ECG of a subject
with each place of the CMR feature map, and of its CMR with each ECG token. Writes
interpret/cmr_similarity.npz and interpret/ecg_similarity.npz; the report draws them.
"""

import pathlib
from typing import Any

import jax
import numpy as np

from mmcl_jax.data import pipeline
from mmcl_jax.evaluate import predict
from mmcl_jax.experiment import Experiment


def run(experiment: Experiment, *, stage: str, split: str, subjects: int) -> dict[str, Any]:
    """Similarities for the first `subjects` records of `split` that have both modalities.

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
    model = experiment.load(found[stage])
    cohort = experiment.cohort
    rows = pipeline.select(cohort, split, fields=tuple(found[stage].config["fields"]))[:subjects]
    similarity = predict(
        experiment,
        found[stage],
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
    clean = jax.vmap(model.views.cmr.clean)(frames, boxes)
    window = jax.vmap(model.views.ecg.clean)(ecg)
    names = cohort.table(split)["record"][rows]
    folder = experiment.run.path / "interpret"
    folder.mkdir(parents=True, exist_ok=True)
    _save(
        folder / "cmr_similarity.npz",
        frames=np.asarray(clean),
        whole=frames,
        box=boxes,
        similarity=similarity["cmr"],
        record=names,
    )
    _save(
        folder / "ecg_similarity.npz",
        ecg=np.asarray(window),
        similarity=similarity["ecg"].reshape(len(rows), ecg.shape[1], -1),
        record=names,
    )
    return {"subjects": len(rows), "stage": stage, "split": split}


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _save(file: pathlib.Path, **arrays: np.ndarray) -> None:
    temporary = file.with_suffix(".part.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(file)


def _main() -> None:
    from mmcl_jax.command import run_verb

    run_verb("interpret", __doc__)


if __name__ == "__main__":
    _main()
