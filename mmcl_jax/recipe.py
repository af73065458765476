"""A training recipe: all that a step needs to know, split into what is compiled and what is not.

The numbers in `hyper` reach the compiled step as arguments. So stages that differ only there share
one program, and the members of a sweep run side by side in one.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax
from jaxtyping import Array, Float

from mmcl_jax.augment.views import Views
from mmcl_jax.objectives.base import Objective

Hyper = Mapping[str, float | Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Attributes:
    objective: with its towers.
    views: what the encoders see of a batch.
    optimizer: from parameters (or their shapes) and `hyper` to an Optax optimiser.
    hyper: numbers by name: those that `optimizer` reads, such as `rate` and `weight_decay`, and
        `label_smoothing` (of the objective) and `drop_path` (of its ECG encoder).
    frozen: regular expressions; parameters whose path contains a match get no gradient.
    accumulate: parts that a batch is split into, one after another, to save memory; 0 chooses:
        parts of 8 examples on a CPU where the loss allows it, since arrays that stay small are
        reused within the step; otherwise one.
    """

    objective: Objective
    views: Views
    optimizer: Callable[[Any, Hyper], optax.GradientTransformation]
    hyper: Hyper = dataclasses.field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    accumulate: int = 0

    def objective_with(self, hyper: Hyper) -> Objective:
        """The objective with `label_smoothing` and `drop_path` of `hyper`, which may be traced."""
        changes: dict[str, Any] = {}
        if "label_smoothing" in hyper:
            changes["label_smoothing"] = hyper["label_smoothing"]
        if "drop_path" in hyper:
            changes["ecg_encoder"] = self.objective.ecg_encoder.clone(drop_path=hyper["drop_path"])
        return self.objective.clone(**changes)
