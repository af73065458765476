"""What the predictions of members on the validation split come to."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from mmcl_jax.objectives.base import Objective


@dataclasses.dataclass(frozen=True)
class Validation:
    """The validation split on the host.

    Attributes:
        objective: summarises predictions.
        labels: `labels`, `label_valid` [n, K] and `index` [n], in the order of the split.
        counts: records in each part that is evaluated at a time.
    """

    objective: Objective
    labels: Mapping[str, np.ndarray]
    counts: Int[np.ndarray, " C"]

    def metrics(
        self, means: Mapping[str, Float[np.ndarray, " C"]], outputs: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """What `train.evaluate` gives for the same batches."""
        total = self.counts.sum()
        rows = {name: values[:total] for name, values in outputs.items()}
        weighted = {name: float(self.counts @ v / total) for name, v in means.items()}
        summary = {**weighted, **self.objective.summarise(rows, self.labels)}
        return {f"val/{name}": value for name, value in summary.items()}
