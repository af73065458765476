"""A stage that the run directory holds with other settings than the configuration."""

import json
import shutil

import pytest
from tiny_experiment import read_config, shrink

from mmcl_jax.experiment import Experiment
from mmcl_jax.run_dir import RunDir


@pytest.fixture
def begun(tmp_path):
    """A configuration, and a run directory in which MDM was begun with fewer epochs."""
    config = shrink(read_config("mmcl"))
    run = RunDir(tmp_path)
    Experiment(config, run)._write_settings(Experiment(config, run).stages[0])
    (run.stage("mdm") / "checkpoints" / "latest" / "4").mkdir(parents=True)
    config["stages"]["mdm"]["epochs"] = 7
    return config, run


def test_other_settings_are_refused_with_what_differs(begun):
    config, run = begun
    experiment = Experiment(config, run)
    with pytest.raises(ValueError, match=r"other settings: stage.epochs: 1 then, 7 now. .*--force"):
        experiment.is_done(experiment.stages[0])


def test_other_settings_can_be_forced(begun, capsys):
    config, run = begun
    experiment = Experiment(config, run, force=True)
    mdm = experiment.stages[0]
    for _ in range(2):
        assert not experiment.is_done(mdm)
    said = "forced: stage mdm goes on despite other settings: stage.epochs: 1 then, 7 now"
    assert capsys.readouterr().err.count(said) == 1
    experiment._write_settings(mdm)
    # The settings of the first steps are kept beside those of the next ones.
    (former,) = run.stage("mdm").glob("stage.until-*.json")
    assert json.loads(former.read_text())["stage"]["epochs"] == 1
    assert json.loads((run.stage("mdm") / "stage.json").read_text())["stage"]["epochs"] == 7
    assert not Experiment(config, run).is_done(mdm)


def test_what_is_done_stays_as_it_is(begun, capsys):
    config, run = begun
    run.mark_done("mdm", {"steps": 1})
    experiment = Experiment(config, run, force=True)
    assert experiment.is_done(experiment.stages[0])
    assert "forced: stage mdm stays as it is despite other settings" in capsys.readouterr().err


def test_settings_with_which_nothing_was_saved_can_change(begun):
    config, run = begun
    shutil.rmtree(run.stage("mdm") / "checkpoints" / "latest" / "4")
    assert not Experiment(config, run).is_done(Experiment(config, run).stages[0])


def test_what_is_computed_again_to_save_memory_can_change(tmp_path):
    config = shrink(read_config("mmcl"))
    run = RunDir(tmp_path)
    image = next(stage for stage in Experiment(config, run).stages if stage.name == "image")
    Experiment(config, run)._write_settings(image)
    run.mark_done("image", {"steps": 1})
    config["models"]["cmr_encoder"]["rematerialise"] = True
    config["stages"]["image"]["towers"]["cmr_encoder"].pop("rematerialise", None)
    assert Experiment(config, run).is_done(image)
    config["models"]["cmr_encoder"]["width"] = 12
    with pytest.raises(ValueError, match="other settings: models.cmr_encoder.width: 8 then"):
        Experiment(config, run).is_done(image)


def test_how_recordings_are_read_can_change(begun):
    config, run = begun
    config["stages"]["mdm"]["epochs"] = 1
    config["data"] |= {"on_corrupt": "skip", "resident": "never", "workers": 2}
    assert not Experiment(config, run).is_done(Experiment(config, run).stages[0])


def test_a_stage_of_another_run_that_was_trained_anew_is_noticed(tmp_path):
    other = RunDir(tmp_path / "other")
    other.write_config({})
    other.mark_done("mmcl", {"id": "first"})
    config = shrink(read_config("mmcl"))
    origin = f"{other.path}:mmcl"
    config["stages"]["finetune"]["init"] = {"ecg_encoder": origin}
    run = RunDir(tmp_path / "run")
    run.write_config(config)
    experiment = Experiment(config, run)
    stage = next(stage for stage in experiment.stages if stage.name == "finetune/CAD/0")
    experiment._write_settings(stage)
    run.mark_done(stage.name, {"id": "ours"})
    assert experiment.is_done(stage)
    other.mark_done("mmcl", {"id": "another"})
    with pytest.raises(ValueError, match=f"started_from.{origin}: 'first' then, 'another' now"):
        experiment.is_done(stage)
    # Gone, it is not missed.
    shutil.rmtree(other.path)
    assert experiment.is_done(stage)
