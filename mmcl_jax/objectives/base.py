"""The contract between an objective and the training loop.

An objective is a Linen module whose fields are its towers, so that the parameter tree names itself:
`ecg_encoder`, `ecg_projector`, `cmr_encoder`, `cmr_projector`, `decoder`, `head`. These names are
what one stage hands to the next. Everything else (gradients, devices, logging, saving, early
stopping) is the loop's business. An objective is abstract here and final in its own file; what two
of them share is a function.
"""

import abc
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Batch = Mapping[str, Array]


class Objective(nn.Module, abc.ABC):
    """What the loop calls.

    Attributes:
        frozen: names of towers that are not trained. They run with `train=False`, so their
            BatchNorm statistics stay too; the optimiser leaves out their parameters.
    """

    frozen: tuple[str, ...] = ()

    @abc.abstractmethod
    def __call__(self, batch: Batch, *, train: bool) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Loss over the valid rows of a batch, and further scalar metrics to log."""

    @abc.abstractmethod
    def predict(self, batch: Batch) -> dict[str, Array]:
        """Per-record outputs [B, ...] for `summarise`, evaluation and inference."""

    def evaluate(self, batch: Batch) -> tuple[Float[Array, ""], dict[str, Array], dict[str, Array]]:
        """Loss, metrics and `predict` of clean views.

        Its own where the encoder would otherwise run twice: a fine-tuning run of the paper sees
        five times as many records in validation as in training.
        """
        return *self(batch, train=False), self.predict(batch)

    def weight(self, batch: Batch) -> Float[Array, ""] | None:
        """What the loss of a batch is a mean over, if it is a mean over its rows or labels.

        Batches that are accumulated in parts are weighted with it. None: rows are compared with
        each other, so there are no parts.
        """
        del batch
        return None

    def update_extra(self, params: Any, extra: Any) -> Any:
        """Collections that follow the parameters by a rule of their own.

        Called once with the parameters that a stage starts from, and after every step. A rule that
        needs the length of the stage finds it in a field `total_steps` of the objective.
        """
        del params
        return extra

    def summarise(
        self, outputs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """Metrics of a whole split, on the host: `outputs` of `predict`, rows in split order."""
        del outputs, labels
        return {}

    def trains(self, tower: str, train: bool) -> bool:
        """Whether `tower` runs in training mode."""
        return train and tower not in self.frozen


def mean_over_valid(values: Float[Array, " B"], valid: Float[Array, " B"]) -> Float[Array, ""]:
    """Mean over the rows that are no padding; 0 where none is valid."""
    return jnp.sum(values * valid) / jnp.maximum(jnp.sum(valid), 1)


def only_modality(objective: Objective) -> str:
    """`ecg` or `cmr`, of an objective that takes the towers of either.

    Raises:
        ValueError: it has an encoder of both, or of none.
    """
    found = [name for name in ("ecg", "cmr") if getattr(objective, f"{name}_encoder") is not None]
    if len(found) != 1:
        name = type(objective).__module__.rpartition(".")[2]
        raise ValueError(f"{name} takes exactly one of ecg_encoder and cmr_encoder")
    return found[0]


def spread(projection: Float[np.ndarray, "N K"]) -> float:
    """How far records lie apart in direction: 1 all over the sphere, 0 collapsed into one point.

    The standard deviation of unit vectors, averaged over dimensions and times sqrt(K) (Chen and He,
    "Exploring Simple Siamese Representation Learning", CVPR 2021, Section 4.1).
    """
    lengths = np.linalg.norm(projection, axis=1, keepdims=True)
    unit = projection / np.maximum(lengths, 1e-12)
    return float(np.std(unit, axis=0).mean() * np.sqrt(projection.shape[1]))
