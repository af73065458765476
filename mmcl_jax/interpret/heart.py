"""Are the maps over CMR frames higher over the heart than beside it?

The cosine of an ECG with a place has two parts: what all ECGs share, which says nothing of the
subject and can be most of it, and what sets the ECG of the subject apart from those of others.

Only stages that see whole frames (`crop_heart=False`) can be asked: a crop to the heart has no
beside. The box around the heart says where it is; the encoder of such a stage never sees the box.
"""

import dataclasses

import jax
import numpy as np
from jaxtyping import Float, Int

from mmcl_jax.data import pipeline
from mmcl_jax.evaluate import predict
from mmcl_jax.experiment import Experiment
from mmcl_jax.stages import Stage
from mmcl_jax.state import initialise


def heart_contrast(
    experiment: Experiment, stage: Stage, split: str
) -> dict[str, dict[str, float | None]]:
    """Mean similarity over the heart and beside it, of all paired records of a split.

    Args:
        stage: a finished stage with objective `clip` whose view is the whole frame.

    Returns:
        For 'trained', and for the same towers with fresh random parameters ('untrained'): means
        over subjects of the mean cosine 'inside' and 'outside' the box, their 'ratio', and the
        share of subjects with a 'higher_inside'; with the number of subjects 'n'. The same under
        'trained, own less others' and 'untrained, own less others' for the cosine with the ECG of
        the subject, less the mean cosine with the ECGs of all other subjects.

    Raises:
        ValueError: the split has fewer than two paired records.
    """
    trained = experiment.load(stage)
    cohort, fields = experiment.cohort, tuple(stage.config["fields"])
    rows = pipeline.select(cohort, split, fields=fields)
    (example,) = pipeline.eval_batches(cohort, split, rows[:2], fields=fields, batch_size=2)
    if len(rows) < 2:
        raise ValueError(f"split {split!r} has {len(rows)} paired records; expected 2 or more")
    key = jax.random.key(stage.seed)
    params, extra = initialise(trained.objective, trained.views, example, key)
    untrained = dataclasses.replace(trained, params=params, extra=extra)
    boxes, sizes = [], []
    for row in rows:
        record = cohort.source(split)[int(row)]
        boxes.append(record["cmr_box"])
        sizes.append(record["cmr"].shape[:2])
    found = {}
    for name, model in (("trained", trained), ("untrained", untrained)):
        parts = predict(experiment, stage, model, split, rows, batch_size=64, method="places")
        own, other = similarity_to_own_and_others(parts["cmr"], parts["ecg"])
        for suffix, maps in (("", own), (", own less others", own - other)):
            in_and_out = inside_and_outside(maps, np.array(boxes), np.array(sizes))
            found[name + suffix] = contrast(*in_and_out)
    return found


def similarity_to_own_and_others(
    places: Float[np.ndarray, "N h w K"], ecg: Float[np.ndarray, "N K"]
) -> tuple[Float[np.ndarray, "N h w"], Float[np.ndarray, "N h w"]]:
    """Cosine of each place with the ECG of its subject, and the mean over all other ECGs.

    Args:
        places, ecg: of length 1.
    """
    own = np.einsum("nhwk,nk->nhw", places, ecg)
    to_all = np.einsum("nhwk,k->nhw", places, ecg.sum(axis=0, dtype=np.float64))
    return own, (to_all - own) / (len(ecg) - 1)


def inside_and_outside(
    similarity: Float[np.ndarray, "N h w"],
    box: Int[np.ndarray, "N 4"],
    size: Int[np.ndarray, "N 2"],
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Means of each map over a box and over the rest; a cell counts by its area in either.

    Args:
        similarity: maps whose cells divide the frame evenly.
        box: top, left, height, width in pixels of the frame.
        size: height and width of the frame in pixels.
    """
    height, width = similarity.shape[1:]
    first, last = box[:, :2] / size, (box[:, :2] + box[:, 2:]) / size
    inside = np.stack(
        [
            np.outer(_overlap(height, top, bottom), _overlap(width, left, right))
            for (top, left), (bottom, right) in zip(first, last, strict=True)
        ]
    )
    of_heart, of_rest = (
        (similarity * weight).sum((1, 2)) / weight.sum((1, 2)) for weight in (inside, 1 - inside)
    )
    return of_heart, of_rest


def _overlap(cells: int, start: float, stop: float) -> Float[np.ndarray, " cells"]:
    """Share of each of `cells` equal parts of [0, 1] that lies between `start` and `stop`."""
    edges = np.arange(cells + 1) / cells
    covered = np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)
    return np.clip(covered, 0, None) * cells


def contrast(
    inside: Float[np.ndarray, " N"], outside: Float[np.ndarray, " N"]
) -> dict[str, float | None]:
    """Of the means of each subject; see `heart_contrast`.

    The ratio is None where the mean outside is not above 0 by twice its standard error.
    """
    error = outside.std(ddof=1) / np.sqrt(len(outside))
    ratio = inside.mean() / outside.mean() if outside.mean() > 2 * error else None
    return {
        "inside": float(inside.mean()),
        "outside": float(outside.mean()),
        "ratio": None if ratio is None else float(ratio),
        "higher_inside": float((inside > outside).mean()),
        "n": len(inside),
    }
