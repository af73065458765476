"""Every baseline: its settings, and tiny runs of what only baselines do."""

import json
import os
import pathlib
import re
import signal

import jax
import numpy as np
import pytest
from tiny_experiment import read_config, rows, shrink, start
from tiny_source import TinySource

from mmcl_jax import objectives, stages
from mmcl_jax.checkpoints import load
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data import pipeline
from mmcl_jax.train import Interrupted

PACKAGE = pathlib.Path(stages.__file__).parent
PRETRAINED = ("simclr", "byol", "barlow_twins", "clocs")
NEURAL = (
    "supervised", "mae", *PRETRAINED, "mmcl_wo_mdm", "cmr_supervised", "cmr_mmcl",
    "cmr_mmcl_wo_mdm",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines") / "cohort"
    draws = np.random.default_rng(1).integers(0, 2, 50)
    changes = tuple((record, "labels", {"CAD": float(x)}) for record, x in enumerate(draws))
    cohorts.write(TinySource(count=50, changes=changes), folder, workers=0, progress=False)
    return folder


def tiny_config(name, cohort):
    config = read_config("baselines", f"{name},demo")
    with config.ignore_type():
        config.stages.finetune.update({"targets": ("CAD",)})
    plain = shrink(config)
    plain["data"]["path"] = str(cohort)
    plain["data"]["preprocessing"] = cohorts.open_cohort(cohort).settings
    return plain


@pytest.mark.parametrize("words", ["", "demo", "reference", "sweep,demo", "bfloat16,reference"])
def test_every_baseline_has_settings_that_fit(words):
    for name in NEURAL:
        config = json.loads(read_config("baselines", ",".join((name, words))).to_json())
        assert config["name"] == name
        found = stages.expand(config)
        for number, stage in enumerate(found):
            if "objective" in stage.config:
                stages.check(stage, found[:number])
        targets = {stage.target for stage in found if stage.target}
        assert {"CAD", "AF", "DM"} < targets
        # The configuration says nothing about what the run does not have.
        assert set(config["stages"]) == set(config["order"])


def test_numbers_of_the_paper():
    found = {}
    for name in PRETRAINED:
        stage = read_config("baselines", name).stages[name]
        found[name] = (stage.optimizer.rate, stage.optimizer.weight_decay)
        assert (stage.batch_size, stage.epochs, stage.optimizer.warmup_epochs) == (256, 300, 30)
        assert stage.ecg_view.noise_sigma == 0.25
    assert found == {
        "simclr": (3e-3, 1e-4), "byol": (1e-5, 1e-4), "barlow_twins": (3e-5, 1.5e-6),
        "clocs": (3e-4, 1e-4),
    }  # fmt: skip
    settings = {name: read_config("baselines", name).stages[name].settings for name in PRETRAINED}
    assert {name: found.to_dict() for name, found in settings.items()} == {
        "simclr": {"temperature": 0.1}, "byol": {"tau": 0.9996},
        "barlow_twins": {"off_diagonal_weight": 5e-3}, "clocs": {"temperature": 0.1},
    }  # fmt: skip
    # Hidden and output width of the projector, and of BYOL's predictor.
    sizes = {}
    for name in PRETRAINED:
        towers = read_config("baselines", name).stages[name].towers
        sizes[name] = [(x.hidden, x.out) for at, x in towers.items() if at != "ecg_encoder"]
    assert sizes == {
        "simclr": [(2048, 128)], "byol": [(4096, 256)] * 2, "barlow_twins": [(8192, 8192)],
        "clocs": [(384, 128)],
    }  # fmt: skip
    assert read_config("baselines", "tabular").stages.tabular.sweep.grid.to_dict() == {
        "rounds": (50, 75, 100, 125, 150), "max_depth": (3, 4, 5, 6, 7, 8),
        "learning_rate": (0.1, 0.2, 0.3), "subsample": (0.5, 0.75, 1.0),
    }  # fmt: skip
    assert read_config("baselines", "byol,reference").stages.byol.optimizer.rate == 3e-5
    assert read_config("baselines", "clocs,reference").stages.clocs.batch_size == 768


def test_from_scratch_means_learned_positions_all_the_way():
    for name in ("supervised", *PRETRAINED, "mmcl_wo_mdm"):
        for stage in read_config("baselines", name).stages.values():
            for tower, settings in stage.get("towers", {}).items():
                assert settings.get("positions") == ("learned" if tower == "ecg_encoder" else None)
    scratch = read_config("baselines", "supervised").stages.finetune
    assert scratch.optimizer.base_rate == 3e-5
    assert not scratch.init


def test_cmr_baselines_read_no_ecg():
    for name in ("cmr_supervised", "cmr_mmcl", "cmr_mmcl_wo_mdm"):
        config = read_config("baselines", f"{name},sweep")
        assert config.stages.finetune.fields == ("cmr",)
        assert set(config.stages.finetune.sweep.grid) == {
            "batch_size", "label_smoothing", "weight_decay", "base_rate",
        }  # fmt: skip
    assert "ecg_encoder" not in read_config("baselines", "cmr_supervised").models


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("demo", "name one baseline, as in baselines.py:byol; got none. Known: .*clocs"),
        ("byol,clocs", "got byol, clocs"),
        ("byo", "unknown config argument byo. Known: .*byol: BYOL on ECG"),
    ],
)
def test_a_baseline_has_to_be_named(words, message):
    with pytest.raises(ValueError, match=message):
        read_config("baselines", words)


def test_the_loop_knows_no_objective():
    names = "|".join(objectives.names())
    for file in ("train", "state", "recipe"):
        assert not re.search(rf"\b(?:{names})\b", (PACKAGE / f"{file}.py").read_text()), file


@pytest.mark.parametrize("name", ["simclr", "barlow_twins", "clocs"])
def test_pre_training_takes_steps(name, cohort, tmp_path):
    experiment = start(tiny_config(name, cohort), tmp_path)
    assert experiment.run_all([name])
    done = experiment.run.done(name)
    assert done["steps"] == 4
    assert np.isfinite(done["metrics"]["val/loss"])
    assert 0 < done["metrics"]["val/spread"] < 1.2


@pytest.fixture(scope="module")
def byol(cohort, tmp_path_factory):
    config = tiny_config("byol", cohort)
    experiment = start(config, tmp_path_factory.mktemp("byol"))
    assert experiment.run_all(["byol"])
    return config, experiment


def started(experiment):
    """Parameters and extra that the fine-tuning of a run starts from."""
    stage = next(stage for stage in experiment.stages if stage.target)
    objective, views, labels = stages.build(stage, experiment.config["models"], experiment.cohort)
    (example,) = pipeline.eval_batches(
        experiment.cohort, "val", np.arange(2), fields=tuple(stage.config["fields"]),
        labels=tuple(label.name for label in labels), batch_size=2,
    )  # fmt: skip
    return experiment.initial(stage, objective, views, example)


def test_fine_tuning_starts_from_the_online_encoder(byol):
    _, experiment = byol
    trained, extra, _ = load(experiment.run.stage("byol"), "latest")
    encoder = started(experiment)[0]["ecg_encoder"]
    assert set(encoder) - set(trained["ecg_encoder"]) == {"attention_pool"}
    del encoder["attention_pool"]
    jax.tree.map(np.testing.assert_array_equal, encoder, trained["ecg_encoder"])
    target = extra["target"]["network"]["params"]["ecg_encoder"]
    assert not np.array_equal(target["pos_embed"], encoder["pos_embed"])


def test_interrupted_byol_ends_in_the_same_target(byol, tmp_path, monkeypatch):
    config, experiment = byol
    whole = pipeline.train_batches
    fetched = []

    def interrupting(*args, **options):
        for batch in whole(*args, **options):
            fetched.append(1)
            if len(fetched) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(pipeline, "train_batches", interrupting)
    with pytest.raises(Interrupted):
        start(config, tmp_path).run_all(["byol"])
    _, extra, step = load(tmp_path / "stages" / "byol", "latest")
    assert 0 < step < 4
    assert int(extra["target"]["updates"]) == step + 1
    assert start(config, tmp_path).run_all(["byol"])
    folders = (tmp_path, experiment.run.path)
    found, expected = (load(folder / "stages" / "byol", "latest") for folder in folders)
    assert found[2] == expected[2] == 4
    jax.tree.map(np.testing.assert_array_equal, found[:2], expected[:2])


@pytest.mark.slow
def test_cmr_encoder_is_fine_tuned_evaluated_and_handed_on(cohort, tmp_path):
    assert start(tiny_config("cmr_supervised", cohort), tmp_path / "supervised").run_all()
    table = rows(tmp_path / "supervised")
    found = {(row["target"], row["metric"], row["split"]) for row in table}
    assert ("CAD", "auroc", "test") in found
    file = tmp_path / "supervised" / "evaluate" / "predictions" / "finetune__CAD__0.npz"
    assert len(set(np.load(file)["record"].tolist())) == 15

    # As from a contrastive stage.
    config = tiny_config("cmr_mmcl", cohort)
    assert config["stages"]["finetune"]["init"] == {"cmr_encoder": "mmcl"}
    origin = f"{tmp_path / 'supervised'}:finetune/CAD/0"
    config["stages"]["finetune"]["init"]["cmr_encoder"] = origin
    params, extra = started(start(config, tmp_path / "mmcl"))
    trained, statistics, _ = load(tmp_path / "supervised/stages/finetune/CAD/0", "best")
    jax.tree.map(np.testing.assert_array_equal, params["cmr_encoder"], trained["cmr_encoder"])
    jax.tree.map(np.testing.assert_array_equal, extra, statistics)
    assert not np.array_equal(params["head"]["fc"]["kernel"], trained["head"]["fc"]["kernel"])
