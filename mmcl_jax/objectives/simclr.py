"""SimCLR of one modality: two augmented views of a record, NT-Xent loss (facts of the CMR encoder).

The paper pre-trains its CMR encoder with it before the contrastive stage (paper IV-C.1).
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mmcl_jax.objectives.base import Batch, mean_over_valid, only_modality, spread
from mmcl_jax.objectives.base import Objective as Base


def nt_xent(
    view1: Float[Array, "B K"],
    view2: Float[Array, "B K"],
    *,
    temperature: float,
    valid: Float[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """Cross-entropy of each view with its partner against all 2B - 1 other views.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
    equation 1. Padding rows (`valid` 0) are neither queries nor negatives.
    """
    batch = view1.shape[0]
    valid = jnp.ones(batch) if valid is None else valid
    first, second = _unit(view1), _unit(view2)
    # Not one matrix of 2B views: where the batch is split over devices, each has its rows of these
    # three and fetches only the projections of the others.
    across = first @ second.T / temperature
    own = jnp.eye(batch, dtype=bool)
    present = valid > 0
    positive = jnp.sum(jnp.where(own, across, 0), axis=1)

    def within(views: Float[Array, "B K"]) -> Float[Array, " B"]:
        return _log_total(views @ views.T / temperature, present[None, :] & ~own, axis=1)

    total1 = jnp.logaddexp(within(first), _log_total(across, present[None, :], axis=1))
    total2 = jnp.logaddexp(within(second), _log_total(across, present[:, None], axis=0))
    return mean_over_valid((total1 + total2) / 2 - positive, valid)


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
        pairs = projector(features).reshape(batch["valid"].shape[0], 2, -1)
        loss = nt_xent(pairs[:, 0], pairs[:, 1], temperature=self.temperature, valid=batch["valid"])
        return loss, {}

    def predict(self, batch: Batch) -> dict[str, Array]:
        modality, encoder, projector = self._tower()
        features = encoder(batch[modality], train=False)["features"]
        return {"projection": projector(features)}

    def summarise(
        self, outputs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        del labels
        return {"spread": spread(outputs["projection"])}

    def _tower(self) -> tuple[str, nn.Module, nn.Module]:
        modality = only_modality(self)
        return modality, *(getattr(self, f"{modality}_{part}") for part in ("encoder", "projector"))


def _unit(view: Float[Array, "B K"]) -> Float[Array, "B K"]:
    view = view.astype(jnp.float32)
    return view / jnp.maximum(jnp.linalg.norm(view, axis=-1, keepdims=True), 1e-12)


def _log_total(
    logits: Float[Array, "B B"], counted: Bool[Array, "..."], axis: int
) -> Float[Array, " B"]:
    # Finite where nothing is counted, so that its gradient is 0 and no NaN.
    return jax.nn.logsumexp(jnp.where(counted, logits, jnp.finfo(logits.dtype).min), axis=axis)
