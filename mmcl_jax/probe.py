"""What frozen embeddings know: a linear probe and k nearest neighbours, for each label.

    python -m mmcl_jax.probe --run RUN[:STAGE] --cohort COHORT

Cheap companions of fine-tuning, on the same records: balanced training sets for a disease, settings
chosen on the validation split, results on all of `val` and `test`. The linear probe is a logistic
regression or a ridge regression on standardised embeddings. The neighbours are those of highest
cosine similarity, and their mean label is the prediction.

Writes RUN/probe/<stage>/metrics.csv, predictions/ as those of `evaluate`, and probe.json with what
was chosen. Nothing is random but the choice of balanced and partial training sets.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float, Float32, Int

from mmcl_jax.data import pipeline
from mmcl_jax.data.cohort import Cohort, check_settings, open_cohort
from mmcl_jax.data.targets.labels import DEMOGRAPHICS, Label
from mmcl_jax.data.targets.shuffled_labels import shuffle_labels
from mmcl_jax.distributed import is_first
from mmcl_jax.experiment import Experiment
from mmcl_jax.inference import BATCH_SIZE, Program, TrainedRun
from mmcl_jax.predictions import gather, metric_rows, save, to_csv, validation_score
from mmcl_jax.run_dir import write_atomically

SPLITS = ("train", "val", "test")
# Inverse strength of the logistic regression, strength of the ridge, number of neighbours.
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
PENALTIES = (1e-1, 1.0, 10.0, 1e2, 1e3, 1e4, 1e5)
NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)

# Training embeddings and labels (without missing ones) in; for each setting a prediction of others.
Predict = Callable[[Float[np.ndarray, "m D"]], Float[np.ndarray, "m K"]]


def run(
    experiment: Experiment,
    *,
    stage: str = "",
    labels: Sequence[str] = (),
    balanced: bool = True,
    fraction: float = 1.0,
    selection_seed: int = 0,
    resamples: int = 1000,
    cohort: Cohort | None = None,
    shuffle: int | None = None,
    output: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Probes the ECG encoder of a finished stage.

    Args:
        experiment: the run.
        stage: its name; '' for the contrastive stage, else that of masked data modelling.
        labels: labels or groups of the cohort; all but the demographics where none is named.
        balanced, fraction, selection_seed: training records, as of a stage of fine-tuning.
        resamples: of the bootstrap.
        cohort: None for that of the run.
        shuffle: for a leak test the seed by which training and validation records get each other's
            labels; None to leave them as they are.
        output: folder; None for RUN/probe/<stage>, with what else is not as by default in its name.

    Returns:
        JSON summary.

    Raises:
        ValueError: the stage is not done, or there is no such label.
        CohortError: the cohort was preprocessed otherwise than the records of the training.
    """
    cohort = cohort or experiment.cohort
    other_cohort = cohort.path.resolve() != experiment.cohort_path.resolve()
    if shuffle is not None:
        cohort = shuffle_labels(cohort, shuffle)
    program = TrainedRun(experiment, stage).embedder
    trained = program.groups[0].members[0]
    check_settings(cohort, {"ecg": trained.settings})
    if output is None:
        names = [trained.stage.name.replace("/", "__")]
        names += [cohort.path.resolve().name] if other_cohort else []
        names += [] if balanced else ["unbalanced"]
        names += [f"{100 * fraction:g}pct"] if fraction < 1 else []
        names += [f"selection_{selection_seed}"] if selection_seed else []
        names += [] if shuffle is None else [f"shuffled_labels_{shuffle}"]
        folder = experiment.run.make(f"probe/{'__'.join(names)}")
    else:
        folder = output
        folder.mkdir(parents=True, exist_ok=True)
    rows = {split: pipeline.select(cohort, split) for split in SPLITS}
    embedding = {split: embed_rows(program, cohort, split, rows[split]) for split in SPLITS}
    options = {"balanced": balanced, "fraction": fraction, "seed": selection_seed}
    (folder / "predictions").mkdir(exist_ok=True)
    about = folder / "probe.json"
    if is_first():
        # Written last; without it no report counts what is here.
        about.unlink(missing_ok=True)
    table, chosen, written = [], {}, set()
    for target in _targets(cohort, labels):
        for probe in (linear, neighbours):
            name = f"{experiment.config['name']} {probe.__name__}"
            parts, settings = _fit(cohort, target, probe, rows, embedding, options)
            arrays = gather(
                cohort, target.labels, parts, target=target.name, seed=trained.stage.seed
            )
            file = folder / "predictions" / f"{probe.__name__}__{target.name}.npz"
            save(file, arrays)
            written.add(file)
            table += metric_rows(name, target.labels, arrays, resamples)
            chosen.setdefault(probe.__name__, {}).update(settings)
    if is_first():
        for file in set((folder / "predictions").glob("*.npz")) - written:
            # Of labels that were asked for before.
            file.unlink()
    if shuffle is None and experiment.config["data"].get("shuffle_labels", False):
        shuffle = experiment.config["seed"]
    content = {
        "stage": trained.stage.name,
        "id": trained.id,
        "cohort": str(cohort.path.resolve()),
        "other_cohort": other_cohort,
        "shuffled": shuffle is not None,
        "shuffle_seed": shuffle,
        "selection": options,
        "chosen": chosen,
    }
    write_atomically(folder / "metrics.csv", to_csv(table))
    write_atomically(about, json.dumps(content, indent=2, sort_keys=True) + "\n")
    return {"results": len(table), "folder": str(folder)}


def embed_rows(
    program: Program, cohort: Cohort, split: str, rows: Int[np.ndarray, " n"]
) -> Float32[np.ndarray, "n D"]:
    """Embeddings of some records of a split."""
    source = cohort.source(split, ("ecg",))
    parts = []
    for start in range(0, len(rows), BATCH_SIZE):
        ecg = [source[int(row)]["ecg"] for row in rows[start : start + BATCH_SIZE]]
        parts.append(program(np.stack(ecg)).astype(np.float32))
    return np.concatenate(parts)


def linear(
    embedding: Float32[np.ndarray, "n D"], truth: Float[np.ndarray, " n"], label: Label
) -> Iterator[tuple[float, Predict]]:
    """Logistic regression by inverse penalty, or ridge regression by penalty."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if label.kind == "regression":
        for penalty in PENALTIES:
            model = make_pipeline(StandardScaler(), Ridge(alpha=penalty)).fit(embedding, truth)
            yield penalty, lambda x, model=model: model.predict(x)[:, None]
        return
    classes = truth.astype(int)
    for inverse in INVERSE_PENALTIES:
        logistic = LogisticRegression(C=inverse, max_iter=5000)
        model = make_pipeline(StandardScaler(), logistic).fit(embedding, classes)
        yield inverse, lambda x, model=model: _columns(model.predict_proba(x), model, label)


def neighbours(
    embedding: Float32[np.ndarray, "n D"], truth: Float[np.ndarray, " n"], label: Label
) -> Iterator[tuple[float, Predict]]:
    """Mean label of the k records with the highest cosine similarity, by k."""
    from sklearn.neighbors import NearestNeighbors

    values = truth[:, None]
    if label.kind == "multiclass":
        values = (values == np.arange(len(label.classes))[None, :]).astype(np.float64)
    counts = [k for k in NEIGHBOURS if k <= len(truth)]
    index = NearestNeighbors(n_neighbors=counts[-1], metric="cosine", algorithm="brute")
    index.fit(embedding)
    found: dict[int, np.ndarray] = {}

    def nearest(x: Float32[np.ndarray, "m D"]) -> Int[np.ndarray, "m k"]:
        # The same arrays come for every k.
        if id(x) not in found:
            found[id(x)] = index.kneighbors(x, return_distance=False)
        return found[id(x)]

    for k in counts:
        yield k, lambda x, k=k: values[nearest(x)[:, :k]].mean(axis=1)


@dataclasses.dataclass(frozen=True)
class _Target:
    """Labels of one kind that are reported together; each is probed alone."""

    name: str
    labels: tuple[Label, ...]


def _targets(cohort: Cohort, names: Sequence[str]) -> list[_Target]:
    """A target per class label, and one per group of regression labels."""
    found = [label for label in cohort.labels if label not in DEMOGRAPHICS]
    if names:
        found = list(dict.fromkeys(label for name in names for label in cohort.target(name)))
    groups: dict[str, list[Label]] = {}
    for label in found:
        groups.setdefault(label.group if label.kind == "regression" else label.name, []).append(
            label
        )
    return [_Target(name, tuple(labels)) for name, labels in groups.items()]


def _fit(
    cohort: Cohort,
    target: _Target,
    probe: Callable,
    rows: Mapping[str, Int[np.ndarray, " n"]],
    embedding: Mapping[str, Float32[np.ndarray, "n D"]],
    options: Mapping[str, Any],
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, Any]]:
    """Predictions of `val` and `test` by the best setting of each label, and these settings."""
    outputs: dict[str, list[np.ndarray]] = {"val": [], "test": []}
    chosen = {}
    for label in target.labels:
        truth = {s: cohort.table(s)["labels"][:, cohort.labels.index(label)] for s in rows}
        balanced = options["balanced"] and label.kind == "binary"
        train = pipeline.select(
            cohort, "train", target=label.name, **{**options, "balanced": balanced}
        )
        place = np.searchsorted(rows["train"], train)
        best, score = None, -np.inf
        for setting, predict in probe(embedding["train"][place], truth["train"][train], label):
            found = predict(embedding["val"])
            metric, value = validation_score([label], truth["val"][rows["val"]][:, None], found)
            if value > score:
                best, score, kept = setting, value, {"val": found, "predict": predict}
        if best is None:
            raise ValueError(
                f"{cohort.path}: {metric} of {label.name} is undefined, because the split has one "
                "value only; name other labels"
            )
        print(f"  {label.name}, {probe.__name__}: {best:g}, {metric} {score:.4f}", flush=True)
        chosen[label.name] = {
            "setting": best,
            "select": metric,
            "best": score,
            "records": len(train),
        }
        outputs["val"].append(kept["val"])
        outputs["test"].append(kept["predict"](embedding["test"]))
    parts = {split: (rows[split], np.concatenate(x, axis=1)) for split, x in outputs.items()}
    return parts, chosen


def _columns(
    probability: Float[np.ndarray, "m C"], model: Any, label: Label
) -> Float[np.ndarray, "m K"]:
    """Of the positive class, or of every class of the label, also of those never seen."""
    if label.kind == "binary":
        return probability[:, list(model.classes_).index(1)][:, None]
    every = np.zeros((len(probability), len(label.classes)))
    every[:, model.classes_] = probability
    return every


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mmcl_jax.probe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run", required=True, metavar="RUN[:STAGE]",
        help="run directory, and a finished stage of it with an ECG encoder; default: the "
        "contrastive stage, else that of masked data modelling",
    )  # fmt: skip
    parser.add_argument("--cohort", metavar="DIR", help="default: the cohort of the run")
    parser.add_argument(
        "--labels", default="", metavar="CAD,LV,...",
        help="labels or groups; default: all but the demographics",
    )  # fmt: skip
    parser.add_argument(
        "--unbalanced", action="store_true", help="train on all records of a binary label"
    )
    parser.add_argument(
        "--fraction", type=float, default=1.0, help="share of the training records; default: 1"
    )
    parser.add_argument(
        "--selection-seed", type=int, default=0, metavar="SEED",
        help="by which balanced and partial training sets are drawn; default: 0",
    )  # fmt: skip
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument(
        "--shuffle-labels", type=int, nargs="?", const=0, metavar="SEED",
        help="a leak test: training and validation records get each other's labels, so results on "
        "the test split must be those of chance, in the mean over several seeds; default: 0",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=pathlib.Path, metavar="DIR",
        help="default: RUN/probe/STAGE, with what else is not as by default in the name",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    from mmcl_jax.command import errors_in_one_line

    # Orbax logs every file that it reads.
    logging.set_verbosity(logging.ERROR)
    with errors_in_one_line():
        path, stage = options.run, ""
        if not pathlib.Path(path).is_dir():
            path, _, stage = path.rpartition(":")
        experiment = Experiment.open(path)
        summary = run(
            experiment,
            stage=stage,
            labels=tuple(name for name in options.labels.split(",") if name),
            balanced=not options.unbalanced,
            fraction=options.fraction,
            selection_seed=options.selection_seed,
            resamples=options.resamples,
            cohort=open_cohort(options.cohort) if options.cohort else None,
            shuffle=options.shuffle_labels,
            output=options.output,
        )
        print(", ".join(f"{name} {value}" for name, value in summary.items()))


if __name__ == "__main__":
    main()
