"""Masked data modelling of ECG (paper III-A, Figure 2): reconstruct a record from a few patches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmcl_jax.models.vit import patchify
from mmcl_jax.objectives.base import Batch, mean_over_valid
from mmcl_jax.objectives.base import Objective as Base


def shuffle(
    noise: Float[Array, "B N"], keep: int
) -> tuple[Int[Array, "B keep"], Int[Array, "B N"], Float[Array, "B N"]]:
    """Unstructured masking, drawn anew for each record: the `keep` lowest noise values stay.

    Returns:
        visible: tokens that stay, in the order of their noise.
        restore: for each token its place among (visible tokens, then removed ones).
        mask: 1 where a token is removed, 0 where it stays.
    """
    order = jnp.argsort(noise, axis=1)
    restore = jnp.argsort(order, axis=1)
    return order[:, :keep], restore, (restore >= keep).astype(jnp.float32)


def visible_tokens(tokens: int, mask_ratio: float, rounding: str) -> int:
    """How many of `tokens` stay visible.

    `nearest` gives 60 of 300 at ratio 0.8. `truncate` repeats the floating-point truncation of the
    code behind the published weights, int(300 * (1 - 0.8)) = 59.
    """
    if rounding not in ("nearest", "truncate"):
        raise ValueError(f"rounding is {rounding!r}; known: nearest, truncate")
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio is {mask_ratio}, expected a share from 0 to below 1")
    exact = tokens * (1 - mask_ratio)
    return round(exact) if rounding == "nearest" else int(exact)


def squared_error(
    prediction: Float[Array, "B N P"], target: Float[Array, "B N P"]
) -> Float[Array, " B"]:
    """Mean squared error of each record over all its patches, visible and masked (eq. 2a)."""
    return jnp.mean(jnp.square(prediction - target), axis=(1, 2))


def normalise_patches(patches: Float[Array, "B N P"]) -> Float[Array, "B N P"]:
    """Each patch with mean 0 and unbiased variance 1."""
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, ddof=1, keepdims=True)
    return (patches - mean) / jnp.sqrt(variance + 1e-6)


def lead_correlation(
    prediction: Float[Array, "B N P"], target: Float[Array, "B N P"], leads: int
) -> Float[Array, " B"]:
    """Pearson correlation of prediction and signal over time, averaged over the leads."""

    def standardise(patches):
        signal = patches.reshape(patches.shape[0], leads, -1)
        mean = signal.mean(axis=-1, keepdims=True)
        variance = signal.var(axis=-1, ddof=1, keepdims=True)
        return (signal - mean) / jnp.sqrt(variance + 1e-12)

    product = standardise(prediction) * standardise(target)
    return (product.sum(axis=-1) / (product.shape[-1] - 1)).mean(axis=-1)


class Objective(Base):
    """Masked autoencoder: the encoder sees the visible patches, the decoder all places.

    Attributes:
        ecg_encoder: a `vit` with `pool='none'`.
        decoder: a `mae_decoder` of the same patch and lead layout.
        mask_ratio: share of patches removed.
        rounding: see `visible_tokens`.
        ncc_weight: weight w of the correlation term, loss = (1 - w) MSE + w (1 - NCC).
        norm_patches: reconstruct patches normalised one by one; the correlation still compares
            with the signal itself.
    """

    ecg_encoder: nn.Module = None
    decoder: nn.Module = None
    mask_ratio: float = 0.8
    rounding: str = "nearest"
    ncc_weight: float = 0.0
    norm_patches: bool = False

    def __call__(self, batch: Batch, *, train: bool) -> tuple[Float[Array, ""], dict[str, Array]]:
        loss, metrics, _ = self._compare(batch, train)
        return loss, metrics

    def evaluate(self, batch: Batch) -> tuple[Float[Array, ""], dict[str, Array], dict[str, Array]]:
        return self._compare(batch, train=False)

    def _compare(
        self, batch: Batch, train: bool
    ) -> tuple[Float[Array, ""], dict[str, Array], dict[str, Array]]:
        """Loss, its parts, and per record [B] the correlation and the share of patches seen."""
        target = patchify(batch["ecg"], self.ecg_encoder.patch)
        noise = self._noise(batch, target.shape[1], train)
        prediction, mask = self.reconstruct(batch["ecg"], noise, train=train)
        goal = normalise_patches(target) if self.norm_patches else target
        valid = batch["valid"]
        mse = mean_over_valid(squared_error(prediction, goal), valid)
        leads = batch["ecg"].shape[1]
        correlation = lead_correlation(prediction, target, leads)
        ncc = mean_over_valid(correlation, valid)
        loss = mse
        if self.ncc_weight:
            loss = (1 - self.ncc_weight) * mse + self.ncc_weight * (1 - ncc)
        outputs = {"correlation": correlation, "visible_share": 1 - mask.mean(axis=1)}
        return loss, {"mse": mse, "ncc": ncc}, outputs

    def reconstruct(
        self, ecg: Float[Array, "B L T"], noise: Float[Array, "B N"], *, train: bool
    ) -> tuple[Float[Array, "B N P"], Float[Array, "B N"]]:
        """Prediction of every patch, and the mask (1 = removed) that `noise` decides."""
        keep = visible_tokens(noise.shape[1], self.mask_ratio, self.rounding)
        visible, restore, mask = shuffle(noise, keep)
        encoder_trains = self.trains("ecg_encoder", train)
        latent = self.ecg_encoder(ecg, train=encoder_trains, visible=visible)["latent"]
        return self.decoder(latent, restore).astype(jnp.float32), mask

    def predict(self, batch: Batch) -> dict[str, Array]:
        return self._compare(batch, train=False)[2]

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return jnp.sum(batch["valid"])

    def _noise(self, batch: Batch, tokens: int, train: bool) -> Float[Array, "B N"]:
        records = batch["index"].shape[0]
        if train:
            return jax.random.uniform(self.make_rng("mask"), (records, tokens))
        # The mask of a validation record is a function of the record, so that the validation
        # loss of two epochs differs by the weights alone.
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(0), row))(batch["index"])
        return jax.vmap(lambda key: jax.random.uniform(key, (tokens,)))(keys)
