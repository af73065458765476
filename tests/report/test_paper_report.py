"""Tables and figures of the paper from made-up runs of some methods."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from made_run import write_method
from page_reader import PageReader

from mmcl_jax.report import __main__ as command
from mmcl_jax.report import write_paper_report
from mmcl_jax.report.paper_layout import FIGURE_4, TABLES, published
from mmcl_jax.report.paper_results import Results
from mmcl_jax.report.paper_runs import Key, find_runs
from mmcl_jax.report.paper_tables import fill, table_csv, table_html, table_latex
from mmcl_jax.statistics import delong


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four methods, two of them with fewer labels and with phenotypes."""
    root = tmp_path_factory.mktemp("study")
    phenotypes = ("CAD", "AF", "DM", "LV", "Err")
    write_method(root / "ours", "mmcl", 1.0, targets=phenotypes, maps=True)
    write_method(root / "mae", "mae", 0.5, targets=phenotypes)
    write_method(root / "sub" / "supervised", "supervised", 0.3, seeds=(7,))
    write_method(root / "new", "own<b>idea</b>", 0.4, targets=("CAD",))
    for name, skill in (("mmcl", 0.8), ("mae", 0.3)):
        write_method(root / f"{name}-10pct", name, skill, fraction=0.1)
    return root


@pytest.fixture(scope="module")
def page(study):
    return write_paper_report([study], resamples=50).read_text(encoding="utf-8")


def _truth(run, target, seed):
    arrays = np.load(run / "evaluate" / "predictions" / f"finetune__{target}__{seed}.npz")
    test = arrays["split"] == "test"
    return arrays["label"][test], arrays["prediction"][test]


def _rows(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_table_numbers_are_those_of_sklearn(study, page):
    rows = {row["method"]: row for row in _rows(study / "report" / "table_III.csv")}
    for method, folder in (("mmcl", "ours"), ("mae", "mae")):
        for target in ("CAD", "AF", "DM"):
            pairs = [_truth(study / folder, target, seed) for seed in (0, 1, 2)]
            aurocs = [100 * sklearn.metrics.roc_auc_score(*map(np.ravel, pair)) for pair in pairs]
            mean, sd = (float(rows[method][f"{target} ours {x} [AUROC %]"]) for x in ("mean", "sd"))
            assert mean == pytest.approx(np.mean(aurocs), abs=1e-10)
            assert sd == pytest.approx(np.std(aurocs, ddof=1), abs=1e-10)
            assert (rows[method][f"{target} seeds"], rows[method][f"{target} n"]) == ("3", "140")
    # One seed has no standard deviation; nothing of ours is there for the ablation.
    assert rows["supervised"]["CAD ours mean [AUROC %]"]
    assert rows["supervised"]["CAD ours sd [AUROC %]"] == ""
    assert rows["mmcl_wo_mdm"]["CAD ours mean [AUROC %]"] == ""
    assert rows["mmcl_wo_mdm"]["CAD paper mean [AUROC %]"] == "70.36"


def test_phenotypes_are_averaged_over_the_labels_of_their_group(study, page):
    rows = {row["method"]: row for row in _rows(study / "report" / "table_IV.csv")}
    means = []
    for seed in (0, 1, 2):
        label, prediction = _truth(study / "ours", "Err", seed)
        known = ~np.isnan(label[:, 0])
        pairs = zip(label[known].T, prediction[known].T, strict=True)
        means.append(np.mean([scipy.stats.pearsonr(*pair).statistic for pair in pairs]))
    assert float(rows["mmcl"]["Err ours mean [r]"]) == pytest.approx(np.mean(means), abs=1e-12)
    assert float(rows["mmcl"]["Err ours sd [r]"]) == pytest.approx(np.std(means, ddof=1), abs=1e-12)
    assert rows["mmcl"]["RV ours mean [r]"] == ""
    assert rows["mmcl"]["RV paper mean [r]"] == "0.65"


def test_best_and_second_best_are_marked_as_in_the_paper(study):
    results = Results(find_runs([study]))
    table = fill(next(t for t in TABLES if t.number == "III"), results)
    ranks = {
        row.method: [cell.published.rank for cell in cells]
        for row, cells in zip(table.layout.rows, table.cells, strict=True)
    }
    # Bold and underlined in the published Table III.
    assert ranks == {
        "supervised": [0, 0, 0],
        "mae": [2, 0, 0],
        "mmcl_wo_mdm": [0, 2, 2],
        "mmcl": [1, 1, 1],
    }
    assert [cell.ours.rank for cell in table.cells[-1]] == [1, 1, 1]
    assert [cell.ours for cell in table.cells[2]] == [None] * 3
    text = table_html(table)
    assert "<b>73.00±0.30</b>" in text
    assert "<u>71.71±0.36</u>" in text
    reference = fill(next(t for t in TABLES if t.number == "IV"), results)
    assert all(cell.published.rank == 0 for cell in reference.cells[-1])


def test_latex_and_csv_have_the_shape_of_the_table(study, page):
    results = Results(find_runs([study]))
    for layout in TABLES:
        table = fill(layout, results)
        lines = table_latex(table).splitlines()
        body = [line for line in lines if line.endswith(r"\\") and "ours &" not in line]
        columns = 3 + len(layout.marks) + 2 * len(layout.targets)
        spanned = columns - len(layout.targets)
        assert [line.count("&") for line in body] == [spanned - 1] + [columns - 1] * len(
            layout.rows
        )
        (head,) = [line for line in lines if line.startswith(r"\begin{tabular}")]
        assert len(head.removeprefix(r"\begin{tabular}").strip("{}")) == columns
        assert len({len(row) for row in table_csv(table)}) == 1
    text = (study / "report" / "tables.tex").read_text()
    packages, _, text = text.partition("\n")
    assert packages == r"% \usepackage{amssymb, adjustbox}"
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == 5
    assert r"$\mathbf{75.56 \pm 0.16}$" in text
    assert r"\underline{$71.71 \pm 0.36$}" in text
    assert "%" not in re.sub(r"\\%", "", text)


def test_published_numbers_belong_to_cells():
    cells = {(t.number, r.method, target) for t in TABLES for r in t.rows for target in t.targets}
    known = published()
    assert set(known) <= cells
    # All but the six of MMCL in Table V.
    assert len(cells) - len(known) == 6
    shared = [key for key in known if key[0] == "I" and ("II", *key[1:]) in known]
    assert shared
    assert all(known[key] == known["II", key[1], key[2]] for key in shared)
    assert len(set(FIGURE_4)) == 20


def test_differences_carry_the_right_p_values(study, page):
    rows = _rows(study / "report" / "comparisons.csv")
    chosen = {(r["label share"], r["target"], r["metric"], r["other"]): r for r in rows}
    row = chosen["1", "AF", "auroc", "mae"]
    pairs = [_truth(study / name, "AF", seed) for name in ("ours", "mae") for seed in (0, 1, 2)]
    found = delong.areas(pairs[0][0][:, 0], np.stack([p[:, 0] for _, p in pairs]))
    expected = delong.compare(found, np.repeat([1 / 3, -1 / 3], 3))
    assert row["test"] == "DeLong"
    assert float(row["p"]) == pytest.approx(expected.p, rel=1e-9)
    assert float(row["low"]) == pytest.approx(expected.low)
    assert float(row["p Holm"]) >= float(row["p"])
    assert (row["n"], row["seeds ours"], row["seeds other"]) == ("140", "3", "3")
    assert chosen["1", "CAD", "ap", "mae"]["test"] == "paired bootstrap"
    assert float(chosen["1", "Err", "r", "mae"]["difference"]) > 0
    # A method that the paper does not know is compared too, and fewer labels with fewer labels.
    assert ("1", "CAD", "auroc", "own<b>idea</b>") in chosen
    assert {r["other"] for r in rows if r["label share"] == "0.1"} == {"mae"}
    assert {r["ours"] for r in rows} == {"mmcl"}


def test_page_is_whole_escaped_and_asks_for_nothing(study, page):
    reader = PageReader(page)
    assert reader.open == []
    assert {tag for tag, _ in reader.tags}.isdisjoint({"script", "link", "iframe"})
    for _, attributes in reader.tags:
        assert attributes.get("src", "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import", page)
    assert "own&lt;b&gt;idea&lt;/b&gt; (in no table of the paper)" in page
    assert "they say nothing about patients" in page
    label, _ = _truth(study / "ours", "CAD", 0)
    assert f"CAD 140 ({label.sum():.0f} with the disease)" in page
    assert "Err 126 (17 labels)" in page
    assert "Research use only, not for clinical use." in page
    names = {a["href"] for t, a in reader.tags if t == "a" and a["href"][0] != "#"}
    assert names == {file.name for file in (study / "report").iterdir()} - {"index.html"}
    assert {"figure_4.png", "figure_4.svg", "figure_5.svg", "figure_6.png"} <= names
    assert "calibration_CAD.png" in names
    svg = (study / "report" / "figure_5.svg").read_text()
    assert "<svg" in svg
    assert "<dc:date>" not in svg


def test_companions_stay_out_of_the_tables(study, tmp_path):
    for name in ("ours", "mae"):
        shutil.copytree(study / name, tmp_path / name)
    _probe(tmp_path / "mae", "mdm", selection={"fraction": 0.5})
    _probe(tmp_path / "mae", "mmcl")
    _probe(tmp_path / "mae", "mdm", folder="mdm__selection_3", selection={"seed": 3})
    _probe(tmp_path / "mae", "mdm", folder="mdm__unbalanced", selection={"balanced": False})
    for seed in (0, 5):
        folder = f"mdm__shuffled_labels_{seed}"
        _probe(tmp_path / "mae", "mdm", folder=folder, shuffled=True, shuffle_seed=seed)
    _probe(tmp_path / "mae", "mdm", folder="mdm__elsewhere", other_cohort=True)
    _change_settings(tmp_path / "ours", data={"shuffle_labels": True})
    results = Results(find_runs([tmp_path]))
    keys = {
        Key("mae", 0.5, "linear probe of mdm"),
        Key("mae", 1.0, "linear probe of mmcl"),
        Key("mae", 1.0, "linear probe of mdm (selection seed 3)"),
        Key("mae", 1.0, "linear probe of mdm, unbalanced"),
        Key("mae", 1.0, "linear probe of mdm, shuffled labels (seed 0)"),
        Key("mae", 1.0, "linear probe of mdm, shuffled labels (seed 5)"),
        Key("mmcl", 1.0, "fine-tuned, shuffled labels"),
    }
    assert set(results.keys) == keys | {Key("mae")}
    assert results.fine_tuned == [Key("mae")]
    table = fill(TABLES[0], results)
    assert table.is_empty
    write_paper_report([tmp_path], resamples=5)
    (tmp_path / "mae" / "probe" / "mmcl" / "probe.json").write_text('{"stage": "mmcl"}')
    with pytest.raises(ValueError, match="lacks other_cohort, selection, shuffled; run mmcl_jax"):
        Results(find_runs([tmp_path]))


def _probe(run, stage, *, folder="", other_cohort=False, shuffled=False, selection=(), **more):
    """What mmcl_jax.probe leaves: predictions, and what they are.

    Args:
        selection: of the training records, where it is not as by default.
    """
    folder = run / "probe" / (folder or stage)
    (folder / "predictions").mkdir(parents=True)
    source = run / "evaluate" / "predictions" / "finetune__CAD__0.npz"
    shutil.copy(source, folder / "predictions" / "linear__CAD.npz")
    about = {"stage": stage, "selection": {"fraction": 1.0, "balanced": True, "seed": 0}}
    about["selection"] |= dict(selection)
    about |= {"shuffled": shuffled, "other_cohort": other_cohort, **more}
    (folder / "probe.json").write_text(json.dumps(about))


def _change_settings(run, **changes):
    """Settings that every stage of a run was trained with, apart from its configuration."""
    config = json.loads((run / "config.json").read_text())
    for file in run.glob("stages/*/*/*/done.json"):
        settings = {"stage": config["stages"]["finetune"], "data": config["data"]} | changes
        file.with_name("stage.json").write_text(json.dumps(settings))


def test_the_share_of_labels_is_that_of_the_training(study, tmp_path):
    """And not that of a configuration which was changed after it (--force_config)."""
    shutil.copytree(study / "ours", tmp_path / "ours")
    _change_settings(tmp_path / "ours")
    file = tmp_path / "ours" / "config.json"
    config = json.loads(file.read_text())
    config["stages"]["finetune"]["fraction"] = 0.1
    file.write_text(json.dumps(config))
    assert Results(find_runs([tmp_path])).keys == [Key("mmcl", 1.0)]


def test_candidates_that_were_not_chosen_are_left_out(study, tmp_path):
    shutil.copytree(study / "ours", tmp_path / "ours")
    for value in ("a", "b"):
        stage = tmp_path / "choices" / value / "stages" / "mmcl"
        stage.mkdir(parents=True)
        (stage.parents[1] / "config.json").write_text(json.dumps({"name": "mmcl"}))
        (stage / "done.json").write_text(json.dumps({"id": f"trained {value}"}))
    # By id, so that the runs may be moved.
    _change_settings(tmp_path / "ours", started_from={"/before/choices/b:mmcl": "trained b"})
    results = Results(find_runs([tmp_path]))
    assert [run.path.name for run in results.runs] == ["b", "ours"]
    assert [run.path.name for run in results.unused] == ["a"]


def test_means_are_of_the_same_labels_for_all_methods(study, tmp_path):
    """A method that predicts or knows only some labels of a group has no mean of the group."""
    for name in ("ours", "mae"):
        shutil.copytree(study / name, tmp_path / name)
    files = sorted((tmp_path / "mae").glob("evaluate/predictions/finetune__LV__*.npz"))
    whole = [dict(np.load(file)) for file in files]
    rows = ("names", "kinds", "units")
    for file, arrays in zip(files, whole, strict=True):
        first = {name: arrays[name][:1] for name in rows}
        first |= {name: arrays[name][:, :1] for name in ("label", "prediction")}
        np.savez(file, **(arrays | first))
    results = Results(find_runs([tmp_path]))
    assert results.value(Key("mae"), "LV", "r") is None
    assert results.value(Key("mmcl"), "LV", "r") is not None
    assert results.value(Key("mae"), "LVEDV", "r") is not None
    table = fill(next(t for t in TABLES if t.number == "IV"), results)
    assert any(count.endswith("(6 labels)") for count in table.counts)
    for file, arrays in zip(files, whole, strict=True):
        arrays["prediction"][:, 2] = 1.0  # no correlation with anything
        np.savez(file, **arrays)
    assert Results(find_runs([tmp_path])).value(Key("mae"), "LV", "r") is None
    # Labels that nobody predicts are not missed, but counted.
    shutil.rmtree(tmp_path / "mae")
    for file in (tmp_path / "ours").glob("evaluate/predictions/finetune__LV__*.npz"):
        arrays = dict(np.load(file))
        first = {name: arrays[name][:1] for name in rows}
        first |= {name: arrays[name][:, :1] for name in ("label", "prediction")}
        np.savez(file, **(arrays | first))
    results = Results(find_runs([tmp_path]))
    assert results.value(Key("mmcl"), "LV", "r") == results.value(Key("mmcl"), "LVEDV", "r")
    table = fill(next(t for t in TABLES if t.number == "IV"), results)
    assert any(count.endswith("(1 of 6 labels)") for count in table.counts)


def test_subjects_with_several_records_are_resampled_together(tmp_path):
    subjects = [f"s{i // 2}" for i in range(150)]
    for method, skill in (("mmcl", 1.0), ("mae", 0.5)):
        options = {"subjects": subjects, "seeds": (0,), "targets": ("CAD",)}
        write_method(tmp_path / method, method, skill, **options)
    write_paper_report([tmp_path], resamples=20)
    rows = _rows(tmp_path / "report" / "comparisons.csv")
    assert [(row["metric"], row["test"]) for row in rows] == [
        ("auroc", "paired bootstrap"),
        ("ap", "paired bootstrap"),
    ]


def test_runs_that_do_not_belong_together_are_refused(study, tmp_path):
    shutil.copytree(study / "ours", tmp_path / "a")
    shutil.copytree(study / "ours", tmp_path / "b")
    with pytest.raises(ValueError, match=r"AF is predicted twice with seed 0, by .*/a .* and .*/b"):
        Results(find_runs([tmp_path]))
    shutil.rmtree(tmp_path / "b")
    write_method(tmp_path / "c", "mae", 0.5, n=150, targets=("CAD",))
    file = tmp_path / "c" / "evaluate" / "predictions" / "finetune__CAD__1.npz"
    arrays = dict(np.load(file))
    np.savez(file, **(arrays | {"label": 1 - arrays["label"]}))
    with pytest.raises(ValueError, match="come from different cohorts"):
        Results(find_runs([tmp_path]))
    for seed in (0, 1, 2):
        file = file.with_name(f"finetune__CAD__{seed}.npz")
        record = np.array([f"x{i}" for i in range(150)])
        changes = {"record": record, "label": arrays["label"]}
        np.savez(file, **(dict(np.load(file)) | changes))
    with pytest.raises(ValueError, match="no test record in common"):
        Results(find_runs([tmp_path]))
    (tmp_path / "c" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"c/config\.json: field name is None"):
        Results(find_runs([tmp_path]))


def test_folders_and_options(study, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="no run directory"):
        write_paper_report([tmp_path])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_paper_report([tmp_path / "absent"])
    with pytest.raises(ValueError, match="is a run directory, which has a report of its own"):
        write_paper_report([study / "ours"])
    with pytest.raises(ValueError, match="resamples is 0"):
        write_paper_report([study], resamples=0)
    early = tmp_path / "early"
    early.mkdir()
    (early / "config.json").write_text(json.dumps({"name": "mmcl"}))
    command.main(["--workdir", str(tmp_path), "--output", str(tmp_path / "out")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "index.html")
    text = (tmp_path / "out" / "index.html").read_text()
    assert text.count("No run of ours is in this table yet.") == 5
    assert "Nothing to compare" in text
    with pytest.raises(SystemExit):
        command.main([])
    with pytest.raises(SystemExit):
        command.main([str(early), "--output", "x"])


def test_equal_inputs_give_equal_bytes(tmp_path):
    write_method(tmp_path / "mmcl", "mmcl", 1.0, targets=("CAD",), maps=True)
    write_method(tmp_path / "mmcl-10pct", "mmcl", 0.5, targets=("CAD",), fraction=0.1)
    files = []
    for name in ("first", "second"):
        write_paper_report([tmp_path], output=tmp_path / name, resamples=5)
        files.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert files[0] == files[1]


def test_maps_over_other_frames_are_left_out(tmp_path):
    """Record names alone do not tell that two runs show the same pictures."""
    for name in ("mmcl", "mmcl_wo_mdm"):
        write_method(tmp_path / name, name, 1.0, targets=("CAD",), maps=True)
    left_out = "Left out, because their frames of these subjects are not those of"
    page = write_paper_report([tmp_path], resamples=5).read_text()
    assert left_out in page
    drawn = r'Similarity over the CMR frames of [^"]* by ([^"]*)"'
    assert re.search(drawn, page)[1] == "MMCL (ours)"
    ours, other = (
        tmp_path / run / "interpret" / "cmr_similarity.npz" for run in ("mmcl", "mmcl_wo_mdm")
    )
    np.savez(other, **{**np.load(other), "frames": np.load(ours)["frames"]})
    page = write_paper_report([tmp_path], resamples=5).read_text()
    assert left_out not in page
    assert len(re.search(drawn, page)[1].split(", ")) == 2
