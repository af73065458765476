"""The tabular baseline: XGBoost on age, sex, weight and height (paper, section IV-D and Table I).

    python -m mmcl_jax.main --config=configs/baselines.py:tabular --config.data.path=COHORT \
        --workdir=runs/tabular

A stage with `objective` tabular trains boosted trees where other stages train networks: on the same
records, for the same targets and seeds, with the same metrics. Cross-entropy is the loss of a
disease, the squared error that of a phenotype; every label has trees of its own.

The grid of the stage's `sweep` is searched with its first seed, and the point with the best metric
on the validation split is trained with every seed. The seed draws the records of each tree, so with
a subsample of 1 all seeds agree. Training is deterministic: one thread per model, and equal inputs
give equal bits with one version of XGBoost. A missing age, sex, weight or height is NaN, for which
XGBoost learns at each split which side to take.
"""

import concurrent.futures
import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from mmcl_jax import stage_settings, stages
from mmcl_jax.data import pipeline
from mmcl_jax.data.cohort import Cohort, open_cohort
from mmcl_jax.data.preparing.loading import default_workers
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.predictions import gather, validation_score
from mmcl_jax.run_dir import write_atomically
from mmcl_jax.stages import Stage
from mmcl_jax.sweep import grid as sweep_grid

if TYPE_CHECKING:
    from mmcl_jax.experiment import Experiment

INPUTS = ("age", "sex", "weight", "height")
# Number of trees, their depth, learning rate, share of the records that each tree is grown on.
AXES = ("rounds", "max_depth", "learning_rate", "subsample")
_LOSSES = {
    "binary": "binary:logistic",
    "multiclass": "multi:softprob",
    "regression": "reg:squarederror",
}


def check(stage: Stage) -> None:
    """What can be known before anything is trained.

    Raises:
        ValueError: settings or a grid that boosted trees do not have, or no target.
    """
    where, config = f"stages.{stage.group}", stage.config
    _xgboost()
    if not stage.target:
        raise ValueError(f"{where} has no targets; boosted trees predict labels")
    if unknown := sorted(set(config["settings"]) - {"inputs"}):
        raise ValueError(f"{where}.settings has no field {', '.join(unknown)}; it has inputs")
    grid = config["sweep"].get("grid", {})
    if set(grid) != set(AXES) or not all(len(values) for values in grid.values()):
        raise ValueError(
            f"{where}.sweep.grid has {', '.join(grid) or 'no axis'}, expected values for "
            f"{', '.join(AXES)}"
        )


def train(experiment: "Experiment", stage: Stage) -> dict[str, Any]:
    """Trains the trees of one target and seed, after a search that the seeds of a target share.

    Returns:
        JSON summary, with the `chosen` point and its validation metric as `best`.
    """
    peers = [s for s in experiment.stages if (s.group, s.target) == (stage.group, stage.target)]
    data = _Data(experiment, stage)
    best = _search(experiment, stage, data, peers[0].seed)
    point = best["chosen"]
    boosters = data.fit(point, stage.seed)
    prediction = data.predict(boosters, "val", data.rows["val"])
    folder = experiment.run.make_stage(stage.name)
    for number, booster in enumerate(boosters):
        booster.save_model(folder / f"{number}.ubj")
    metric, value = data.score(prediction)
    return {
        "chosen": point,
        "select": metric,
        "best": value,
        "records": len(data.rows["train"]),
        "inputs": list(data.inputs),
    }


def predict_labels(
    experiment: "Experiment", stage: Stage, splits: Sequence[str]
) -> dict[str, np.ndarray]:
    """Predictions of a finished stage for every record of `splits`, see `predictions.gather`."""
    xgboost = _xgboost()
    data = _Data(experiment, stage)
    folder = experiment.run.stage(stage.name)
    boosters = [
        xgboost.Booster(model_file=folder / f"{number}.ubj") for number in range(len(data.labels))
    ]
    parts = {}
    for split in splits:
        rows = pipeline.select(experiment.cohort, split, fields=tuple(stage.config["fields"]))
        parts[split] = rows, data.predict(boosters, split, rows)
    return gather(experiment.cohort, data.labels, parts, target=stage.target, seed=stage.seed)


class _Data:
    """Inputs and labels of a target."""

    def __init__(self, experiment: "Experiment", stage: Stage):
        cohort = experiment.cohort
        self.labels = stages.target_labels(stage, cohort)
        self.inputs = tuple(stage.config["settings"].get("inputs", INPUTS))
        self._columns = [cohort.labels.index(label) for label in self.labels]
        self._cohort = cohort
        # As stored: what a leak test shuffles are the labels, not the inputs.
        self._stored = open_cohort(cohort.path)
        _check_inputs(self._stored, self.inputs, self.labels)
        train, val = stages.select_rows(stage, cohort, self.labels)
        self.rows = {"train": train, "val": val}

    def fit(self, point: Mapping[str, float], seed: int) -> list[Any]:
        """A booster per label; records that lack the label are left out."""
        xgboost = _xgboost()
        rows = self.rows["train"]
        inputs, truth = self._inputs("train", rows), self._truth("train")
        fitted = []
        for label, values in zip(self.labels, truth.T, strict=True):
            known = ~np.isnan(values)
            parameters = {
                "objective": _LOSSES[label.kind],
                "max_depth": int(point["max_depth"]),
                "learning_rate": point["learning_rate"],
                "subsample": point["subsample"],
                "tree_method": "hist",
                "seed": seed,
                # Sums in one order, whatever the machine.
                "nthread": 1,
            }
            if label.kind == "multiclass":
                parameters["num_class"] = len(label.classes)
            table = xgboost.DMatrix(inputs[known], values[known], missing=np.nan, nthread=1)
            fitted.append(xgboost.train(parameters, table, int(point["rounds"])))
        return fitted

    def predict(
        self, boosters: Sequence[Any], split: str, rows: np.ndarray, rounds: int = 0
    ) -> Float[np.ndarray, "n K"]:
        """Probabilities or values in the unit of the label, by the first `rounds` (0: all)."""
        table = _xgboost().DMatrix(self._inputs(split, rows), missing=np.nan, nthread=1)
        outputs = [booster.predict(table, iteration_range=(0, rounds)) for booster in boosters]
        return np.concatenate([x.reshape(len(rows), -1) for x in outputs], axis=1)

    def score(self, prediction: Float[np.ndarray, "n K"]) -> tuple[str, float]:
        """Name and value of the metric on the validation split."""
        metric, value = validation_score(self.labels, self._truth("val"), prediction)
        if np.isnan(value):
            names = ", ".join(label.name for label in self.labels)
            raise ValueError(
                f"{self._cohort.path}: {metric} of {names} is undefined, because the split has one "
                "value only"
            )
        return metric, value

    def _inputs(self, split: str, rows: np.ndarray) -> Float[np.ndarray, "n V"]:
        columns = [self._stored.labels.index(x) for x in self._stored.target(self.inputs)]
        return self._stored.table(split)["labels"][rows][:, columns]

    def _truth(self, split: str) -> Float[np.ndarray, "n L"]:
        return self._cohort.table(split)["labels"][self.rows[split]][:, self._columns]


def _search(experiment: "Experiment", stage: Stage, data: _Data, seed: int) -> dict[str, Any]:
    """The best point of the grid, from best.json where the search was done with these settings."""
    folder = experiment.run.make(f"sweep/{stage.group}/{stage.target}")
    settings = _settings(experiment, stage, seed)
    file = folder / "best.json"
    if file.is_file():
        best = json.loads(file.read_text())
        if lines := stage_settings.changed(best["settings"], settings):
            raise ValueError(
                f"{folder} holds a search with other settings: {'; '.join(lines)}. Use a new "
                "--workdir, or delete the folder to search again"
            )
        return best
    points = sweep_grid.points(stage.config["sweep"]["grid"])
    print(f"  {len(data.rows['train'])} training records, {len(points)} points", flush=True)
    # The first trees of a longer run are those of a shorter one.
    groups: dict[tuple, list[int]] = {}
    for number, point in enumerate(points):
        groups.setdefault(tuple(point[x] for x in AXES if x != "rounds"), []).append(number)

    def search(numbers: Sequence[int]) -> dict[int, tuple[str, float]]:
        rounds = {number: int(points[number]["rounds"]) for number in numbers}
        boosters = data.fit(points[max(rounds, key=rounds.get)], seed)
        val = data.rows["val"]
        return {n: data.score(data.predict(boosters, "val", val, rounds[n])) for n in numbers}

    # XGBoost works outside the interpreter lock.
    with concurrent.futures.ThreadPoolExecutor(default_workers()) as pool:
        found = {
            n: score for part in pool.map(search, groups.values()) for n, score in part.items()
        }
    metric, scores = found[0][0], [found[number][1] for number in range(len(points))]
    chosen = sweep_grid.choose({number: [score] for number, score in enumerate(scores)}, 1)
    best = {
        "point": chosen,
        "points": len(points),
        "chosen": points[chosen],
        "select": metric,
        "search": [scores[chosen]],
        "settings": settings,
    }
    write_atomically(folder / "results.csv", _table(points, scores, metric))
    write_atomically(file, json.dumps(best, indent=2, sort_keys=True) + "\n")
    named = ", ".join(f"{axis} {value:g}" for axis, value in points[chosen].items())
    print(f"  best of {len(points)} points: {named}; {metric} {scores[chosen]:.4f}", flush=True)
    return best


def _settings(experiment: "Experiment", stage: Stage, seed: int) -> dict[str, Any]:
    """All that a search depends on, as JSON gives it back."""
    data = {name: experiment.config["data"].get(name) for name in _DATA}
    return json.loads(json.dumps({"stage": dict(stage.config), "data": data, "seed": seed}))


_DATA = ("path", "synthetic", "shuffle_labels")


def _table(points: Sequence[Mapping[str, float]], scores: Sequence[float], metric: str) -> str:
    lines = [",".join((*AXES, metric))]
    for point, score in zip(points, scores, strict=True):
        lines.append(",".join([*(f"{point[axis]:g}" for axis in AXES), repr(score)]))
    return "\n".join(lines) + "\n"


def _check_inputs(cohort: Cohort, inputs: Sequence[str], labels: Sequence[Label]) -> None:
    known = {label.name for label in cohort.labels}
    if missing := [name for name in inputs if name not in known]:
        raise ValueError(
            f"{cohort.path} has no label {', '.join(missing)}, which the tabular baseline reads; "
            f"prepare the cohort with {', '.join(inputs)}, or name others in settings.inputs"
        )
    if both := [label.name for label in labels if label.name in inputs]:
        raise ValueError(
            f"the tabular baseline cannot predict {', '.join(both)}, which it reads; take it out "
            "of the targets or of settings.inputs"
        )


@functools.cache
def _xgboost():
    try:
        import xgboost
    except ImportError as error:
        raise ValueError(
            'the tabular baseline needs XGBoost: pip install "mmcl_jax[tabular]"'
        ) from error
    return xgboost
