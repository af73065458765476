"""The settings that are measured are those of the configuration."""

import importlib.util
import pathlib

import pytest

from mmcl_jax.bench import settings


@pytest.fixture(scope="module")
def config():
    path = pathlib.Path(__file__).resolve().parents[2] / "configs" / "mmcl.py"
    spec = importlib.util.spec_from_file_location("mmcl_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config().to_dict()


@pytest.mark.parametrize("name", sorted(settings.FULL))
def test_equal_the_configuration(config, name):
    stage = config["stages"][name]
    towers = {
        tower: config["models"][tower] | changes for tower, changes in stage["towers"].items()
    }
    assert settings.FULL[name]["towers"] == towers
    for field in set(settings.FULL[name]) - {"towers"}:
        assert settings.FULL[name][field] == stage[field], field


def test_embedding_is_that_of_the_contrastive_stage():
    assert settings.spec("embed") == settings.spec("mmcl")


def test_tiny_settings_have_the_fields_of_the_full_ones():
    for name in settings.STEPS:
        full, tiny = settings.spec(name), settings.spec(name, "tiny", "bfloat16")
        assert tiny.keys() == full.keys()
        for tower in full["towers"]:
            assert tiny["towers"][tower].keys() == full["towers"][tower].keys()
        assert tiny["towers"]["ecg_encoder"]["dtype"] == "bfloat16"
