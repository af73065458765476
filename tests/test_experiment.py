"""The whole path on a handful of synthetic subjects: from a configuration file to a report."""

import dataclasses
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
from tiny_experiment import read_config, rows, shrink, start

from mmcl_jax import evaluate
from mmcl_jax.checkpoints import load
from mmcl_jax.command import run_verb
from mmcl_jax.data import pipeline
from mmcl_jax.data.cohort import settings_hash
from mmcl_jax.experiment import Experiment
from mmcl_jax.interpret.heart import contrast, heart_contrast, inside_and_outside
from mmcl_jax.interpret.similarity import similarity
from mmcl_jax.run_dir import RunDir
from mmcl_jax.stages import check_records

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def snapshot(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(f): (f.stat().st_size, f.stat().st_mtime_ns) for f in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmcl")
    config = shrink(read_config("mmcl"))
    assert start(config, folder).run_all()
    return config, folder


def test_every_stage_leaves_its_results(finished):
    _, folder = finished
    for stage in ("mdm", "image", "mmcl", "finetune/CAD/0", "finetune/phenotypes/0", "report"):
        assert json.loads((folder / "stages" / stage / "done.json").read_text())
    table = rows(folder)
    assert list(table[0]) == [
        "model", "target", "split", "metric", "value", "low", "high", "n", "seed",
    ]  # fmt: skip
    found = {(row["target"], row["split"], row["metric"]) for row in table}
    assert {("CAD", "test", "auroc"), ("CAD", "val", "ap"), ("LVEDV", "test", "r")} <= found
    assert ("ECG-CMR", "test", "ecg_to_cmr/recall@1") in found
    assert len({target for target, _, metric in found if metric == "r"}) == 61
    page = (folder / "report" / "index.html").read_text()
    assert "Synthetic cohort" in page
    assert "Simulated subjects (source: synthetic): the ES, mid and ED frames of" in page
    assert 'src="http' not in page


def test_predictions_are_in_the_unit_of_the_label(finished):
    _, folder = finished
    file = np.load(folder / "evaluate" / "predictions" / "finetune__phenotypes__0.npz")
    column = file["names"].tolist().index("LVEDV")
    assert file["units"][column] == "mL"
    assert 90 < np.median(file["prediction"][:, column]) < 220
    assert set(file["split"].tolist()) == {"val", "test"}


def test_heat_maps_cover_frames_and_leads(finished):
    _, folder = finished
    cmr = np.load(folder / "interpret" / "cmr_similarity.npz")
    ecg = np.load(folder / "interpret" / "ecg_similarity.npz")
    assert cmr["frames"].shape[1:] == (48, 48, 3)
    assert cmr["similarity"].shape == (6, 2, 2)
    assert ecg["similarity"].shape == (6, 12, 10)
    assert np.abs(cmr["similarity"]).max() <= 1 + 1e-6
    assert ecg["similarity"].std() > 0


def test_similarity_over_the_heart_of_all_test_subjects(finished):
    config, folder = finished
    experiment = start(config, folder)
    (stage,) = (s for s in experiment.training_stages() if s.name == "mmcl")
    found = heart_contrast(experiment, stage, "test")
    rows = pipeline.select(experiment.cohort, "test", fields=("ecg", "cmr"))
    cmr, _ = similarity(experiment, "mmcl", "test", rows)
    size = np.full((len(rows), 2), cmr["whole"].shape[1])
    inside, outside = inside_and_outside(cmr["similarity"], cmr["box"], size)
    numbers, expected = (
        {name: value for name, value in x.items() if value is not None}
        for x in (found["trained"], contrast(inside, outside))
    )
    assert numbers == pytest.approx(expected, rel=1e-4)
    assert found["untrained"]["n"] == 12
    centred = found["trained, own less others"]
    assert abs(centred["inside"]) < abs(found["trained"]["inside"])
    assert found["trained"]["inside"] != found["untrained"]["inside"]


def test_the_same_command_again_changes_nothing(finished):
    config, folder = finished
    before = snapshot(folder)
    assert not start(config, folder).run_all()
    assert snapshot(folder) == before


def test_towers_were_handed_on(finished):
    _, folder = finished
    stages = folder / "stages"
    mdm, _, _ = load(stages / "mdm", "latest")
    finetuned, _, _ = load(stages / "finetune/CAD/0", "best")
    assert {"ecg_encoder", "decoder"} == set(mdm)
    assert {"ecg_encoder", "head"} == set(finetuned)
    # Frozen during MDM: still the sin-cos table of a fresh encoder.
    table = mdm["ecg_encoder"]["pos_embed"]
    np.testing.assert_array_equal(table[0, 0], 0)
    # The contrastive stage started from that table and has trained it since.
    clip, extra, _ = load(stages / "mmcl", "best")
    moved = np.abs(clip["ecg_encoder"]["pos_embed"] - table)
    assert 0 < moved.max() < 0.1
    assert extra["batch_stats"].keys() == {"cmr_encoder"}


@pytest.mark.parametrize("verb", ["evaluate", "interpret"])
def test_verbs_take_only_the_run_directory(finished, monkeypatch, capsys, verb):
    _, folder = finished
    before = {file: file.read_bytes() for file in (folder / verb).rglob("*.csv")}
    monkeypatch.setattr(sys, "argv", [verb, str(folder)])
    run_verb(verb, "text")
    assert capsys.readouterr().out.strip()
    assert before == {file: file.read_bytes() for file in before}
    assert (folder / verb).is_dir()


def test_a_verb_wants_a_run_directory(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["evaluate", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        run_verb("evaluate", "text")
    assert stopped.value.code == 1
    assert "is no run directory" in capsys.readouterr().err


def test_changed_settings_of_a_finished_stage_are_refused(finished):
    config, folder = finished
    changed = json.loads(json.dumps(config))
    changed["stages"]["mdm"]["epochs"] = 7
    with pytest.raises(ValueError, match=r"stage mdm with other settings: stage.epochs: 1 then, 7"):
        Experiment(changed, RunDir(folder)).run_all()


def test_a_longer_list_of_targets_extends_the_run(finished, tmp_path):
    config, folder = finished
    longer = json.loads(json.dumps(config))
    extended = tmp_path / "extended"
    shutil.copytree(folder, extended)
    longer["stages"]["finetune"]["targets"] = ["CAD", "sex", "phenotypes"]
    before = snapshot(extended / "stages" / "mmcl")
    assert start(longer, extended).run_all()
    assert snapshot(extended / "stages" / "mmcl") == before
    assert {"CAD", "sex"} <= {row["target"] for row in rows(extended)}
    # A target that the configuration no longer has leaves the results too.
    longer["stages"]["finetune"]["targets"] = ["CAD", "phenotypes"]
    assert start(longer, extended).run_all()
    assert "sex" not in {row["target"] for row in rows(extended)}
    names = {file.name for file in (extended / "evaluate" / "predictions").iterdir()}
    assert names == {"finetune__CAD__0.npz", "finetune__phenotypes__0.npz"}


def test_a_stage_trained_anew_is_noticed_by_the_next(finished, tmp_path):
    config, folder = finished
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "stages" / "mdm")
    experiment = start(config, again)
    assert experiment.run_all(["mdm"])
    with pytest.raises(ValueError, match="stage mmcl with other settings: started_from.mdm"):
        experiment.run_all()


def test_another_synthetic_cohort_than_asked_for_is_refused(finished, tmp_path):
    config, folder = finished
    other = json.loads(json.dumps(config))
    other["data"]["synthetic"]["seed"] = 5
    shutil.copytree(folder / "cohort", tmp_path / "run" / "cohort")
    with pytest.raises(ValueError, match="another synthetic cohort .* seed: 0 then, 5 now"):
        start(other, tmp_path / "run").run_all(["mdm"])


def test_settings_of_a_configuration_file_are_checked(finished, tmp_path):
    config, folder = finished
    config = json.loads(json.dumps(config))
    config["data"]["path"] = str(folder / "cohort")
    config["stages"]["mdm"]["ecg_view"]["noise_sigm"] = 1
    with pytest.raises(ValueError, match="stages.mdm.ecg_view has no field noise_sigm"):
        start(config, tmp_path / "run").run_all(["mdm"])


def test_unknown_stage_is_refused(finished):
    config, folder = finished
    with pytest.raises(ValueError, match="no stage mdn; the configuration has mdm, image, mmcl"):
        Experiment(config, RunDir(folder)).run_all(["mdn"])


def test_a_stage_needs_the_one_before(finished, tmp_path):
    config, folder = finished
    config = json.loads(json.dumps(config))
    config["data"]["path"] = str(folder / "cohort")
    takes = "takes cmr_encoder from stage image, which is not done and not among the stages to run"
    with pytest.raises(ValueError, match=f"stage mmcl {takes}; add image to --stages"):
        start(config, tmp_path / "alone").run_all(["mdm", "mmcl"])
    # Nothing was trained before it.
    assert not (tmp_path / "alone" / "stages").exists()


def test_a_streamed_stage_ends_in_the_same_parameters(finished, tmp_path, capsys):
    config, folder = finished
    config = json.loads(json.dumps(config))
    config["data"] |= {"path": str(folder / "cohort"), "resident": "never", "cache": "always"}
    assert start(config, tmp_path / "streamed").run_all(["mdm"])
    assert "recordings stay in memory once read: " in capsys.readouterr().out
    ours, _, _ = load(tmp_path / "streamed" / "stages" / "mdm", "latest")
    theirs, _, _ = load(folder / "stages" / "mdm", "latest")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)


def test_where_recordings_are_is_no_setting_of_a_stage(finished):
    config, folder = finished
    config = json.loads(json.dumps(config))
    config["data"] |= {"resident": "never", "cache": "never", "workers": 1}
    assert not Experiment(config, RunDir(folder)).run_all()


def test_a_stage_can_start_from_another_run(finished, tmp_path):
    config, folder = finished
    config = json.loads(json.dumps(config))
    config["data"]["path"] = str(folder / "cohort")
    config["stages"]["finetune"]["init"] = {"ecg_encoder": f"{folder}:mmcl"}
    config["stages"]["finetune"]["targets"] = ["CAD"]
    experiment = start(config, tmp_path / "other")
    assert experiment.run_all(["finetune/CAD"])
    ours, _, _ = load(tmp_path / "other" / "stages" / "finetune/CAD/0", "latest")
    theirs, _, _ = load(folder / "stages" / "finetune/CAD/0", "latest")
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_another_preprocessing_is_refused(finished, tmp_path):
    config, folder = finished
    config = json.loads(json.dumps(config))
    config["data"]["path"] = str(folder / "cohort")
    config["data"]["preprocessing"]["ecg"]["clip"] = 3.0
    with pytest.raises(ValueError, match=r"ecg.clip: found 4.0, expected 3.0"):
        start(config, tmp_path / "other").run_all(["mdm"])


def test_a_model_refuses_recordings_preprocessed_otherwise(finished, tmp_path):
    """A cohort prepared anew at the same place, with a configuration that agrees with it."""
    config, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    marker = tmp_path / "run" / "cohort" / "cohort.json"
    content = json.loads(marker.read_text())
    content["settings"]["ecg"]["clip"] = 3.0
    content["settings_hash"] = settings_hash(content["settings"])
    marker.write_text(json.dumps(content))
    config = json.loads(json.dumps(config))
    config["data"]["path"] = str(marker.parent)
    config["data"]["preprocessing"]["ecg"]["clip"] = 3.0

    experiment = Experiment(config, RunDir(tmp_path / "run"))
    stage = next(stage for stage in experiment.stages if stage.name == "finetune/CAD/0")
    with pytest.raises(ValueError, match=r"ecg.clip: found 3.0, expected 4.0"):
        experiment.load(stage)

    config["stages"]["finetune"]["init"] = {"ecg_encoder": f"{folder}:mmcl"}
    config["stages"]["finetune"]["targets"] = ["CAD"]
    with pytest.raises(ValueError, match=r"ecg.clip: found 3.0, expected 4.0"):
        start(config, tmp_path / "other").run_all(["finetune/CAD"])


def test_what_a_cohort_cannot_give_is_known_before_anything_is_trained(finished, tmp_path):
    config, folder = finished
    config = json.loads(json.dumps(config))
    config["data"]["path"] = str(folder / "cohort")
    config["stages"]["finetune"]["targets"] = ["gout"]
    with pytest.raises(ValueError, match="no label called gout"):
        start(config, tmp_path).run_all()
    config["stages"]["finetune"] |= {"targets": ["CAD"], "batch_size": 500}
    with pytest.raises(ValueError, match="500"):
        start(config, tmp_path).run_all()
    assert not (tmp_path / "stages").exists()


def test_a_validation_split_of_one_class_is_an_error_before_training(finished):
    config, folder = finished
    experiment = start(config, folder)
    stage = next(stage for stage in experiment.stages if stage.name == "finetune/CAD/0")
    cohort = experiment.cohort
    column = [label.name for label in cohort.labels].index("CAD")
    val = {**cohort.tables["val"], "labels": cohort.tables["val"]["labels"].copy()}
    val["labels"][:, column] = 0
    with pytest.raises(ValueError, match="that know CAD are all of one class"):
        check_records(stage, dataclasses.replace(cohort, tables={**cohort.tables, "val": val}))


def test_a_split_without_records_has_no_results(finished, tmp_path, capsys):
    config, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    experiment = start(config, tmp_path / "run")
    cohort = experiment.cohort
    experiment._cohort = dataclasses.replace(cohort, splits={**cohort.splits, "val": 0})
    options = {"crops": 1, "resamples": 10, "batch_size": 8}
    assert evaluate.run(experiment, splits=("val", "test"), **options)["results"]
    assert "no records in split val: no results of it" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has no records in val; name a split that has some"):
        evaluate.run(experiment, splits=("val",), **options)


def test_a_tower_needs_no_settings_of_the_modality_it_leaves(finished, tmp_path):
    """A tower trained on pairs goes on with a cohort of ECGs, which knows of no CMR."""
    config, folder = finished
    shutil.copytree(folder / "cohort", tmp_path / "cohort")
    marker = tmp_path / "cohort" / "cohort.json"
    content = json.loads(marker.read_text())
    del content["settings"]["cmr"]
    content["settings_hash"] = settings_hash(content["settings"])
    marker.write_text(json.dumps(content))
    config = json.loads(json.dumps(config))
    config["data"]["path"] = str(marker.parent)
    config["stages"]["finetune"]["init"] = {"ecg_encoder": f"{folder}:mmcl"}
    config["stages"]["finetune"]["targets"] = ["CAD"]
    assert start(config, tmp_path / "other").run_all(["finetune"])
    done = RunDir(tmp_path / "other").done("finetune/CAD/0")
    assert done["preprocessing_hash"] == content["settings_hash"]


def test_runs_from_before_splits_could_be_chosen_go_on(finished):
    config, folder = finished
    before = json.loads(json.dumps(config))
    del before["data"]["synthetic"]["splits"]
    for stage in start(config, folder).training_stages():
        assert start(before, folder)._settings(stage) == start(config, folder)._settings(stage)
    other = json.loads(json.dumps(config))
    other["data"]["synthetic"]["splits"] = [50, 25, 25]
    with pytest.raises(ValueError, match=r"synthetic.splits: .* then, \[50, 25, 25\] now"):
        start(other, folder).run_all()


def test_what_a_synthetic_cohort_would_be_does_not_matter_to_one_that_is_named(finished, tmp_path):
    config, folder = finished
    config = json.loads(json.dumps(config))
    config["data"]["path"] = str(folder / "cohort")
    shutil.copytree(folder / "stages" / "mdm", tmp_path / "stages" / "mdm")
    file = tmp_path / "stages" / "mdm" / "stage.json"
    before = json.loads(file.read_text())
    # An earlier version wrote it down all the same.
    before["data"] |= {"path": config["data"]["path"], "synthetic": {"subjects": 5}}
    file.write_text(json.dumps(before))
    config["data"]["synthetic"]["subjects"] = 4000
    assert not start(config, tmp_path).run_all(["mdm"])
    before["data"]["path"] = "/another"
    file.write_text(json.dumps(before))
    with pytest.raises(ValueError, match="data.path: '/another' then"):
        start(config, tmp_path).run_all(["mdm"])


def test_a_cohort_with_other_records_than_a_stage_was_trained_on_is_refused(
    finished, tmp_path, capsys
):
    config, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    index = tmp_path / "run" / "cohort" / "index.npz"
    tables = dict(np.load(index))
    tables["train/subject"][0] = "another"
    np.savez(index, **tables)
    shutil.rmtree(tmp_path / "run" / "stages" / "mmcl")
    with pytest.raises(ValueError, match="other records, splits or labels than when stage mdm of"):
        start(config, tmp_path / "run").run_all(["mmcl"])
    assert Experiment(config, RunDir(tmp_path / "run"), force=True).cohort.splits["train"]
    assert "forced: " in capsys.readouterr().err
    # Nothing is read where there is nothing to do.
    assert not start(config, tmp_path / "run").run_all(["mdm"])


def test_a_frozen_tower_stays_bit_for_bit(finished, tmp_path):
    config, folder = finished
    config = json.loads(json.dumps(config))
    config["data"]["path"] = str(folder / "cohort")
    config["stages"]["mmcl"]["init"] = {
        "ecg_encoder": f"{folder}:mdm",
        "cmr_encoder": f"{folder}:image",
    }
    config["stages"]["mmcl"]["frozen"] = ["cmr_encoder"]
    assert start(config, tmp_path / "frozen").run_all(["mmcl"])
    params, extra, _ = load(tmp_path / "frozen" / "stages" / "mmcl", "latest")
    image, image_extra, _ = load(folder / "stages" / "image", "best")
    jax.tree.map(np.testing.assert_array_equal, params["cmr_encoder"], image["cmr_encoder"])
    jax.tree.map(
        np.testing.assert_array_equal,
        extra["batch_stats"]["cmr_encoder"],
        image_extra["batch_stats"]["cmr_encoder"],
    )
