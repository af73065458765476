"""Made-up run directories for the tests of the reports."""

import csv
import json

import numpy as np

from mmcl_jax.data.targets.labels import PHENOTYPES, Label
from mmcl_jax.report.inputs import METRIC_COLUMNS
from mmcl_jax.statistics import metrics

UNITS = {"LVEDV": "mL", "LVEF": "%"}


def write_run(path, *, n=60, seeds=(0, 1), phenotypes=UNITS, name="mmcl", side=7, subjects=1):
    """A run directory as training, evaluation and interpretation leave it, with random numbers."""
    generator = np.random.default_rng(0)
    (path / "evaluate" / "predictions").mkdir(parents=True)
    (path / "interpret").mkdir()
    config = {"name": name, "data": {"path": "", "synthetic": {"subjects": n}}, "seed": 0}
    (path / "config.json").write_text(json.dumps(config))
    environment = {
        "git_revision": "0123abcd",
        "command": ["main.py", "--workdir=run"],
        "devices": ["cpu: cpu"] * 8,
        "packages": {"jax": "0.10.2", "flax": "0.12.8"},
    }
    (path / "environment.json").write_text(json.dumps(environment))
    stages = ["mdm", "mmcl", *(f"finetune/CAD/seed{seed}" for seed in seeds)]
    _write_log(path / "metrics.jsonl", stages, generator)
    rows = []
    for seed in seeds:
        disease = _predictions(generator, n, {"CAD": ""}, "binary", "CAD", seed)
        volumes = _predictions(generator, n, phenotypes, "regression", "LV", seed)
        for arrays in (disease, volumes):
            stage = f"finetune/{arrays['target']}/seed{seed}"
            file = path / "evaluate" / "predictions" / f"{stage.replace('/', '__')}.npz"
            np.savez(file, **arrays)
            rows += _rows(stage, arrays)
    ecg = generator.normal(size=(n, 16))
    found = metrics.retrieval_results(ecg, ecg + generator.normal(size=(n, 16)), resamples=50)
    rows += [_row("mmcl", "pairs", "test", name, result, 0) for name, result in found.items()]
    with (path / "evaluate" / "metrics.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([METRIC_COLUMNS, *rows])
    _write_similarity(path / "interpret", generator, subjects, side)
    return path


def _write_log(path, stages, generator):
    lines = []
    for stage in stages:
        for step in range(0, 201, 10):
            line = {"stage": stage, "step": step, "epoch": step / 20, "time": 1.7e9 + 2 * step}
            line["train/loss"] = 0.3 + np.exp(-step / 60) + 0.02 * generator.normal()
            line["train/learning_rate"] = 1e-4 * np.sin(np.pi * (step + 5) / 210)
            if step % 40 == 0:
                line["val/loss"] = 0.35 + np.exp(-step / 70)
                if stage != "mdm":
                    metric = "val/recall@1" if stage == "mmcl" else "val/auroc"
                    line[metric] = 0.75 - 0.25 * np.exp(-step / 50) + 0.01 * generator.normal()
            lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n")


def _predictions(generator, n, units, kind, target, seed):
    k = len(units)
    latent = np.random.default_rng(1).normal(size=(n, k))
    guess = 0.7 * latent + 0.6 * generator.normal(size=(n, k))
    if kind == "binary":
        label, prediction = (latent > 1).astype(np.float64), 1 / (1 + np.exp(-guess))
    else:
        label, prediction = 140 + 30 * latent, 140 + 30 * 0.7 * guess
        label[::7] = np.nan
    return {
        "record": np.array([f"r{i:05d}" for i in range(n)]),
        "subject": np.array([f"s{i:05d}" for i in range(n)]),
        "split": np.array(["test"] * (n - 5) + ["val"] * 5),
        "names": np.array(list(units)),
        "kinds": np.array([kind] * k),
        "units": np.array(list(units.values())),
        "label": label,
        "prediction": prediction,
        "seed": seed,
        "target": target,
    }


def _rows(stage, arrays):
    test = arrays["split"] == "test"
    rows = []
    for i, (name, kind) in enumerate(zip(arrays["names"], arrays["kinds"], strict=True)):
        function = metrics.binary_results if kind == "binary" else metrics.regression_results
        found = function(arrays["label"][test, i], arrays["prediction"][test, i], resamples=50)
        for metric, result in found.items():
            rows.append(_row(stage, name, "test", metric, result, arrays["seed"]))
    return rows


def _row(model, target, split, metric, result, seed):
    return [model, target, split, metric, result.value, result.low, result.high, result.n, seed]


def _write_similarity(folder, generator, subjects, side):
    row, column = np.mgrid[:210, :210]
    ring = np.abs(np.hypot(row - 105, column - 105) - 45)
    frame = np.clip(np.exp(-((ring / 12) ** 2)) + 0.15 * generator.random((210, 210)), 0, 1)
    frames = np.tile(frame[None, :, :, None], (subjects, 1, 1, 3))
    whole = np.full_like(frames, 0.1)
    nearest = (np.arange(78) + 0.5) * 210 // 78
    whole[:, 44:122, 68:146] = frames[:, nearest.astype(int)][:, :, nearest.astype(int)]
    centre = np.hypot(*(np.mgrid[:side, :side] - (side - 1) / 2))
    similarity = 0.7 - 0.25 * centre + 0.05 * generator.normal(size=(subjects, side, side))
    records = np.array([f"r{i:05d}" for i in range(subjects)])
    box = np.tile([44, 68, 78, 78], (subjects, 1))
    np.savez(
        folder / "cmr_similarity.npz",
        frames=frames, whole=whole, box=box, similarity=similarity, record=records,
    )  # fmt: skip
    time = np.arange(2500) / 500
    beat = np.exp(-((((time % 0.8) - 0.3) / 0.012) ** 2)) * 4
    ecg = beat[None, None] * np.linspace(-1, 1.5, 12)[None, :, None]
    ecg = ecg + 0.1 * generator.normal(size=(subjects, 12, 2500))
    patches = np.abs(ecg).reshape(subjects, 12, 25, 100).max(-1) / 6
    np.savez(folder / "ecg_similarity.npz", ecg=ecg, similarity=patches, record=records)


def write_method(
    path,
    method,
    skill,
    *,
    n=150,
    seeds=(0, 1, 2),
    fraction=1.0,
    targets=("CAD", "AF", "DM"),
    group="finetune",
    frozen=(),
    maps=False,
    subjects=None,
):
    """A run directory with the predictions of one method, better the larger `skill` is.

    The subjects and their labels are the same for all methods; every prediction differs by seed.
    """
    folder = path / "evaluate" / "predictions"
    folder.mkdir(parents=True)
    stage = {"objective": "supervised", "fraction": fraction, "frozen": list(frozen)}
    data = {"path": "", "synthetic": {"subjects": n}}
    config = {"name": method, "data": data, "stages": {group: stage}, "order": [group]}
    (path / "config.json").write_text(json.dumps(config))
    environment = {"git_revision": "0123abcd", "devices": ["cpu: cpu"]}
    (path / "environment.json").write_text(json.dumps(environment))
    for number, target in enumerate(targets):
        for seed in seeds:
            arrays = _made_predictions(target, number, skill, n, seed, method)
            if subjects is not None:
                arrays["subject"] = np.array(subjects)
            np.savez(folder / f"{group}__{target}__{seed}.npz", **arrays)
            done = path / "stages" / group / target / str(seed)
            done.mkdir(parents=True)
            (done / "done.json").write_text(json.dumps({"records": round(400 * fraction)}))
    if maps:
        (path / "interpret").mkdir()
        _write_similarity(path / "interpret", np.random.default_rng(len(method)), 3, 7)
    return path


def _made_predictions(target, number, skill, n, seed, method):
    members = [x for x in PHENOTYPES if x.group == target] or [Label(target, "binary", "disease")]
    k = len(members)
    latent = np.random.default_rng(number).normal(size=(n, k))
    noise = np.random.default_rng((seed, number, *method.encode())).normal(size=(n, k))
    guess = skill * latent + noise
    if members[0].kind == "binary":
        label, prediction = (latent > 1).astype(np.float64), 1 / (1 + np.exp(-guess))
    else:
        label, prediction = 140 + 30 * latent, 140 + 20 * guess
        # Another number of records for each group.
        label[number :: 7 + len(target)] = np.nan
    return {
        "record": np.array([f"r{i:05d}" for i in range(n)]),
        "subject": np.array([f"s{i:05d}" for i in range(n)]),
        "split": np.array(["test"] * (n - 10) + ["val"] * 10),
        "names": np.array([x.name for x in members]),
        "kinds": np.array([x.kind for x in members]),
        "units": np.array([x.unit for x in members]),
        "label": label,
        "prediction": prediction,
        "seed": seed,
        "target": target,
    }
