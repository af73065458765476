"""Run files as training and evaluation write them, broken ones, and what a run does not say."""

import json

import numpy as np
import pytest

from mmcl_jax.report.inputs import METRIC_COLUMNS, data_source, group_of, read_run, without_seed
from mmcl_jax.report.run_figures import best_metric

ARRAYS = {
    "record": np.array(["r1", "r2", "r3"]),
    "subject": np.array(["s1", "s1", "s2"]),
    "split": np.array(["test"] * 3),
    "names": np.array(["LVEDV", "LVEF"]),
    "kinds": np.array(["regression"] * 2),
    "units": np.array(["mL", "%"]),
    "label": np.ones((3, 2)),
    "prediction": np.ones((3, 2)),
    "seed": 0,
    "target": "LV",
}


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
        read_run(tmp_path)


def test_predictions_are_checked(tmp_path):
    folder = tmp_path / "evaluate" / "predictions"
    folder.mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    np.savez(folder / "a.npz", **(ARRAYS | {"label": np.ones((3, 1))}))
    with pytest.raises(ValueError, match=r"label must have shape \(3, 2\).*found \(3, 1\)"):
        read_run(tmp_path)
    np.savez(folder / "a.npz", **{name: ARRAYS[name] for name in ARRAYS if name != "units"})
    with pytest.raises(ValueError, match="lacks units"):
        read_run(tmp_path)
    np.savez(folder / "a.npz", **(ARRAYS | {"record": np.array(["r1", None, 3], dtype=object)}))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_run(tmp_path)


def test_log_of_an_interrupted_and_resumed_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    records = [(10, 3.0), (20, 2.0), (30, 9.0), (20, 2.5), (30, 1.0)]
    lines = [json.dumps({"stage": "mdm", "step": s, "val/loss": v}) for s, v in records]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"stage": "md')
    log = read_run(tmp_path).log["mdm"]
    assert [(record["step"], record["val/loss"]) for record in log] == [(10, 3), (20, 2.5), (30, 1)]
    assert best_metric(log) == "loss 1 at step 30"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("finetune/CAD/seed3", "finetune/CAD"), ("finetune/CAD/3", "finetune/CAD"), ("resnet50",) * 2],
)
def test_seed_is_the_last_component_only(text, expected):
    assert without_seed(text) == expected


def test_groups_are_those_of_the_labels_else_the_target(tmp_path):
    folder = tmp_path / "evaluate" / "predictions"
    folder.mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    arrays = ARRAYS | {"names": np.array(["NORM", "LVEF"]), "target": "superclass"}
    np.savez(folder / "finetune__superclass__seed0.npz", **arrays)
    run = read_run(tmp_path)
    assert run.predictions[0].stage == "finetune/superclass/seed0"
    groups = group_of(run)
    assert (groups["NORM"], groups["LVEF"], groups["CAD"]) == ("superclass", "LV", "disease")


@pytest.mark.parametrize(
    ("config", "source", "expected"),
    [
        ({"data": {"path": ""}}, None, "synthetic"),
        ({"data": {"path": ""}}, "synthetic", "synthetic"),
        ({"data": {"path": "{folder}"}}, "ptbxl", "ptbxl ({folder})"),
        ({"data": {"path": "{folder}"}}, None, "{folder}"),
        ({}, None, ""),
    ],
)
def test_data_source(tmp_path, config, source, expected):
    folder = str(tmp_path / "cohort")
    text = json.dumps(config).replace("{folder}", folder)
    (tmp_path / "config.json").write_text(text)
    if source:
        (tmp_path / "cohort").mkdir()
        (tmp_path / "cohort" / "cohort.json").write_text(json.dumps({"source": source}))
    assert data_source(read_run(tmp_path)) == expected.replace("{folder}", folder)


def test_data_source_outlives_the_cohort(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"data": {"path": "/gone/cohort"}}))
    (tmp_path / "stages" / "finetune" / "CAD" / "0").mkdir(parents=True)
    done = tmp_path / "stages" / "finetune" / "CAD" / "0" / "done.json"
    done.write_text(json.dumps({"id": "a", "source": "synthetic"}))
    assert data_source(read_run(tmp_path)) == "synthetic (/gone/cohort)"
