"""What the command line asks for."""

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    batches: batch sizes; empty for those of `settings.BATCHES`.
    dtype: 'float32' or 'bfloat16', of the computation.
    rounds: measurements of every competitor.
    seconds: how long one measurement lasts at least; what is slower runs one step.
    peer: 'eager' and 'compiled', the ways PyTorch runs beside ours; empty for none.
    profile: folder that keeps traces; None for none.
    size: 'full' or 'tiny'.
    """

    batches: tuple[int, ...] = ()
    dtype: str = "float32"
    rounds: int = 5
    seconds: float = 0.3
    peer: tuple[str, ...] = ()
    profile: pathlib.Path | None = None
    size: str = "full"
