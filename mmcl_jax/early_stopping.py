"""Which parameters are the best so far, and when there will be no better ones."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mmcl_jax.checkpoints import Checkpoints
from mmcl_jax.retry import say
from mmcl_jax.state import State
from mmcl_jax.step_folder import DamagedCheckpoint


@dataclasses.dataclass
class EarlyStopping:
    """Best value so far and how many evaluations ago (facts, section 7)."""

    sign: int
    patience: int
    band: float
    best: float = -math.inf
    best_step: int = 0
    waited: int = 0

    def update(self, step: int, value: float) -> bool:
        """Takes the value of an evaluation; True where it is the best so far."""
        score = self.sign * value
        self.waited = 0 if score >= self.best - self.band else self.waited + 1
        if score > self.best:
            self.best, self.best_step = score, step
            return True
        return False

    @property
    def stop(self) -> bool:
        return self.patience >= 0 and self.waited > self.patience

    def to_json(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}


def selected(metrics: Mapping[str, float], name: str, stage: str) -> float:
    """The metric that decides which parameters are best. Raises ValueError where there is none."""
    if name not in metrics:
        raise ValueError(
            f"stage {stage} selects by {name}, which its validation split does not give; it gives "
            f"{', '.join(sorted(metrics))} (a metric such as AUROC needs both classes in the split)"
        )
    return metrics[name]


def find_best(checkpoints: Checkpoints, state: State, stopping: EarlyStopping) -> None:
    """Sees to it that the best parameters that `stopping` speaks of are there.

    Where they are damaged they are written again from `state`, if it is of their step; else those
    that were the best before them take their place, also in `stopping`.

    Raises:
        DamagedCheckpoint: none is whole.
    """
    step = int(state.step)
    if stopping.best_step == 0:
        return
    try:
        found = checkpoints.best()
    except DamagedCheckpoint:
        if stopping.best_step != step:
            raise
        found = None
    if found and found[0] == stopping.best_step:
        return
    if stopping.best_step == step:
        checkpoints.save_best(state, stopping.best)
        return
    if not found or found[1] is None:
        raise DamagedCheckpoint(checkpoints.folder / "best")
    say(f"the best parameters are now those of step {found[0]}, not {stopping.best_step}")
    stopping.best_step, stopping.best = found
