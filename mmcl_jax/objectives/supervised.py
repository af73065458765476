"""Supervised training of an encoder with a head: fine-tuning and supervised baselines (paper IV-C).

Kinds: `binary` (one label, two classes), `multiclass` (one label holding a class number),
`multilabel` (several yes/no labels), `regression` (several z-scored labels).
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mmcl_jax.objectives.base import Batch
from mmcl_jax.objectives.base import Objective as Base

KINDS = ("binary", "multiclass", "multilabel", "regression")


def cross_entropy(
    logits: Float[Array, "B C"], classes: Float[Array, " B"], smoothing: float
) -> Float[Array, " B"]:
    """Softmax cross-entropy; every class, the true one too, gets smoothing / C of the target."""
    count = logits.shape[-1]
    target = jax.nn.one_hot(classes.astype(jnp.int32), count) * (1 - smoothing) + smoothing / count
    return -jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def binary_cross_entropy(
    logits: Float[Array, "B K"], labels: Float[Array, "B K"], smoothing: float
) -> Float[Array, "B K"]:
    """Sigmoid cross-entropy per label; smoothing / 2 of the target goes to the other side."""
    target = labels * (1 - smoothing) + smoothing / 2
    return -(target * jax.nn.log_sigmoid(logits) + (1 - target) * jax.nn.log_sigmoid(-logits))


class Objective(Base):
    """One encoder and a head.

    Attributes:
        ecg_encoder or cmr_encoder: exactly one.
        head: as many outputs as labels; for `binary` two, for `multiclass` one per class.
        kind: see the module.
        label_smoothing: epsilon, for classification.
        missing: `exclude` leaves missing labels out; `zero` fills label and prediction with 0
            in the loss and in r, as the code behind the published weights does.
    """

    ecg_encoder: nn.Module | None = None
    cmr_encoder: nn.Module | None = None
    head: nn.Module = None
    kind: str = "binary"
    label_smoothing: float = 0.0
    missing: str = "exclude"

    def __call__(self, batch: Batch, *, train: bool) -> tuple[Float[Array, ""], dict[str, Array]]:
        smoothing = self.label_smoothing if train else 0.0
        return self._loss(self._logits(batch, train), batch, smoothing), {}

    def evaluate(self, batch: Batch) -> tuple[Float[Array, ""], dict[str, Array], dict[str, Array]]:
        logits = self._logits(batch, train=False)
        return self._loss(logits, batch, smoothing=0.0), {}, self._prediction(logits)

    def weight(self, batch: Batch) -> Float[Array, ""]:
        """Labels that the loss is a mean over: the known ones, with missing='zero' all."""
        known, valid = batch["label_valid"], batch["valid"][:, None]
        return jnp.sum((jnp.ones_like(known) if self.missing == "zero" else known) * valid)

    def predict(self, batch: Batch) -> dict[str, Array]:
        """`prediction`: probability of each label, of each class, or the z-scored value."""
        return self._prediction(self._logits(batch, train=False))

    def summarise(
        self, outputs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """Mean `r` or `auroc` over the labels, without those that have one value only.

        For `multiclass`, `auroc` is the mean over the classes that occur of one against the others,
        and the metrics of the most probable class are there too.
        """
        prediction, truth, known = (
            outputs["prediction"],
            labels["labels"],
            labels["label_valid"] > 0,
        )
        if self.kind == "regression":
            if self.missing == "zero":
                prediction, known = prediction * known, np.ones_like(known)
            values = [
                _correlation(truth[rows, k], prediction[rows, k])
                for k in range(truth.shape[1])
                if np.sum(rows := known[:, k]) > 2 and np.ptp(truth[rows, k]) > 0
            ]
            return {"r": float(np.mean(values))} if values else {}
        extra = {}
        if self.kind == "multiclass":
            rows = known[:, 0]
            truth, prediction = truth[rows, 0].astype(int), prediction[rows]
            extra = _accuracies(truth, prediction)
            truth = truth[:, None] == np.arange(prediction.shape[1])[None, :]
            known = np.ones_like(truth)
        # Training needs no scikit-learn; it takes a second to import.
        from sklearn.metrics import roc_auc_score

        values = [
            roc_auc_score(truth[rows, k] > 0.5, prediction[rows, k])
            for k in range(prediction.shape[1])
            if len(np.unique(truth[rows := known[:, k], k] > 0.5)) == 2
        ]
        return {"auroc": float(np.mean(values)), **extra} if values else extra

    def _loss(self, logits: Array, batch: Batch, smoothing: float) -> Float[Array, ""]:
        labels = batch["labels"]
        if self.kind == "regression":
            losses = jnp.square(logits - labels)
        elif self.kind == "multilabel":
            losses = binary_cross_entropy(logits, labels, smoothing)
        else:
            losses = cross_entropy(logits, labels[:, 0], smoothing)[:, None]
        known = batch["label_valid"] * batch["valid"][:, None]
        return jnp.sum(losses * known) / jnp.maximum(self.weight(batch), 1)

    def _prediction(self, logits: Float[Array, "B C"]) -> dict[str, Array]:
        if self.kind == "regression":
            return {"prediction": logits}
        if self.kind == "multilabel":
            return {"prediction": jax.nn.sigmoid(logits)}
        probabilities = jax.nn.softmax(logits, axis=-1)
        return {"prediction": probabilities[:, 1:] if self.kind == "binary" else probabilities}

    def _logits(self, batch: Batch, train: bool) -> Float[Array, "B C"]:
        if self.kind not in KINDS:
            raise ValueError(f"supervised kind is {self.kind!r}; known: {', '.join(KINDS)}")
        if self.missing not in ("exclude", "zero"):
            raise ValueError(f"supervised missing is {self.missing!r}; known: exclude, zero")
        if (self.cmr_encoder is None) == (self.ecg_encoder is None):
            raise ValueError("supervised takes exactly one of ecg_encoder and cmr_encoder")
        modality = "ecg" if self.cmr_encoder is None else "cmr"
        encoder = self.ecg_encoder if self.cmr_encoder is None else self.cmr_encoder
        features = encoder(batch[modality], train=self.trains(f"{modality}_encoder", train))
        return self.head(features["features"]).astype(jnp.float32)


def _accuracies(
    truth: Int[np.ndarray, " N"], prediction: Float[np.ndarray, "N C"]
) -> dict[str, float]:
    """`accuracy`, and `balanced_accuracy` over the classes that occur; nothing without a record."""
    if not len(truth):
        return {}
    right = truth == prediction.argmax(axis=1)
    recalls = [right[truth == number].mean() for number in np.unique(truth)]
    return {"accuracy": float(right.mean()), "balanced_accuracy": float(np.mean(recalls))}


def _correlation(truth: Float[np.ndarray, " N"], prediction: Float[np.ndarray, " N"]) -> float:
    """Pearson's r; a constant prediction has none and counts as 0."""
    return float(np.corrcoef(truth, prediction)[0, 1]) if np.ptp(prediction) > 0 else 0.0
