"""What a trained model sees in one ECG: attention and occlusion, by lead and time."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float32

from mmcl_jax.evaluate import window_starts
from mmcl_jax.inference import Program
from mmcl_jax.inference.models import Column
from mmcl_jax.inference.output import is_embedding
from mmcl_jax.interpret.attention_map import rollout
from mmcl_jax.interpret.occlusion import cosine_distance, occlude


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention of the stages of one target, mean over their seeds.

    Attributes:
        name: stage and target, such as `finetune/CAD`, or the stage of an encoder.
        rollout: from the output through all blocks, by window; see `attention_map.rollout`.
        pooling: weights of the pooling alone.
        start: first second of each window.
        seconds: length of a patch.
    """

    name: str
    rollout: Float[np.ndarray, "K 12 n"]
    pooling: Float[np.ndarray, "K 12 n"]
    start: Float[np.ndarray, " K"]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Occlusion:
    """What hiding a window of a lead changes.

    Attributes:
        columns: that change; one, the embedding, where the model predicts nothing.
        value: of the whole ECG, by column; NaN for the embedding.
        change: value with the window hidden less `value`, in the unit of the column; for the
            embedding the cosine distance.
        edges: beginnings of the windows, and end of the last one, in seconds.
    """

    columns: tuple[Column, ...]
    value: Float[np.ndarray, " C"]
    change: Float[np.ndarray, "C 12 W"]
    edges: Float[np.ndarray, " W+1"]


def attention(program: Program, ecg: Float32[np.ndarray, "12 T"]) -> list[Attention]:
    """Attention of each target of a program for a preprocessed ECG, in the windows it averages."""
    rate, found = program.settings.rate, []
    for group in program.groups:
        views, encoder = group.members[0].views, group.members[0].objective.ecg_encoder
        starts = window_starts(views, {"ecg": ecg}, program.crops)
        windows = np.stack([ecg[:, start : start + views.ecg.length] for start in starts])
        maps = [
            _compiled(member.objective.ecg_encoder)(member.params["ecg_encoder"], windows)
            for member in group.members
        ]
        reached, pooling = (np.mean(kind, axis=0) for kind in zip(*maps, strict=True))
        stage = group.members[0].stage
        name = f"{stage.group}/{stage.target}" if stage.target else stage.name
        start = np.array(starts) / rate
        found.append(Attention(name, reached, pooling, start, encoder.patch[1] / rate))
    return found


def occlusion(
    program: Program,
    ecg: Float32[np.ndarray, "12 T"],
    seconds: float,
    columns: Sequence[str] = (),
    *,
    progress: bool = False,
) -> Occlusion:
    """The effect of every window of every lead on the outputs of a program.

    Args:
        ecg: preprocessed.
        seconds: length of a window.
        columns: names of those wanted; all by default, deviations over seeds left out.
        progress: show how far it has come.

    Raises:
        ValueError: there is no such column, or the window is no part of the recording.
    """
    rate = program.settings.rate
    extent = ecg.shape[1] if program.crops > 1 else _longest_window(program)
    window = round(seconds * rate)
    if not 1 <= window <= extent:
        raise ValueError(f"windows of {seconds:g} s: expected up to {extent / rate:g} s")
    chosen = _chosen(program, columns)
    value, changed, starts = occlude(program, ecg, window, extent, progress=progress)
    edges = np.append(starts, extent) / rate
    if is_embedding(program.columns):
        distance = cosine_distance(changed, value)[None]
        return Occlusion((_EMBEDDING,), np.full(1, np.nan), distance, edges)
    change = (changed - value)[:, :, chosen].transpose(2, 0, 1)
    return Occlusion(tuple(program.columns[k] for k in chosen), value[chosen], change, edges)


_EMBEDDING = Column("embedding", "embedding", "", "", "", "cosine distance", ())


@functools.lru_cache(maxsize=8)
def _compiled(encoder: Any) -> Callable:
    return jax.jit(functools.partial(rollout, encoder))


def _longest_window(program: Program) -> int:
    """Samples from the first one on that the stages read."""
    return max(member.views.ecg.length for group in program.groups for member in group.members)


def _chosen(program: Program, names: Sequence[str]) -> list[int]:
    """Positions of columns."""
    known = {c.name: k for k, c in enumerate(program.columns) if c.statistic != "sd"}
    if is_embedding(program.columns):
        known = {}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"no column {', '.join(unknown)}; the model has {', '.join(known) or 'an embedding'}"
        )
    return [known[name] for name in names] or list(known.values())
