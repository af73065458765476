"""Trained stages as one StableHLO program with their weights inside, for CPUs, CUDA and TPUs.

The program takes any number of preprocessed ECGs of any length from one window on, and needs
nothing of this package to run: `jax.export.deserialize(data).call(ecg)`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float, Float32

from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.inference.models import Group, Trained

PLATFORMS = ("cpu", "cuda", "tpu")
# The file format addresses 2 GiB.
MOST_BYTES = 1_900_000_000


def export_groups(
    groups: Sequence[Group], method: str | Callable, *, crops: int, samples: int
) -> export.Exported:
    """The program of `groups`: [b, 12, t] -> {'embedding' or 'prediction': [b, C]} in float32.

    The columns are those of `inference_models.columns`: probabilities, values in the unit of their
    label, mean and standard deviation over seeds.

    Args:
        groups: one group without labels for an embedding.
        method: of the objective, or a function of it, that gives one array [B, K].
        crops: windows of a recording whose outputs are averaged. With 1, the first window, t is
            free; more of them are spread over exactly `samples`.
        samples: of a preprocessed recording.

    Raises:
        ValueError: the weights of all stages together do not fit into one file.
    """
    members = [member for group in groups for member in group.members]
    if (size := sum(_bytes(member) for member in members)) > MOST_BYTES:
        raise ValueError(
            f"the weights of these {len(members)} stages are {size / 1e9:.1f} GB, more than the "
            f"{MOST_BYTES / 1e9:.1f} GB that fit into one exported file; choose fewer with --stage"
        )
    window = max(window_length(member, samples) for member in members)
    shape = f"b, {len(LEADS)}, t" if crops == 1 else f"b, {len(LEADS)}, {samples}"
    constraints = (f"t >= {window}",) if crops == 1 else ()
    ecg = jax.ShapeDtypeStruct(export.symbolic_shape(shape, constraints=constraints), jnp.float32)
    output = "prediction" if groups[0].labels else "embedding"

    @jax.jit
    def run(ecg):
        found = [_columns(group, method, ecg, crops, samples) for group in groups]
        return {output: jnp.concatenate(found, axis=1)}

    return export.export(run, platforms=PLATFORMS)(ecg)


def window_length(trained: Trained, samples: int) -> int:
    """Samples of a recording that the encoder of a stage sees at a time."""
    return samples if trained.views.ecg is None else trained.views.ecg.length


def _columns(
    group: Group, method: str | Callable, ecg: Float[Array, "B 12 T"], crops: int, samples: int
) -> Float32[Array, "B C"]:
    """As `Group.combine`, inside the program."""
    outputs = [_apply(member, method, ecg, crops, samples) for member in group.members]
    if not group.labels:
        return outputs[0]
    scales = [_scale(member, group.labels) for member in group.members]
    # Seeds differ by little: their deviation is taken before a large mean is added.
    origin = scales[0][0]
    values = [
        output * np.float32(deviation) + np.float32(mean - origin)
        for output, (mean, deviation) in zip(outputs, scales, strict=True)
    ]
    stacked = jnp.stack(values)
    average = stacked.mean(axis=0) + np.float32(origin)
    if len(values) == 1:
        return average
    both = jnp.stack([average, stacked.std(axis=0, ddof=1)], axis=2)
    return both.reshape(both.shape[0], 2 * both.shape[1])


def _apply(
    trained: Trained, method: str | Callable, ecg: Float[Array, "B 12 T"], crops: int, samples: int
) -> Float32[Array, "B K"]:
    """Output of one stage, averaged over the windows."""
    length = window_length(trained, samples)
    # The same first samples as `evaluate.window_starts`; one window is the first, whatever t is.
    starts = [0] if crops == 1 else [int(s) for s in np.linspace(0, samples - length, crops)]
    variables = {"params": trained.params, **trained.extra}
    outputs = []
    for start in starts:
        batch = {"ecg": ecg[:, :, start : start + length]}
        found = trained.objective.apply(variables, batch, method=method)
        outputs.append(jax.tree.leaves(found)[0])
    return (sum(outputs) / len(outputs)).astype(jnp.float32)


def _scale(
    trained: Trained, labels: Sequence[Label]
) -> tuple[Float[np.ndarray, "1 K"], Float[np.ndarray, "1 K"]]:
    """Mean and standard deviation that turn an output into the unit of its label."""
    if labels[0].kind != "regression":
        return np.zeros((1, 1)), np.ones((1, 1))
    statistics = np.array([trained.statistics[label.name] for label in labels], np.float64)
    return statistics[None, :, 0], statistics[None, :, 1]


def _bytes(trained: Trained) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves((trained.params, trained.extra)))
