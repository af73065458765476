"""Contrastive ECG-CMR pre-training (paper III-B, Figure 3) with the CLIP loss."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmcl_jax.objectives.base import Batch, mean_over_valid
from mmcl_jax.objectives.base import Objective as Base


def clip_loss(
    ecg_projection: Float[Array, "B K"],
    cmr_projection: Float[Array, "B K"],
    *,
    temperature: float,
    cmr_weight: float,
    valid: Float[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, "B B"]]:
    """Loss of paired projections against the other modality of the whole batch (eq. 4-6).

    Args:
        ecg_projection, cmr_projection: row b of both belongs to the same subject; normalised here.
        temperature: tau.
        cmr_weight: lambda, the weight of the imaging term; the signal term has 1 - lambda.
        valid: 0 on padding rows, which then are neither queries nor negatives.

    Returns:
        The loss, and the logits (row: ECG, column: CMR) before padding is taken out.
    """
    batch = ecg_projection.shape[0]
    valid = jnp.ones(batch) if valid is None else valid
    present = valid > 0
    logits = normalise(ecg_projection) @ normalise(cmr_projection).T / temperature
    # Each device has its rows of the logits and only the CMR projections of the others. What a
    # transposed matrix or `jnp.diagonal` would say is taken from these rows.
    own = jnp.eye(batch, dtype=bool)
    positive = jnp.sum(jnp.where(own, logits, 0), axis=1)
    to_cmr = jax.nn.logsumexp(jnp.where(present[None, :], logits, -jnp.inf), axis=1)
    to_ecg = jax.nn.logsumexp(jnp.where(present[:, None], logits, -jnp.inf), axis=0)
    ecg_loss = mean_over_valid(to_cmr - positive, valid)
    cmr_loss = mean_over_valid(to_ecg - positive, valid)
    return (1 - cmr_weight) * ecg_loss + cmr_weight * cmr_loss, logits


def normalise(projection: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """Rows of length 1, in float32; a row of zeros stays zero."""
    projection = projection.astype(jnp.float32)
    squared = jnp.sum(jnp.square(projection), axis=-1, keepdims=True)
    return projection * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


class Objective(Base):
    """Two encoders and two projectors on a shared space.

    Attributes:
        ecg_encoder, ecg_projector: f_s and g_s.
        cmr_encoder, cmr_projector: f_i and g_i.
        temperature: tau of eq. 4 and 5.
        cmr_weight: lambda of eq. 6.
        map_upsampling: bilinear enlargement of the CMR feature map before `local_similarity`
            projects it; the paper has none.
        map_divisor: what the local similarities are divided by; 1 leaves cosines.
    """

    ecg_encoder: nn.Module = None
    ecg_projector: nn.Module = None
    cmr_encoder: nn.Module = None
    cmr_projector: nn.Module = None
    temperature: float = 0.1
    cmr_weight: float = 0.75
    map_upsampling: int = 1
    map_divisor: float = 1.0

    def __call__(self, batch: Batch, *, train: bool) -> tuple[Float[Array, ""], dict[str, Array]]:
        valid = batch["valid"]
        loss, logits = clip_loss(
            self.project_ecg(batch["ecg"], train=train),
            self.project_cmr(batch["cmr"], train=train),
            temperature=self.temperature,
            cmr_weight=self.cmr_weight,
            valid=valid,
        )
        best = jnp.where(valid[None, :] > 0, logits, -jnp.inf).argmax(axis=1)
        hits = (best == jnp.arange(logits.shape[0])).astype(jnp.float32)
        return loss, {"top1": mean_over_valid(hits, valid)}

    def project_ecg(
        self, ecg: Float[Array, "B L T"], *, train: bool = False
    ) -> Float[Array, "B K"]:
        features = self.ecg_encoder(ecg, train=self.trains("ecg_encoder", train))["features"]
        return self.ecg_projector(features)

    def project_cmr(
        self, cmr: Float[Array, "B H W 3"], *, train: bool = False
    ) -> Float[Array, "B K"]:
        features = self.cmr_encoder(cmr, train=self.trains("cmr_encoder", train))["features"]
        return self.cmr_projector(features)

    def predict(self, batch: Batch) -> dict[str, Array]:
        return {
            "ecg_projection": normalise(self.project_ecg(batch["ecg"])),
            "cmr_projection": normalise(self.project_cmr(batch["cmr"])),
        }

    def places(self, batch: Batch) -> dict[str, Array]:
        """Projections of each 1x1 region of the CMR feature map, and of the ECG, of length 1.

        Returns:
            cmr [B, h, w, K] and ecg [B, K].
        """
        return {
            "cmr": self._project_map(self.cmr_encoder(batch["cmr"], train=False)["map"]),
            "ecg": normalise(self.project_ecg(batch["ecg"])),
        }

    def local_similarity(self, batch: Batch) -> dict[str, Array]:
        """Cosine similarity of one modality as a whole with each place of the other.

        Returns:
            cmr [B, h, w]: the ECG projection with each 1x1 region of the CMR feature map (paper
            III-C). ecg [B, N]: the CMR projection with each ECG token.
        """
        encoded_cmr = self.cmr_encoder(batch["cmr"], train=False)
        encoded_ecg = self.ecg_encoder(batch["ecg"], train=False)
        places = self._project_map(encoded_cmr["map"])
        tokens = normalise(self.ecg_projector(encoded_ecg["tokens"][:, 1:]))
        whole_ecg = normalise(self.ecg_projector(encoded_ecg["features"]))
        whole_cmr = normalise(self.cmr_projector(encoded_cmr["features"]))
        return {
            "cmr": jnp.einsum("bhwk,bk->bhw", places, whole_ecg) / self.map_divisor,
            "ecg": jnp.einsum("bnk,bk->bn", tokens, whole_cmr) / self.map_divisor,
        }

    def _project_map(self, encoded: Float[Array, "B H W C"]) -> Float[Array, "B h w K"]:
        batch_size, height, width, channels = encoded.shape
        enlarged = (height * self.map_upsampling, width * self.map_upsampling)
        shape = (batch_size, *enlarged, channels)
        return normalise(self.cmr_projector(jax.image.resize(encoded, shape, "bilinear")))

    def summarise(
        self, outputs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        del labels
        similarity = outputs["ecg_projection"] @ outputs["cmr_projection"].T
        own = np.diagonal(similarity)
        # Rank 1 is the best; a tie counts against the model.
        rank = (similarity >= own[:, None]).sum(axis=1)
        return {f"recall@{k}": float((rank <= k).mean()) for k in (1, 10)}
