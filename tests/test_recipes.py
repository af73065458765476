"""Recipes that are not the tiny run of test_experiment.py."""

import pytest
from tiny_experiment import read_config, rows, shrink, start

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def test_unknown_config_argument_lists_the_known():
    with pytest.raises(ValueError, match="unknown config argument dmeo. Known: demo: small"):
        read_config("mmcl", "dmeo")


def test_reference_switches_to_the_published_settings():
    config = read_config("mmcl", "reference")
    assert config.stages.mdm.settings.rounding == "truncate"
    assert config.stages.mmcl.optimizer.name == "adam_l2"
    assert config.stages.finetune.towers.ecg_encoder.fc_norm_twice
    assert read_config("mmcl", "reference,demo").models.ecg_encoder.width < 384


def test_ptbxl_recipe_on_real_recordings(recordings, tmp_path):
    from mmcl_jax import prepare

    cohort = tmp_path / "ptbxl"
    source = str(recordings / "ptbxl")
    assert prepare.main(["ptbxl", "--input", source, "--output", str(cohort)]) == 0
    config = read_config("ptbxl")
    config.data.path = str(cohort)
    config = shrink(config)
    folder = tmp_path / "run"
    assert start(config, folder).run_all()
    found = {row["target"] for row in rows(folder) if row["metric"] == "auroc" and row["value"]}
    assert found == {"NORM", "MI", "STTC", "CD", "HYP"}
    assert "Synthetic cohort" not in (folder / "report" / "index.html").read_text()


def test_half_precision_is_chosen_by_the_device_or_by_name():
    for words, dtype in (("", "auto"), ("bfloat16", "bfloat16"), ("float32,demo", "float32")):
        found = read_config("mmcl", words).models
        assert {found[name].dtype for name in ("ecg_encoder", "decoder", "cmr_encoder")} == {dtype}
    with pytest.raises(ValueError, match="name one of them"):
        read_config("baselines", "byol,float32,bfloat16")
