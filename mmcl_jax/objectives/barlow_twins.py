"""Barlow Twins of one modality: two views correlate in each dimension, dimensions do not.

Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmcl_jax.objectives.base import Batch, only_modality, spread
from mmcl_jax.objectives.base import Objective as Base


def barlow_twins_loss(
    view1: Float[Array, "B K"],
    view2: Float[Array, "B K"],
    *,
    off_diagonal_weight: float,
    valid: Float[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, "K K"]]:
    """Squared distance of the cross-correlation of two views from the identity (equation 1).

    Args:
        view1, view2: row b of both belongs to the same record; standardised here, over the batch.
        off_diagonal_weight: lambda.
        valid: 0 on padding rows, which then count nowhere.

    Returns:
        The loss, and the cross-correlation. It is divided by the number of valid rows, which in
        training is the batch size of the stage: a last, shorter batch is not trained on.
    """
    valid = jnp.ones(view1.shape[0]) if valid is None else valid
    count = jnp.maximum(jnp.sum(valid), 1)
    correlation = _standardise(view1, valid).T @ _standardise(view2, valid) / count
    same = jnp.eye(correlation.shape[0], dtype=bool)
    invariance = jnp.sum(jnp.square(1 - jnp.diagonal(correlation)))
    redundancy = jnp.sum(jnp.where(same, 0, jnp.square(correlation)))
    return invariance + off_diagonal_weight * redundancy, correlation


class Objective(Base):
    """One encoder and its projector; exactly one modality is given.

    Attributes:
        ecg_encoder, ecg_projector: for ECG, or
        cmr_encoder, cmr_projector: for frames.
        off_diagonal_weight: lambda.
    """

    ecg_encoder: nn.Module | None = None
    ecg_projector: nn.Module | None = None
    cmr_encoder: nn.Module | None = None
    cmr_projector: nn.Module | None = None
    off_diagonal_weight: float = 5e-3

    def __call__(self, batch: Batch, *, train: bool) -> tuple[Float[Array, ""], dict[str, Array]]:
        modality = only_modality(self)
        # One view after the other: each is normalised by its own batch statistics.
        view1 = self.project(batch[modality], train=train)
        view2 = self.project(batch[f"{modality}_view2"], train=train)
        loss, correlation = barlow_twins_loss(
            view1, view2, off_diagonal_weight=self.off_diagonal_weight, valid=batch["valid"]
        )
        return loss, {"diagonal": jnp.mean(jnp.diagonal(correlation))}

    def project(self, view: Float[Array, "B ..."], *, train: bool = False) -> Float[Array, "B K"]:
        modality = only_modality(self)
        encoder, projector = f"{modality}_encoder", f"{modality}_projector"
        features = getattr(self, encoder)(view, train=self.trains(encoder, train))["features"]
        return getattr(self, projector)(features, train=self.trains(projector, train))

    def predict(self, batch: Batch) -> dict[str, Array]:
        return {"projection": self.project(batch[only_modality(self)])}

    def summarise(
        self, outputs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        del labels
        return {"spread": spread(outputs["projection"])}


def _standardise(view: Float[Array, "B K"], valid: Float[Array, " B"]) -> Float[Array, "B K"]:
    """Columns of mean 0 and variance 1 over the valid rows, as a BatchNorm without affine does."""
    view, present = view.astype(jnp.float32), valid[:, None]
    count = jnp.maximum(jnp.sum(valid), 1)
    centred = (view - jnp.sum(view * present, axis=0, keepdims=True) / count) * present
    variance = jnp.sum(jnp.square(centred), axis=0, keepdims=True) / count
    return centred / jnp.sqrt(variance + 1e-5)
