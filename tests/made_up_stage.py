"""A supervised stage with random parameters, without a run."""

import jax
import tiny

from mmcl_jax.data.targets.labels import Label
from mmcl_jax.inference.models import Trained
from mmcl_jax.stages import Stage
from mmcl_jax.state import initialise


def made_up(kind: str, outputs: int, dtype: str) -> tuple[Trained, tuple[Label, ...]]:
    objective, views = tiny.objective("supervised", outputs=outputs, kind=kind)
    encoder = objective.ecg_encoder.clone(dtype=dtype)
    objective = objective.clone(ecg_encoder=encoder)
    params, extra = initialise(objective, views, tiny.batch(2), jax.random.key(1))
    head = jax.tree.map(lambda leaf: leaf * 10, params["head"])
    labels = {
        "binary": (Label("CAD", "binary", "disease"),),
        "multiclass": (Label("rhythm", "multiclass", "", classes=("SR", "AF", "VT")),),
        "multilabel": (Label("a", "binary", ""), Label("b", "binary", "")),
        "regression": (Label("x", "regression", "", "mL"), Label("y", "regression", "", "%")),
    }[kind]
    statistics = {"x": (100.0, 2.0), "y": (-4.0, 3.0)}
    stage = Stage("finetune/x/0", "finetune", {}, 0, "x")
    host = jax.device_get(({**params, "head": head}, extra))
    return Trained(stage, "", objective, views, *host, labels, statistics, {}), labels
