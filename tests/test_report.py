"""The report of a small made-up run directory, and of one that holds next to nothing."""

import base64
import csv
import html.parser
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from mmcl_jax import metrics
from mmcl_jax.report import write_report
from mmcl_jax.report_figures import best_metric, file_name
from mmcl_jax.report_inputs import METRIC_COLUMNS, read_run, without_seed
from mmcl_jax.report_results import result_text

UNITS = {"LVEDV": "mL", "LVEF": "%"}


def write_run(path, *, n=60, seeds=(0, 1), phenotypes=UNITS, name="mmcl", side=7, subjects=2):
    """A run directory as training, evaluation and interpretation leave it, with random numbers."""
    generator = np.random.default_rng(0)
    (path / "evaluate" / "predictions").mkdir(parents=True)
    (path / "interpret").mkdir()
    config = {"name": name, "data": {"source": "synthetic", "subjects": n}, "seed": 0}
    (path / "config.json").write_text(json.dumps(config))
    environment = {
        "git_revision": "0123abcd",
        "device": "8 x CPU",
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
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
            line["learning_rate"] = 1e-4 * np.sin(np.pi * (step + 5) / 210)
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


class _Reader(html.parser.HTMLParser):
    """Collects tags, attributes and visible text, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run):
    return write_report(run).read_text(encoding="utf-8")


def test_page_is_well_formed_and_asks_for_nothing(page):
    reader = _Reader(page)
    assert reader.open == []
    for tag, attributes in reader.tags:
        assert tag not in ("script", "link", "iframe")
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert re.fullmatch(r"#\w+|[\w.-]+", attributes.get("href", "#a"))
    assert not re.search(r"https?://|url\(|@import", page)
    anchors = {attributes.get("id") for _, attributes in reader.tags}
    links = [a["href"][1:] for t, a in reader.tags if t == "a" and a["href"].startswith("#")]
    assert len(links) == 10
    assert set(links) <= anchors


def test_page_says_what_was_run_and_that_it_is_synthetic(page):
    text = " ".join(_Reader(page).text)
    assert "they say nothing about patients" in text
    assert "Research use only, not for clinical use." in text
    for expected in ("Report: mmcl", "0123abcd", "8 x CPU", "versions: jax", "0.10.2"):
        assert expected in text
    assert "6 min 40 s" in text
    assert "absent" not in text


def test_tables_hold_the_numbers_of_the_csv(run, page):
    rows = read_run(run).metrics
    auroc = [row for row in rows if row.metric == "auroc"]
    assert [row.seed for row in auroc] == ["0", "1"]
    for row in auroc:
        assert f"<td>{result_text(row.value, row.low, row.high)}</td>" in page
        assert row.model == "finetune/CAD"
    values = [row.value for row in auroc]
    assert f"<td>{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}</td>" in page
    r = {
        seed: np.mean([row.value for row in rows if row.metric == "r" and row.seed == seed])
        for seed in ("0", "1")
    }
    mean, sd = np.mean(list(r.values())), np.std(list(r.values()), ddof=1)
    assert f"<td>r, mean of 2 labels</td><td>{mean:.3f} ± {sd:.3f}</td>" in page
    assert "LVEDV [mL]" in page
    assert "ECG to CMR" in page
    assert "recall@1 is 0.017 for n = 60" in page


def test_files_beside_the_page(run, page):
    report = run / "report"
    source = (run / "evaluate" / "metrics.csv").read_text()
    assert (report / "metrics.csv").read_text() == source
    names = {a["href"] for t, a in _Reader(page).tags if t == "a" and a["href"][0] != "#"}
    assert names == {file.name for file in report.iterdir()} - {"index.html"}
    assert {"roc.png", "scatter_finetune_LV.png", "curves_mdm.png"} <= names
    embedded = re.findall(r'base64,([^"]+)"', page)
    assert base64.b64decode(embedded[0]) == (report / "curves_mdm.png").read_bytes()
    assert len(embedded) == len([name for name in names if name.endswith(".png")])


def test_prediction_files_carry_units_and_gaps(run, page):
    with (run / "report" / "predictions_LV.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 60
    assert list(rows[0])[:5] == ["record", "subject", "split", "stage", "seed"]
    assert rows[0]["LVEDV measured [mL]"] == ""
    arrays = read_run(run).predictions[-1]
    last = rows[-1]
    assert (last["stage"], last["seed"], last["split"]) == ("finetune/LV/seed1", "1", "val")
    assert float(last["LVEF predicted [%]"]) == pytest.approx(arrays.prediction[-1, 1], rel=1e-5)
    header = (run / "report" / "predictions_CAD.csv").read_text().splitlines()[0]
    assert header.endswith("CAD measured [0 or 1],CAD predicted [probability]")


def test_equal_inputs_give_equal_bytes(run, page):
    before = {file.name: file.read_bytes() for file in (run / "report").iterdir()}
    write_report(run)
    assert {file.name: file.read_bytes() for file in (run / "report").iterdir()} == before


def test_a_run_that_holds_only_its_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"name": "early"}))
    command = [sys.executable, "-m", "mmcl_jax.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    index = tmp_path / "report" / "index.html"
    assert done.stdout.strip() == str(index)
    text = " ".join(_Reader(index.read_text()).text)
    for absent in ("metrics.jsonl", "metrics.csv", "environment.json", "cmr_similarity.npz"):
        assert f"{absent} is absent" in text
    assert "does not state where its data come from" in text
    assert "simulator" not in text
    assert [file.name for file in (tmp_path / "report").iterdir()] == ["index.html"]


def test_text_is_escaped(tmp_path):
    config = {"name": "<script>alert(1)</script>", "data": {"cohort": 'ukb"><img src=x>'}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "environment.json").write_text(json.dumps({"device": "<b>A&B</b>"}))
    line = {"stage": "<i>mdm</i>", "step": 1, "train/loss": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line))
    (tmp_path / "evaluate").mkdir()
    row = '"<u>m</u>",CAD,test,auroc,0.7,0.6,0.8,10,0'
    csv_text = f"{','.join(METRIC_COLUMNS)}\n{row}\n"
    (tmp_path / "evaluate" / "metrics.csv").write_text(csv_text)
    page = write_report(tmp_path).read_text()
    reader = _Reader(page)
    assert {tag for tag, _ in reader.tags}.isdisjoint({"script", "b", "i", "u"})
    assert all(a.get("src", "data:").startswith("data:") for _, a in reader.tags)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "A&amp;B" in page


def test_no_run_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: not found"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("metrics.jsonl", '{"stage": "mdm"}\n', r"metrics\.jsonl, line 1: .* 'stage' and 'step'"),
        ("metrics.jsonl", 'oops\n{"stage": "a", "step": 1}\n', r"line 1: .*found 'oops'"),
        ("evaluate/metrics.csv", "model,auroc\n", r"expected the columns model,target"),
        ("evaluate/metrics.csv", f"{','.join(METRIC_COLUMNS)}\na,b\n", r"row 2: cannot be read"),
        ("environment.json", "[1]", "expected a JSON object, found list"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, match):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "evaluate").mkdir()
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=match):
        write_report(tmp_path)


def test_predictions_are_checked(tmp_path):
    folder = tmp_path / "evaluate" / "predictions"
    folder.mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    arrays = _predictions(np.random.default_rng(0), 6, UNITS, "regression", "LV", 0)
    np.savez(folder / "a.npz", **(arrays | {"label": arrays["label"][:, :1]}))
    with pytest.raises(ValueError, match=r"label must have shape \(6, 2\).*found \(6, 1\)"):
        read_run(tmp_path)
    np.savez(folder / "a.npz", **{k: v for k, v in arrays.items() if k != "units"})
    with pytest.raises(ValueError, match="lacks units"):
        read_run(tmp_path)


def test_log_of_an_interrupted_and_resumed_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    records = [(10, 3.0), (20, 2.0), (30, 9.0), (20, 2.5), (30, 1.0)]
    lines = [json.dumps({"stage": "mdm", "step": s, "val/loss": v}) for s, v in records]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"stage": "md')
    log = read_run(tmp_path).log["mdm"]
    assert [(record["step"], record["val/loss"]) for record in log] == [(10, 3), (20, 2.5), (30, 1)]
    assert best_metric(log) == "loss 1 at step 30"


def test_best_metric_prefers_auroc_and_ignores_nan():
    records = [
        {"step": 1, "val/loss": 0.1, "val/accuracy": 0.9, "val/auroc": 0.6},
        {"step": 2, "val/loss": 0.2, "val/accuracy": 0.8, "val/auroc": 0.7},
        {"step": 3, "val/loss": 0.3, "val/accuracy": 0.7, "val/auroc": float("nan")},
    ]
    assert best_metric(records) == "AUROC 0.7 at step 2"
    assert best_metric([{"step": 1}]) == "no validation metric logged"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("finetune/CAD/seed3", "finetune/CAD"), ("finetune/CAD/3", "finetune/CAD"), ("resnet50",) * 2],
)
def test_seed_is_the_last_component_only(text, expected):
    assert without_seed(text) == expected


def test_numbers_and_file_names():
    assert result_text(0.7314, 0.7, 0.758) == "0.731 [0.700, 0.758]"
    assert result_text(123.456, float("nan"), float("nan")) == "123.5"
    assert result_text(float("nan"), 0, 1) == "undefined"
    assert result_text(2.5, 1, 4, "ecg_to_cmr/median_rank") == "2.5 [1, 4]"
    assert file_name("../a b/c") == "a_b_c"
    assert file_name("..") == "unnamed"
