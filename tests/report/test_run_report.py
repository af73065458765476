"""The report of a small made-up run directory, and of one that holds next to nothing."""

import base64
import csv
import json
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import tiny_source
from made_run import write_run
from page_reader import PageReader

from mmcl_jax import report
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.preparing.cohort_figures import write_preview
from mmcl_jax.report import write_report
from mmcl_jax.report.files import file_name
from mmcl_jax.report.inputs import METRIC_COLUMNS, read_run
from mmcl_jax.report.run_figures import best_metric
from mmcl_jax.report.run_results import result_text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run):
    return write_report(run).read_text(encoding="utf-8")


def test_page_is_well_formed_and_asks_for_nothing(page):
    reader = PageReader(page)
    assert reader.open == []
    for tag, attributes in reader.tags:
        assert tag not in ("script", "link", "iframe")
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert re.fullmatch(r"#\w+|[\w.-]+", attributes.get("href", "#a"))
    assert not re.search(r"https?://|url\(|@import", page)
    anchors = {attributes.get("id") for _, attributes in reader.tags}
    links = [a["href"][1:] for t, a in reader.tags if t == "a" and a["href"].startswith("#")]
    assert len(links) == 11
    assert set(links) <= anchors


def test_page_says_what_was_run_and_that_it_is_synthetic(page):
    text = " ".join(PageReader(page).text)
    assert "they say nothing about patients" in text
    assert "Research use only, not for clinical use." in text
    for expected in (
        "Report: mmcl",
        "0123abcd",
        "8 x cpu: cpu",
        "packages: jax",
        "0.10.2",
        "main.py --workdir=run",
    ):
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
    folder = run / "report"
    source = (run / "evaluate" / "metrics.csv").read_text()
    assert (folder / "metrics.csv").read_text() == source
    names = {a["href"] for t, a in PageReader(page).tags if t == "a" and a["href"][0] != "#"}
    assert names == {file.name for file in folder.iterdir()} - {"index.html"}
    assert {"roc.png", "scatter_finetune_LV.png", "curves_mdm.png"} <= names
    embedded = re.findall(r'base64,([^"]+)"', page)
    assert base64.b64decode(embedded[0]) == (folder / "curves_mdm.png").read_bytes()
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


def test_the_cohort_is_shown_where_its_preview_is_at_hand(tmp_path):
    cohort = tmp_path / "data" / "mine"
    run = tmp_path / "run"
    run.mkdir()
    for config, folder in (({"data": {"path": str(cohort)}}, cohort), ({}, run / "cohort")):
        (run / "config.json").write_text(json.dumps(config))
        assert "Cohort" not in PageReader(write_report(run).read_text()).text
        source = tiny_source.TinySource(count=3)
        cohorts.write(source, folder, workers=0, progress=False)
        preview = write_preview(folder)
        page = write_report(run).read_text()
        (embedded,) = re.findall(r'base64,([^"]+)"', page)
        assert base64.b64decode(embedded) == preview.read_bytes()
        assert (run / "report" / "cohort.png").read_bytes() == preview.read_bytes()
        assert (
            "Recordings (source: tiny): the ES, mid and ED frames of r000, r001, r002 with the "
            "heart box, and the first 5 s of the preprocessed ECG of r000, r001."
        ) in page
        assert page.index(">What was run</h2>") < page.index(">Cohort</h2>")
        assert page.index(">Cohort</h2>") < page.index(">Stages</h2>")


def test_similarity_over_the_heart(tmp_path):
    folder = write_run(tmp_path)
    trained = {"inside": 0.4321, "outside": 0.1, "ratio": 4.321, "higher_inside": 0.75, "n": 1200}
    untrained = {**trained, "inside": -0.25, "ratio": None}
    heart = {"trained": trained, "untrained": untrained}
    (folder / "interpret" / "heart.json").write_text(json.dumps(heart))
    page = report.write_report(folder).read_text()
    (row,) = re.findall(r"<tr><td>trained</td>.*?</tr>", page)
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row) == [
        "trained", "0.432", "0.100", "4.321", "75% of subjects", "1,200",
    ]  # fmt: skip
    (row,) = re.findall(r"<tr><td>untrained</td>.*?</tr>", page)
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row)[1:4] == ["-0.250", "0.100", ""]


def test_a_run_that_holds_only_its_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"name": "early"}))
    command = [sys.executable, "-m", "mmcl_jax.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    index = tmp_path / "report" / "index.html"
    assert done.stdout.strip() == str(index)
    text = " ".join(PageReader(index.read_text()).text)
    for absent in ("metrics.jsonl", "metrics.csv", "environment.json", "cmr_similarity.npz"):
        assert f"{absent} is absent" in text
    assert "does not state where its data come from" in text
    assert "simulator" not in text
    assert [file.name for file in (tmp_path / "report").iterdir()] == ["index.html"]


def test_text_is_escaped(tmp_path):
    config = {"name": "<script>alert(1)</script>", "data": {"path": 'ukb"><img src=x>'}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "environment.json").write_text(json.dumps({"device": "<b>A&B</b>"}))
    line = {"stage": "<i>mdm</i>", "step": 1, "train/loss": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line))
    (tmp_path / "evaluate").mkdir()
    row = '"<u>m</u>",CAD,test,auroc,0.7,0.6,0.8,10,0'
    csv_text = f"{','.join(METRIC_COLUMNS)}\n{row}\n"
    (tmp_path / "evaluate" / "metrics.csv").write_text(csv_text)
    page = write_report(tmp_path).read_text()
    reader = PageReader(page)
    assert {tag for tag, _ in reader.tags}.isdisjoint({"script", "b", "i", "u"})
    assert all(a.get("src", "data:").startswith("data:") for _, a in reader.tags)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "A&amp;B" in page


def test_report_as_a_stage(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    experiment = types.SimpleNamespace(run=types.SimpleNamespace(path=tmp_path))
    assert report.run(experiment) == {"page": "report/index.html"}
    assert (tmp_path / "report" / "index.html").is_file()
    with pytest.raises(ValueError, match="no settings, found splits"):
        report.run(experiment, splits=("test",))


def test_two_models_of_one_name_stay_apart(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "evaluate").mkdir()
    lines = [f"mmcl,CAD,test,auroc,{value},0.6,0.8,10,0" for value in (0.7, 0.75)]
    text = "\n".join([",".join(METRIC_COLUMNS), *lines, "mmcl,AF,test,auroc,,,,10,0"])
    (tmp_path / "evaluate" / "metrics.csv").write_text(text + "\n")
    page = write_report(tmp_path).read_text()
    assert "<td>mmcl</td><td>AUROC</td><td>0.700 [0.600, 0.800]</td>" in page
    assert "<td>mmcl (2)</td><td>AUROC</td><td>0.750 [0.600, 0.800]</td>" in page
    assert "<td>mmcl</td><td>AUROC</td><td>undefined</td>" in page


def test_no_run_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: not found"):
        write_report(tmp_path)


def test_best_metric_prefers_auroc_and_ignores_nan():
    records = [
        {"step": 1, "val/loss": 0.1, "val/accuracy": 0.9, "val/auroc": 0.6},
        {"step": 2, "val/loss": 0.2, "val/accuracy": 0.8, "val/auroc": 0.7},
        {"step": 3, "val/loss": 0.3, "val/accuracy": 0.7, "val/auroc": float("nan")},
    ]
    assert best_metric(records) == "AUROC 0.7 at step 2"
    assert best_metric([{"step": 1}]) == "no validation metric logged"


def test_numbers_and_file_names():
    assert result_text(0.7314, 0.7, 0.758) == "0.731 [0.700, 0.758]"
    assert result_text(123.456, float("nan"), float("nan")) == "123.5"
    assert result_text(float("nan"), 0, 1) == "undefined"
    assert result_text(2.5, 1, 4, "ecg_to_cmr/median_rank") == "2.5 [1, 4]"
    assert file_name("../a b/c") == "a_b_c"
    assert file_name("..") == "unnamed"
