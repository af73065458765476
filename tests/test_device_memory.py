"""Too little memory on the device ends a stage with what to do about it."""

import jax
import jax.numpy as jnp
import pytest
from tiny_experiment import read_config, shrink

from mmcl_jax import device_memory, stages
from mmcl_jax.command import errors_in_one_line
from mmcl_jax.device_memory import OutOfDeviceMemory


def fill_the_device():
    """Asks for 40 TB, which no device has."""
    return jnp.zeros((10**13,)).block_until_ready()


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
    assert said.startswith("stage mdm, cpu: Out of memory allocating 40000000000000 bytes. ")
    assert "\n" not in said


def test_a_loss_that_is_a_mean_over_rows_can_be_computed_in_parts(config):
    config["stages"]["mdm"]["batch_size"] = 2 * jax.device_count()
    said = message(config, "mdm")
    assert "--config.data.resident=never, or --config.stages.mdm.accumulate=2 " in said
    config["data"]["resident"] = "never"
    config["stages"]["mdm"]["accumulate"] = 4
    config["stages"]["mdm"]["batch_size"] = 8 * jax.device_count()
    said = message(config, "mdm")
    assert "resident" not in said
    assert "accumulate=8 " in said
    config["stages"]["mdm"]["batch_size"] = 4 * jax.device_count()
    assert "accumulate" not in message(config, "mdm")


def test_a_contrastive_one_can_keep_less(config):
    said = message(config, "mmcl")
    assert "--config.models.cmr_encoder.rematerialise=True" in said
    assert "accumulate" not in said
    config["models"]["cmr_encoder"]["rematerialise"] = True
    assert "rematerialise" not in message(config, "mmcl")


def test_a_sweep_can_have_fewer_members(config):
    grid = {"rate": (1e-3, 1e-4)}
    config["stages"]["finetune"]["sweep"] = {"grid": grid}
    said = message(config, "finetune/CAD/0")
    assert "--config.stages.finetune.sweep.members=12, or a smaller --config.stages" in said
    assert "resident" not in said
    grid["batch_size"] = (8, 16)
    config["stages"]["finetune"]["sweep"] = {"grid": grid, "members": 1}
    said = message(config, "finetune/CAD/0")
    assert "memory: a grid without the largest --config.stages.finetune.sweep.grid" in said


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
