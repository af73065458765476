"""BYOL of one modality: an online network predicts a slow copy of itself from another view.

Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mmcl_jax.objectives.base import Batch, mean_over_valid, only_modality, spread
from mmcl_jax.objectives.base import Objective as Base
from mmcl_jax.objectives.clip import normalise

# Of the random draws of a step, those that a network makes.
_STREAMS = ("drop_path", "dropout")


def byol_loss(
    prediction: Float[Array, "B K"],
    target: Float[Array, "B K"],
    valid: Float[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """One direction: -2 times the cosine of prediction and target, from -2 (equal) to 2.

    Equation 2 of the paper without its constant 2. No gradient flows into `target`.
    """
    valid = jnp.ones(prediction.shape[0]) if valid is None else valid
    cosine = jnp.sum(normalise(prediction) * normalise(jax.lax.stop_gradient(target)), axis=1)
    return -2 * mean_over_valid(cosine, valid)


def online_share(
    update: Int[Array, ""], *, tau: float, updates: int | Int[Array, ""]
) -> Float[Array, ""]:
    """1 - tau_k, the share of the online network in update k = 0, 1, ...: a cosine down to 0.

    tau_k rises from `tau` to 1 over `updates`. Computed as a share, because 1 - tau_k loses digits.
    """
    progress = jnp.minimum(update / updates, 1)
    return (1 - tau) * (jnp.cos(jnp.pi * progress) + 1) / 2


class Objective(Base):
    """Encoder, projector and predictor of one modality; the target has the first two.

    The collection `target` holds the target network and how often it was updated. Its parameters
    follow those of the online network after every step. Its batch statistics do not: it runs in
    training mode, drop path included, and they come from what it sees.

    Attributes:
        ecg_encoder, ecg_projector, ecg_predictor: for ECG, or
        cmr_encoder, cmr_projector, cmr_predictor: for frames.
        tau: share of itself that the target keeps in the first update.
        total_steps: steps of the stage, over which that share rises to 1; 0 keeps it at `tau`.
    """

    ecg_encoder: nn.Module | None = None
    ecg_projector: nn.Module | None = None
    ecg_predictor: nn.Module | None = None
    cmr_encoder: nn.Module | None = None
    cmr_projector: nn.Module | None = None
    cmr_predictor: nn.Module | None = None
    tau: float = 0.9996
    total_steps: int = 0

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> tuple[Float[Array, ""], dict[str, Array]]:
        modality = only_modality(self)
        views = batch[modality], batch[f"{modality}_view2"]
        # One view after the other: each is normalised by its own batch statistics.
        prediction1, prediction2 = (self._predicted(view, train=train) for view in views)
        twin, online = self.unbind()
        target = self.variable("target", "network", _towers, online, modality)
        self.variable("target", "updates", jnp.zeros, (), jnp.int32)

        network, projections = target.value, []
        for view in views:
            projection, moved = twin.apply(
                network,
                view,
                train=train,
                method="project",
                mutable=["batch_stats"] if train else [],
                rngs={name: self.make_rng(name) for name in _STREAMS if self.has_rng(name)},
            )
            network = {**network, **moved}
            projections.append(projection)
        if train and not self.is_initializing():
            target.value = network
        valid = batch["valid"]
        loss = byol_loss(prediction1, projections[1], valid)
        return loss + byol_loss(prediction2, projections[0], valid), {}

    def project(self, view: Float[Array, "B ..."], *, train: bool = False) -> Float[Array, "B K"]:
        modality = only_modality(self)
        encoder, projector = f"{modality}_encoder", f"{modality}_projector"
        features = getattr(self, encoder)(view, train=self.trains(encoder, train))["features"]
        return getattr(self, projector)(features, train=self.trains(projector, train))

    def _predicted(self, view: Float[Array, "B ..."], *, train: bool) -> Float[Array, "B K"]:
        predictor = f"{only_modality(self)}_predictor"
        projection = self.project(view, train=train)
        return getattr(self, predictor)(projection, train=self.trains(predictor, train))

    def predict(self, batch: Batch) -> dict[str, Array]:
        return {"projection": self.project(batch[only_modality(self)])}

    def weight(self, batch: Batch) -> Float[Array, ""]:
        """Rows. Batch statistics, if the projector has them, are those of a part."""
        return jnp.sum(batch["valid"])

    def update_extra(self, params: Any, extra: Any) -> Any:
        """Moves the target. The first call, before any step, makes it a copy of the online network;
        the one after step k + 1 is update k of `online_share`.
        """
        network, updates = extra["target"]["network"], extra["target"]["updates"]
        online = _towers({"params": params, **extra}, only_modality(self))
        share = 1 - self.tau
        if self.total_steps:
            share = online_share(updates - 1, tau=self.tau, updates=self.total_steps)
        moved = jax.tree.map(
            lambda slow, fast: slow + share * (fast - slow), network["params"], online["params"]
        )
        network = jax.tree.map(
            lambda copied, followed: jnp.where(updates == 0, copied, followed),
            online,
            {**network, "params": moved},
        )
        return {**extra, "target": {"network": network, "updates": updates + 1}}

    def summarise(
        self, outputs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        del labels
        return {"spread": spread(outputs["projection"])}


def _towers(variables: Mapping[str, Any], modality: str) -> dict[str, Any]:
    """The collections of encoder and projector, as `Objective.project` reads them."""
    towers = (f"{modality}_encoder", f"{modality}_projector")
    found = {
        name: {tower: variables[name][tower] for tower in towers if tower in variables[name]}
        for name in ("params", "batch_stats")
        if name in variables
    }
    return {name: collection for name, collection in found.items() if collection}
