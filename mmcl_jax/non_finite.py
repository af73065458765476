"""A loss that is no number: which step, which records, and whether they are to blame."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from mmcl_jax.run_dir import RunDir, write_atomically

FILE = "non_finite_batch.json"

# (split, rows) -> what `data.finite.describe` says of them.
Describe = Callable[[str, Int[np.ndarray, " n"]], Sequence[Mapping[str, Any]]]


class NonFiniteLoss(RuntimeError):
    """The loss or the gradient is no number any more."""


class NonFiniteOutputs(NonFiniteLoss):
    """An evaluation gave outputs that are no numbers, for `rows` of its split."""

    def __init__(self, rows: Int[np.ndarray, " n"]):
        super().__init__(f"outputs of {len(rows)} records are not finite")
        self.rows = rows


@dataclasses.dataclass(frozen=True)
class NonFiniteReport:
    """Says what was wrong with a step of a stage, in a file and in an error.

    Attributes:
        run, stage: where it happened.
        describe: looks at the records on the host; None where nothing is known of them.
    """

    run: RunDir
    stage: str
    describe: Describe | None = None

    def of_step(
        self, step: int, values: Mapping[str, np.ndarray], rows: Int[np.ndarray, " n"]
    ) -> NonFiniteLoss:
        """The error for a training step.

        Args:
            values: `loss` and `gradient_norm` of the step.
            rows: of its batch, in the training split.
        """
        name = "gradient_norm" if np.isfinite(values["loss"]) else "loss"
        numbers = {key: str(float(values[key])) for key in ("loss", "gradient_norm")}
        what = f"stage {self.stage}, step {step}: {name} is {float(values[name])}"
        return self._error(what, {"step": step, **numbers}, "train", rows)

    def of_validation(self, step: int, rows: Int[np.ndarray, " n"]) -> NonFiniteLoss:
        """The error for an evaluation whose outputs for `rows` are no numbers."""
        what = (
            f"stage {self.stage}, step {step}: the outputs of {len(rows)} records of the "
            "validation split are not finite"
        )
        return self._error(what, {"step": step}, "val", rows)

    def _error(
        self, what: str, content: Mapping[str, Any], split: str, rows: Int[np.ndarray, " n"]
    ) -> NonFiniteLoss:
        records = list(self.describe(split, rows)) if self.describe else []
        bad = [entry for entry in records if entry["not_finite"]]
        file = self.run.path / FILE
        if jax.process_index() == 0:
            content = {"stage": self.stage, **content, "split": split, "records": records}
            write_atomically(file, json.dumps(content, indent=1) + "\n")
        named = ", ".join(f"{x['record']} ({', '.join(x['not_finite'])})" for x in bad[:5])
        if bad:
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            advice = (
                f"Not finite in the cohort: {named}{more}. Take such records out and prepare the "
                "cohort again"
            )
        else:
            advice = "The records hold numbers only: lower the learning rate"
        return NonFiniteLoss(
            f"{what}. {advice}. The records are in {file}; the last checkpoint is from before "
            "this step"
        )


def is_finite(values: Mapping[str, np.ndarray]) -> bool:
    """Whether the loss and the gradient norm of a step are numbers."""
    return all(np.isfinite(values[name]) for name in ("loss", "gradient_norm"))
