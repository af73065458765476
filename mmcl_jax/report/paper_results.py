"""Results of all methods, from the predictions that their runs hold.

Every metric is computed here from the predictions of the test split, never taken from a run's
metrics.csv, so that all numbers of the tables, figures and tests come from the same records.
"""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from mmcl_jax.data.targets.labels import PHENOTYPES
from mmcl_jax.report.inputs import Predictions, Run, read_run
from mmcl_jax.report.paper_runs import FINE_TUNED, Key, models, used
from mmcl_jax.statistics.metrics import binary_results, regression_results

GROUP_MEMBERS = {
    group: tuple(label.name for label in PHENOTYPES if label.group == group)
    for group in dict.fromkeys(label.group for label in PHENOTYPES)
}


@dataclasses.dataclass(frozen=True)
class Scores:
    """Predictions of one label for the test records that have it, by S training seeds.

    Attributes:
        kind: `binary`, `multiclass` (one class against the others) or `regression`.
        trained_on: records of the training sets, where the runs say.
    """

    key: Key
    label: str
    kind: str
    unit: str
    seeds: tuple[int, ...]
    record: Shaped[np.ndarray, " N"]
    subject: Shaped[np.ndarray, " N"]
    truth: Float[np.ndarray, " N"]
    prediction: Float[np.ndarray, "S N"]
    trained_on: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Value:
    """Mean over training seeds and sample standard deviation, which is NaN for one seed."""

    per_seed: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.per_seed)

    @property
    def sd(self) -> float:
        return statistics.stdev(self.per_seed) if len(self.per_seed) > 1 else float("nan")


class Results:
    """Runs by method, and what their models predict.

    Attributes:
        runs: those that count.
        unused: runs without a fine-tuned model from which none of their method takes anything,
            such as candidates of a learning rate that was not chosen.

    Raises:
        ValueError: a run without a name, two models of the same method, label, share of labels and
            seed, or runs that have no test record in common or disagree on its label.
    """

    def __init__(self, runs: Sequence[pathlib.Path]):
        every = [read_run(path) for path in runs]
        for run in every:
            if not isinstance(run.config.get("name"), str) or not run.config["name"]:
                raise ValueError(
                    f"{run.path / 'config.json'}: field name is {run.config.get('name')!r}, "
                    "expected the name of the method, such as 'mmcl' or 'supervised'"
                )
        self.runs = used(every)
        counted = {run.path for run in self.runs}
        self.unused = [run for run in every if run.path not in counted]
        self._members: dict[tuple[Key, str], list[tuple[Run, Predictions]]] = {}
        for run in self.runs:
            for key, predictions in models(run):
                for label in predictions.names:
                    self._members.setdefault((key, label), []).append((run, predictions))
        for (key, label), members in self._members.items():
            _check_seeds(key, label, members)
        self._scores: dict[tuple[Key, str], Scores | None] = {}
        first: dict[str, Scores] = {}
        for key, label in self._members:
            if found := self.scores(key, label):
                shared_records([first.setdefault(label, found), found])

    @property
    def keys(self) -> list[Key]:
        return list(dict.fromkeys(key for key, _ in self._members))

    def labels(self, key: Key) -> list[str]:
        """What the models of `key` predict."""
        return [label for other, label in self._members if other == key]

    def scores(self, key: Key, label: str) -> Scores | None:
        """None where no model predicts the label, or no test record has it."""
        if (key, label) not in self._scores:
            members = self._members.get((key, label), [])
            self._scores[key, label] = _scores(key, label, members) if members else None
        return self._scores[key, label]

    def value(self, key: Key, target: str, metric: str) -> Value | None:
        """A metric of a label, or its mean over the labels of a group, for each seed.

        None for a group where one of `members` is not predicted or its metric is undefined: means
        over different labels do not compare.
        """
        found = [self.scores(key, label) for label in self.members(target)]
        return mean_value(found, metric) if all(found) else None

    def members(self, target: str) -> tuple[str, ...]:
        """The labels of a group that any run predicts for a test record, or the label itself."""
        names = GROUP_MEMBERS.get(target, (target,))
        return tuple(name for name in names if any(self.scores(key, name) for key in self.keys))

    def n(self, key: Key, target: str) -> list[int]:
        """Test records of a label, or of each label of a group."""
        found = [self.scores(key, label) for label in self.members(target)]
        return [len(scores.truth) for scores in found if scores]

    def positives(self, key: Key, target: str) -> list[int]:
        """Test records with label 1 of a label with classes."""
        scores = self.scores(key, target)
        return [] if scores is None or scores.kind == "regression" else [int(scores.truth.sum())]

    @property
    def fine_tuned(self) -> list[Key]:
        return [key for key in self.keys if key.protocol == FINE_TUNED]

    def fractions(self) -> list[float]:
        """Shares of labels that models were fine-tuned with, the largest first."""
        return sorted({key.fraction for key in self.fine_tuned}, reverse=True)


def metric_of(scores: Scores, metric: str, seed: int) -> float:
    """`auroc`, `ap`, `r` or another metric of `metrics` of model `seed`."""
    compute = regression_results if scores.kind == "regression" else binary_results
    return compute(scores.truth, scores.prediction[seed], resamples=0)[metric].value


def mean_value(found: Sequence[Scores], metric: str) -> Value | None:
    """The mean over labels for each seed that all of them have; None where one is undefined."""
    seeds = common(scores.seeds for scores in found)
    table = np.array(
        [
            [metric_of(scores, metric, scores.seeds.index(seed)) for scores in found]
            for seed in seeds
        ]
    ).reshape(len(seeds), len(found))
    defined = table.size and np.isfinite(table).all()
    return Value(tuple(table.mean(axis=1).tolist())) if defined else None


def common(lists: Iterable[Sequence]) -> list:
    """What all have, in the order of the first."""
    first, *rest = [list(values) for values in lists] or [[]]
    sets = [set(values) for values in rest]
    return [value for value in first if all(value in others for others in sets)]


def shared_records(found: Sequence[Scores]) -> list[Scores]:
    """The same scores for the records that all have, in the same order.

    Raises:
        ValueError: there is none, or the label of one differs: the runs saw different cohorts.
    """
    records = common(scores.record.tolist() for scores in found)
    if not records:
        names = ", ".join(sorted({scores.key.method for scores in found}))
        raise ValueError(
            f"{found[0].label}: the runs of {names} have no test record in common: they come from "
            "different cohorts. Give --workdir a folder with runs of one cohort"
        )
    shared = []
    for scores in found:
        row = {record: number for number, record in enumerate(scores.record.tolist())}
        rows = np.array([row[record] for record in records], int)
        shared.append(
            dataclasses.replace(
                scores,
                record=scores.record[rows],
                subject=scores.subject[rows],
                truth=scores.truth[rows],
                prediction=scores.prediction[:, rows],
            )
        )
    for scores in shared[1:]:
        differs = np.flatnonzero(scores.truth != shared[0].truth)
        if differs.size:
            raise ValueError(
                f"{scores.label} of test record {records[differs[0]]!r} is "
                f"{shared[0].truth[differs[0]]:g} in the runs of {shared[0].key.method} and "
                f"{scores.truth[differs[0]]:g} in those of {scores.key.method}: they come from "
                "different cohorts. Give --workdir a folder with runs of one cohort"
            )
    return shared


def _check_seeds(key: Key, label: str, members: Sequence[tuple[Run, Predictions]]) -> None:
    seen: dict[int, str] = {}
    for run, predictions in members:
        where = f"{run.path} ({predictions.path.relative_to(run.path)})"
        if predictions.seed in seen:
            raise ValueError(
                f"method {key.method}, {key.protocol}, {100 * key.fraction:g} % of the labels: "
                f"{label} is predicted twice with seed {predictions.seed}, by "
                f"{seen[predictions.seed]} and {where}. Keep one of them below --workdir"
            )
        seen[predictions.seed] = where


def _scores(key: Key, label: str, members: Sequence[tuple[Run, Predictions]]) -> Scores | None:
    members = sorted(members, key=lambda member: member[1].seed)
    parts = []
    for run, predictions in members:
        column = predictions.names.index(label)
        truth = predictions.label[:, column]
        rows = np.flatnonzero((predictions.split == "test") & ~np.isnan(truth))
        if not rows.size:
            return None
        records = _trained_on(run, predictions.stage)
        parts.append(
            Scores(
                key=key,
                label=label,
                kind=predictions.kinds[column],
                unit=predictions.units[column],
                seeds=(predictions.seed,),
                record=predictions.record[rows],
                subject=predictions.subject[rows],
                truth=truth[rows],
                prediction=predictions.prediction[rows, column][None],
                trained_on=(records,) if records else (),
            )
        )
    parts = shared_records(parts)
    return dataclasses.replace(
        parts[0],
        seeds=tuple(part.seeds[0] for part in parts),
        prediction=np.concatenate([part.prediction for part in parts]),
        trained_on=tuple(sorted({n for part in parts for n in part.trained_on})),
    )


def _trained_on(run: Run, stage: str) -> int | None:
    """Training records of a stage, as its done.json says."""
    file = run.path / "stages" / stage / "done.json"
    found = json.loads(file.read_text()).get("records") if file.is_file() else None
    return found if isinstance(found, int) else None
