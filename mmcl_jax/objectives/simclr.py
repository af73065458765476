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
    valid = jnp.ones(batch) if valid is None else valid
    views = jnp.concatenate([view1, view2]).astype(jnp.float32)
    lengths = jnp.maximum(jnp.linalg.norm(views, axis=-1, keepdims=True), 1e-12)
    views = views / lengths
    logits = views @ views.T / temperature
    both = jnp.concatenate([valid, valid])
    other = (both[None, :] > 0) & ~jnp.eye(2 * batch, dtype=bool)
    partner = jnp.roll(jnp.arange(2 * batch), batch)
    positive = logits[jnp.arange(2 * batch), partner]
    rows = jax.nn.logsumexp(jnp.where(other, logits, -jnp.inf), axis=1) - positive
    return mean_over_valid(rows, both)


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
        views = jnp.concatenate([batch[modality], batch[f"{modality}_view2"]])
        features = encoder(views, train=self.trains(f"{modality}_encoder", train))["features"]
        view1, view2 = jnp.split(projector(features), 2)
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
