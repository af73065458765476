"""Too little memory on the device ends a stage with what to do about it."""

import jax
import jax.numpy as jnp
import pytest
from tiny_experiment import read_config, shrink

from mmcl_jax import device_memory, stages
from mmcl_jax.command import errors_in_one_line
from mmcl_jax.device_memory import OutOfDeviceMemory


def fill_the_device():
    """Asks for 4 PB, more than there are addresses."""
    return jnp.zeros((10**15,)).block_until_ready()


@pytest.fixture
def config():
    return shrink(read_config("mmcl"))


def message(config, name):
    stage = next(stage for stage in stages.expand(config) if stage.name == name)
    with pytest.raises(OutOfDeviceMemory) as error, device_memory.explained(stage, config):
        fill_the_device()
    assert isinstance(error.value.__cause__, jax.errors.JaxRuntimeError)
    return str(error.value)


def test_it_says_where_and_how_much(config):
    said = message(config, "mdm")
    assert said.startswith("stage mdm, cpu: Out of memory allocating 4000000000000000 bytes. ")
    assert "\n" not in said


def test_a_loss_that_is_a_mean_over_rows_can_be_computed_in_parts(config):
    mdm = config["stages"]["mdm"]
    mdm["batch_size"] = 8 * jax.device_count()
    mdm["accumulate"] = 4
    assert "--config.data.resident=never, or --config.stages.mdm.accumulate=8 " in message(
        config, "mdm"
    )
    config["data"]["resident"] = "never"
    assert "resident" not in message(config, "mdm")
    # Parts would not divide by the devices.
    mdm["batch_size"] = 4 * jax.device_count()
    assert "accumulate" not in message(config, "mdm")
    # A CPU computes parts of 8 rows by itself, others do not.
    mdm |= {"batch_size": 8 * jax.device_count(), "accumulate": 0}
    assert "accumulate" not in message(config, "mdm")


def test_a_gpu_is_not_told_of_the_parts_of_a_cpu(config, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config["stages"]["mdm"]["batch_size"] = 2 * jax.device_count()
    assert "--config.stages.mdm.accumulate=2 " in message(config, "mdm")


def test_a_contrastive_one_can_keep_less(config):
    said = message(config, "mmcl")
    assert "--config.models.cmr_encoder.rematerialise=True" in said
    assert "accumulate" not in said
    config["models"]["cmr_encoder"]["rematerialise"] = True
    assert "rematerialise" not in message(config, "mmcl")
    config["stages"]["mmcl"]["towers"]["cmr_encoder"]["rematerialise"] = False
    said = message(config, "mmcl")
    assert "--config.stages.mmcl.towers.cmr_encoder.rematerialise=True" in said


def test_a_sweep_can_have_fewer_members(config):
    config["stages"]["finetune"]["sweep"] = {"grid": {"rate": (1e-3, 1e-4)}}
    said = message(config, "finetune/CAD/0")
    assert "take --config.stages.finetune.sweep.members=12, or a grid of smaller batches" in said
    assert "resident" not in said
    config["stages"]["finetune"]["sweep"]["members"] = 1
    assert "take a grid of smaller batches in another --workdir" in message(
        config, "finetune/CAD/0"
    )


def test_other_errors_of_xla_stay_as_they_are(config):
    (stage, *_) = stages.expand(config)
    error = jax.errors.JaxRuntimeError("INTERNAL: something else")
    with pytest.raises(type(error), match="INTERNAL"), device_memory.explained(stage, config):
        raise error


def test_commands_end_in_one_line(config, capsys):
    (stage, *_) = stages.expand(config)
    one_line, explained = errors_in_one_line(), device_memory.explained(stage, config)
    with pytest.raises(SystemExit, match="1"), one_line, explained:
        fill_the_device()
    assert capsys.readouterr().err.startswith("error: stage mdm, cpu: Out of memory")


def test_an_error_without_words_is_explained_too(config):
    (stage, *_) = stages.expand(config)
    explained = device_memory.explained(stage, config)
    with pytest.raises(OutOfDeviceMemory, match="cpu: out of memory. See"), explained:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")
