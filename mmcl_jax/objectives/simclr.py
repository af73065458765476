"""SimCLR of one modality: two augmented views of a record, NT-Xent loss (facts of the CMR encoder).

The paper pre-trains its CMR encoder with it before the contrastive stage (paper IV-C.1).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmcl_jax.objectives.base import Batch, mean_over_valid
from mmcl_jax.objectives.base import Objective as Base


def nt_xent(
    view1: Float[Array, "B K"],
    view2: Float[Array, "B K"],
    *,
    temperature: float,
    valid: Float[Array, "B"] | None = None,
) -> Float[Array, ""]:
    """Cross-entropy of each view with its partner against all 2B - 1 other views.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
    equation 1. Padding rows (`valid` 0) are neither queries nor negatives.
    """
    batch = view1.shape[0]
    present = jnp.ones(batch, bool) if valid is None else valid > 0
    # Not one axis of 2B views: where the batch is split over devices, each keeps the rows of both
    # views of its records and fetches only the projections of the others.
    views = jnp.stack([view1, view2]).astype(jnp.float32)
    views = views / jnp.maximum(jnp.linalg.norm(views, axis=-1, keepdims=True), 1e-12)
    logits = jnp.einsum("vbk,wck->vbwc", views, views) / temperature
    same_view = jnp.eye(2, dtype=bool)[:, None, :, None]
    same_record = jnp.eye(batch, dtype=bool)[None, :, None, :]
    other = present[None, None, None, :] & ~(same_view & same_record)
    positive = jnp.sum(jnp.where(same_record & ~same_view, logits, 0), axis=(2, 3))
    losses = jax.nn.logsumexp(jnp.where(other, logits, -jnp.inf), axis=(2, 3)) - positive
    return mean_over_valid(losses.mean(axis=0), present)


class Objective(Base):
    """One encoder and its projector; exactly one modality is given.

    Attributes:
        cmr_encoder, cmr_projector: for frames, or
        ecg_encoder, ecg_projector: for ECG.
        temperature: tau.
    """

    cmr_encoder: nn.Module | None = None
    cmr_projector: nn.Module | None = None
    ecg_encoder: nn.Module | None = None
    ecg_projector: nn.Module | None = None
    temperature: float = 0.1

    def __call__(self, batch: Batch, *, train: bool) -> tuple[Float[Array, ""], dict[str, Array]]:
        modality, encoder, projector = self._tower()
        # Rows of both views side by side: where the batch is split over devices, none moves.
        views = jnp.stack([batch[modality], batch[f"{modality}_view2"]], axis=1)
        views = views.reshape(-1, *views.shape[2:])
        features = encoder(views, train=self.trains(f"{modality}_encoder", train))["features"]
        view1, view2 = jnp.unstack(_pairs(projector(features)), axis=1)
        loss = nt_xent(view1, view2, temperature=self.temperature, valid=batch["valid"])
        return loss, {}

    def predict(self, batch: Batch) -> dict[str, Array]:
        modality, encoder, projector = self._tower()
        features = encoder(batch[modality], train=False)["features"]
        return {"projection": projector(features)}

    def _tower(self) -> tuple[str, nn.Module, nn.Module]:
        if (self.cmr_encoder is None) == (self.ecg_encoder is None):
            raise ValueError("simclr takes exactly one of cmr_encoder and ecg_encoder")
        if self.cmr_encoder is not None:
            return "cmr", self.cmr_encoder, self.cmr_projector
        return "ecg", self.ecg_encoder, self.ecg_projector
