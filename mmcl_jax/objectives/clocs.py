"""CLOCS of ECG (CMSC): the two halves of a recording belong together, those of others do not.

Kiyasseh et al., "CLOCS: Contrastive Learning of Cardiac Signals Across Space, Time, and Patients",
ICML 2021. The views of the stage are `halves`.
"""

from collections.abc import Mapping

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float

from mmcl_jax.objectives.base import Batch, spread
from mmcl_jax.objectives.base import Objective as Base
from mmcl_jax.objectives.clip import clip_loss


class Objective(Base):
    """The ECG encoder and its projector.

    Attributes:
        ecg_encoder, ecg_projector: of both halves.
        temperature: tau of the CLIP loss, which weighs both directions alike.
    """

    ecg_encoder: nn.Module = None
    ecg_projector: nn.Module = None
    temperature: float = 0.1

    def __call__(self, batch: Batch, *, train: bool) -> tuple[Float[Array, ""], dict[str, Array]]:
        first = self.project(batch["ecg"], train=train)
        second = self.project(batch["ecg_view2"], train=train)
        loss, _ = clip_loss(
            first, second, temperature=self.temperature, cmr_weight=0.5, valid=batch["valid"]
        )
        return loss, {}

    def project(self, ecg: Float[Array, "B L T"], *, train: bool = False) -> Float[Array, "B K"]:
        features = self.ecg_encoder(ecg, train=self.trains("ecg_encoder", train))["features"]
        return self.ecg_projector(features)

    def predict(self, batch: Batch) -> dict[str, Array]:
        return {"projection": self.project(batch["ecg"])}

    def summarise(
        self, outputs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        del labels
        return {"spread": spread(outputs["projection"])}
