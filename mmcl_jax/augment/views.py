"""Views of a batch: every example is augmented on the device, inside the jitted step."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Key, Num, UInt8

from mmcl_jax.augment.cmr import CmrAugmentation
from mmcl_jax.augment.ecg import EcgAugmentation

_SUFFIXES = ("", "_view2")


@dataclasses.dataclass(frozen=True)
class Views:
    """Turns the batch of the pipeline into what the encoders see.

    Each example has its own key: how the batch is split over devices does not change the result.

    Attributes:
        ecg: augmentation of 'ecg'; None leaves that field as it is.
        cmr: augmentation of 'cmr', which becomes [0, 1] float; None leaves that field as it is.
        count: 1, or 2 to add 'ecg_view2' and 'cmr_view2' from the same record. Of two views, the
            first is always augmented and the second at the rate of its augmentation, as in the
            authors' code.
        halves: take the first view from the first half of the ECG and the second from the other
            half (CLOCS), instead of both from the whole recording.
        mesh: devices that the batch is split over. Without it the result is the same, but XLA
            gathers the whole batch on every device for the Fourier transform.
    """

    ecg: EcgAugmentation | None
    cmr: CmrAugmentation | None
    count: int = 1
    halves: bool = False
    mesh: Mesh | None = None

    def __post_init__(self):
        if self.count not in (1, 2):
            raise ValueError(f"views: count must be 1 or 2, got {self.count}")
        if self.halves and self.count != 2:
            raise ValueError(f"views: halves need count=2, got count={self.count}")

    def __call__(
        self,
        key: Key[Array, ""],
        batch: Mapping[str, Num[Array, "B ..."]],
        *,
        train: bool,
        start: int | Int[Array, ""] = 0,
    ) -> dict[str, Num[Array, "B ..."]]:
        """The batch with its recordings and images replaced by their views.

        Args:
            key: one key for the batch.
            batch: see `mmcl_jax`; 'cmr_box' is needed if the heart is cropped.
            train: augment. Otherwise the first view is clean; a second view is clean if it is the
                other half of the ECG, and augmented if not, since two equal views say nothing.
            start: first sample of the clean ECG window.

        Raises:
            ValueError: a field that the views are made of is missing.
        """
        taken = {name: self._field(batch, name) for name in self._inputs()}
        if not taken:
            return dict(batch)
        size = next(iter(taken.values())).shape[0]
        keys = jax.random.split(key, (size, self.count, 2))

        def views(keys, taken):
            return jax.vmap(lambda keys, one: self._example(keys, one, train, start))(keys, taken)

        if self.mesh is not None:
            split = PartitionSpec(self.mesh.axis_names)
            views = jax.shard_map(views, mesh=self.mesh, in_specs=split, out_specs=split)
        return {**batch, **views(keys, taken)}

    def _example(
        self,
        keys: Key[Array, "count 2"],
        one: Mapping[str, Num[Array, "..."]],
        train: bool,
        start: int | Int[Array, ""],
    ) -> dict[str, Float[Array, "..."]]:
        views = {}
        for view, suffix in enumerate(_SUFFIXES[: self.count]):
            ecg_key, cmr_key = keys[view]
            if self.ecg is not None:
                ecg = self._part(one["ecg"], view)
                if train or (view == 1 and not self.halves):
                    views[f"ecg{suffix}"] = self._augmentation(self.ecg, view, train)(ecg_key, ecg)
                else:
                    views[f"ecg{suffix}"] = self.ecg.clean(ecg, start)
            if self.cmr is not None:
                frames = _unit_range(one["cmr"])
                box = one.get("cmr_box", jnp.zeros(4, jnp.int32))
                if train or view == 1:
                    augment = self._augmentation(self.cmr, view, train)
                    views[f"cmr{suffix}"] = augment(cmr_key, frames, box)
                else:
                    views[f"cmr{suffix}"] = self.cmr.clean(frames, box)
        return views

    def _augmentation(self, augmentation, view: int, train: bool):
        always = self.count == 2 and (view == 0 or not train)
        return dataclasses.replace(augmentation, probability=1.0) if always else augmentation

    def _part(self, ecg: Float[Array, "L T"], view: int) -> Float[Array, "L part"]:
        half = ecg.shape[-1] // 2
        return ecg[:, view * half : (view + 1) * half] if self.halves else ecg

    def _inputs(self) -> tuple[str, ...]:
        names = ("ecg",) if self.ecg is not None else ()
        if self.cmr is not None:
            names += ("cmr", "cmr_box") if self.cmr.crop_heart else ("cmr",)
        return names

    def _field(self, batch: Mapping[str, Num[Array, "B ..."]], name: str) -> Num[Array, "B ..."]:
        if name not in batch:
            raise ValueError(
                f"views: the batch has no {name!r}, only {sorted(batch)}; add it to the fields of"
                " the pipeline or make no view of it"
            )
        return batch[name]


def _unit_range(
    frames: UInt8[Array, "H W 3"] | Float[Array, "H W 3"],
) -> Float[Array, "H W 3"]:
    if jnp.issubdtype(frames.dtype, jnp.integer):
        return frames.astype(jnp.float32) / 255
    return frames
