"""What the members of a sweep share: both splits of a target, with recordings and labels."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array, Int

from mmcl_jax import stages
from mmcl_jax.data import pipeline
from mmcl_jax.data.cohort import Cohort
from mmcl_jax.data.resident import Recordings
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.stages import Stage


class SweepData:
    """Rows, recordings and labels of one target.

    Args:
        cohort: to read from.
        stage: any seed of the target.
        labels: what it predicts.

    Attributes:
        rows, val_rows: of the training and the validation split, as a run alone selects them.
    """

    def __init__(self, cohort: Cohort, stage: Stage, labels: Sequence[Label]):
        self._cohort, self._fields = cohort, tuple(stage.config["fields"])
        self._names = tuple(label.name for label in labels)
        self.rows, self.val_rows = stages.select_rows(stage, cohort, labels)

    @property
    def subjects(self) -> np.ndarray:
        """Person of every row of the training split."""
        return self._cohort.table("train")["subject"]

    def load(self, recordings: Recordings) -> tuple[dict[str, Array], dict[str, Array]]:
        """Recordings and labels of the training and of the validation split, on the device.

        Raises:
            ValueError: they do not fit, or the settings forbid it.
        """
        rows = {"train": self.rows, "val": self.val_rows}
        found = recordings.of(self._cohort, rows, self._fields).resident
        if not found:
            raise ValueError(
                "a sweep needs the recordings on the device, for its members share them; set "
                "data.resident to always, or stages.*.fraction lower where they do not fit"
            )
        return tuple(self._with_labels(split, rows[split], found[split]) for split in rows)

    def validation_labels(self) -> dict[str, np.ndarray]:
        """`labels`, `label_valid` [n, K] and `index`, `valid` [n] as batches bring them."""
        found = self._labels("val", self.val_rows)
        return {**found, "index": self.val_rows, "valid": np.ones(len(self.val_rows), np.float32)}

    def example(self) -> dict[str, np.ndarray]:
        """Two rows of the validation split, for the shapes of the parameters."""
        batches = pipeline.eval_batches(
            self._cohort, "val", self.val_rows[:2], fields=self._fields, labels=self._names,
            batch_size=2,
        )  # fmt: skip
        return next(iter(batches))

    def parts(self, size: int) -> Int[np.ndarray, "C E"]:
        """Rows of the validation split, `size` at a time, padded with -1."""
        count = -(-len(self.val_rows) // size)
        padded = np.full(count * size, -1, np.int32)
        padded[: len(self.val_rows)] = self.val_rows
        return padded.reshape(count, size)

    def _with_labels(
        self, split: str, rows: Int[np.ndarray, " n"], found: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Labels by the places of the recordings, of which there may be more than `rows`."""
        place = np.asarray(found["place"])[rows]
        kept = len(found[self._fields[0]])
        spread = {}
        for name, values in self._labels(split, rows).items():
            spread[name] = np.zeros((kept, values.shape[1]), values.dtype)
            spread[name][place] = values
        return {**found, **spread}

    def _labels(self, split: str, rows: Int[np.ndarray, " n"]) -> dict[str, np.ndarray]:
        """`labels`, `label_valid` [n, K]."""
        (batch,) = pipeline.eval_batches(
            self._cohort, split, rows, fields=(), labels=self._names, batch_size=len(rows)
        )
        return {name: batch[name] for name in ("labels", "label_valid")}
