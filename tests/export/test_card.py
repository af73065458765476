"""The model card."""

import csv
import json
import shutil

import numpy as np
import pytest
from export_files import content, make_config

from mmcl_jax.experiment import Experiment
from mmcl_jax.export import __main__ as command
from mmcl_jax.export import model_card_markdown


def test_the_card_holds_data_training_and_metrics(run, whole):
    card = content(whole, "model_card.json")
    cohort = Experiment.open(run).cohort
    data = card["data"]
    assert data["synthetic"]
    assert {split: s["records"] for split, s in data["splits"].items()} == dict(cohort.splits)
    column = [label.name for label in cohort.labels].index("CAD")
    train = data["splits"]["train"]["labels"]["CAD"]
    known = cohort.table("train")["labels"][:, column]
    assert train["prevalence"] == pytest.approx(np.nanmean(known))
    assert [stage["name"] for stage in card["training"]] == [
        "mdm", "finetune/CAD/0", "finetune/age/0",
    ]  # fmt: skip
    assert card["training"][1]["started_from"] == {"ecg_encoder": "mdm"}
    with (run / "evaluate" / "metrics.csv").open() as file:
        expected = list(csv.DictReader(file))
    assert len(card["metrics"]["rows"]) == len(expected)
    assert card["metrics"]["rows"][0]["metric"] == expected[0]["metric"]
    assert any("as many negative as positive" in limit for limit in card["limits"])
    assert card["licence"]["software"] == "Apache-2.0"


def test_the_card_for_people(whole):
    text = (whole / "model_card.md").read_text()
    assert text.startswith("# Model card: tiny \\*run\\*\n")
    assert "Research use only, not for clinical use." in text
    assert "The training data are simulated." in text
    for part in ("Intended use", "Data", "Training", "Metrics", "Limits", "Licence", "Versions"):
        assert f"\n## {part}\n" in text
    assert "| CAD | test | auroc |" in text
    assert "nan" not in text.split()


def test_what_the_card_cannot_know_it_says(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    config = make_config(tmp_path / "run" / "no cohort")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    done = tmp_path / "run" / "stages" / "finetune" / "CAD" / "0" / "done.json"
    done.write_text(json.dumps({**json.loads(done.read_text()), "id": "another"}))
    command.main([str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--card-only"])
    card = content(tmp_path / "out", "model_card.json")
    assert card["data"]["missing"] == "the cohort is not at hand where the card was written"
    assert "trained anew since" in card["metrics"]["missing"]
    assert not (tmp_path / "run" / "no cohort").exists()
    shutil.rmtree(tmp_path / "run" / "evaluate")
    command.main([str(tmp_path / "run"), "--output", str(tmp_path / "two"), "--card-only"])
    assert "has not been evaluated" in (tmp_path / "two" / "model_card.md").read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", "a\\|b"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("[x](http://e.org)", "\\[x\\](http:\\//e.org)"),
        ("![x](y)", "\\!\\[x\\](y)"),
        ("two\nlines\n# heading", "two lines \\# heading"),
        ("- item", "\\- item"),
        ("1. item", "1\\. item"),
        ("-5.2", "-5.2"),
        ("0.5", "0.5"),
        ("`code` *bold* _it_ \\", "\\`code\\` \\*bold\\* \\_it\\_ \\\\"),
        ("a & b", "a &amp; b"),
    ],
)
def test_text_is_escaped(text, expected):
    assert model_card_markdown.escape(text) == expected


def test_every_text_of_the_card_is_escaped(whole):
    hostile = "x|<b>*\n# y"
    card = content(whole, "model_card.json")
    text = model_card_markdown.to_markdown(poisoned(card, hostile))
    assert "<b>" not in text
    assert "x|" not in text
    assert "\n# y" not in text


def poisoned(value, text):
    """Every text of the card with `text` behind it."""
    if isinstance(value, dict):
        fixed = ("synthetic", "missing")
        return {k: v if k in fixed else poisoned(v, text) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(entry, text) for entry in value]
    return value + text if isinstance(value, str) else value
