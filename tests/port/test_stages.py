"""Ported weights and stages of other runs where a stage begins, and stages that are ported."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from port_files import DECODER_HEADS, DECODER_WIDTH, DEPTH, HEADS, WIDTH, port, refused, small
from tiny_experiment import read_config, shrink

from mmcl_jax import models, origins
from mmcl_jax.checkpoints import Checkpoints
from mmcl_jax.experiment import Experiment
from mmcl_jax.port import ported, torch_file, torch_writer
from mmcl_jax.port.ported import Towers
from mmcl_jax.run_dir import RunDir
from mmcl_jax.stages import check
from mmcl_jax.state import State


def configuration(name: str = "mmcl") -> dict:
    """A configuration for the sizes of the weights of these tests."""
    config = shrink(read_config(name))
    config["models"]["ecg_encoder"].update(width=WIDTH, depth=DEPTH, heads=HEADS, samples=500)
    sizes = {"width": DECODER_WIDTH, "depth": 2, "heads": DECODER_HEADS, "samples": 500}
    config["models"]["decoder"].update(sizes)
    return config


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    """A masked autoencoder as `mae.pth`, ported to `mae`, and as stage mdm of the run `run`."""
    folder = tmp_path_factory.mktemp("weights")
    torch_writer.save(folder / "mae.pth", {"model": small(golden, "masked_autoencoder")})
    options = ("--heads", str(HEADS), "--decoder-heads", str(DECODER_HEADS))
    assert port(folder / "mae.pth", folder / "mae", *options) == 0
    run = Experiment(configuration(), RunDir(folder / "run"))
    run.run.write_config(run.config)
    (stage,) = (stage for stage in run.stages if stage.name == "mdm")
    run._write_settings(stage)
    with Checkpoints(run.run.stage("mdm")) as saved:
        saved.save_best(State(np.int32(3), ported.read(folder / "mae").params, {}, {}))
    run.run.mark_done("mdm", {"hand_on": "best", "id": "1"})
    return folder


def starting_from(origin, folder, name="mmcl", **encoder):
    """Stage `finetune` of a new run that takes its encoder from `origin`, and fresh parameters."""
    config = configuration(name)
    config["models"]["ecg_encoder"].update(encoder)
    finetune = config["stages"]["finetune"]
    finetune["init"] = {"ecg_encoder": str(origin)}
    finetune["new"] = ["ecg_encoder/attention_pool", "ecg_encoder/fc_norm"]
    experiment = Experiment(config, RunDir(folder / "new"))
    settings = config["data"]["preprocessing"]
    experiment._cohort = types.SimpleNamespace(settings=settings, path=folder)
    stage = next(stage for stage in experiment.stages if stage.group == "finetune")
    network = models.build({**config["models"]["ecg_encoder"], "pool": "attention"})
    ecg = jax.ShapeDtypeStruct((1, 12, network.samples), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), ecg)["params"]
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    return experiment, stage, {"ecg_encoder": fresh, "head": {}}


@pytest.mark.parametrize("origin", ["mae", "run:mdm"])
def test_a_stage_starts_from_ported_weights_or_another_run(folder, capsys, origin):
    experiment, stage, fresh = starting_from(folder / origin, folder, samples=1000)
    check(stage, [])
    params, _ = origins.take_over(experiment, stage, fresh, {})
    assert "interpolated (bicubic) from 5 to 10" in capsys.readouterr().out
    ours, theirs = params["ecg_encoder"], ported.read(folder / "mae").params["ecg_encoder"]
    assert ours["pos_embed"].shape == (1, 121, WIDTH)
    assert "norm" not in ours
    jax.tree.map(np.testing.assert_array_equal, ours["block_1"], theirs["block_1"])


@pytest.mark.parametrize("origin", ["mae", "run:mdm"])
@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        ({"heads": 2}, "heads 3; the configuration says heads 2"),
        ({"width": 96}, "width 48; the configuration says width 96"),
        ({"mlp_ratio": 2.0}, "mlp_ratio 4.0; the configuration says mlp_ratio 2.0"),
        ({"patch": [1, 50]}, r"patch \(1, 100\); the configuration says patch \(1, 50\)"),
    ],
)
def test_an_encoder_of_other_settings_is_an_error(folder, origin, sizes, found):
    """Heads are not in the shapes of the weights: the wrong number would compute otherwise."""
    experiment, stage, fresh = starting_from(folder / origin, folder, **sizes)
    flag = f"--config.models.ecg_encoder.{next(iter(sizes))}="
    with pytest.raises(ValueError, match=rf"ecg_encoder of .*{origin} has {found}.* Set {flag}"):
        origins.take_over(experiment, stage, fresh, {})


def test_it_is_found_before_the_first_stage_is_trained(folder, capsys):
    experiment, _, _ = starting_from(folder / "mae", folder, heads=2)
    with pytest.raises(ValueError, match="heads 3; the configuration says heads 2"):
        experiment.run_all()
    assert "stage mdm" not in capsys.readouterr().out


def test_what_a_stage_cannot_start_from(folder):
    experiment, stage, fresh = starting_from(folder / "run:mmcl", folder)
    with pytest.raises(ValueError, match="stage mmcl of .*run is not done"):
        origins.take_over(experiment, stage, fresh, {})
    experiment, stage, fresh = starting_from(folder / "mae", folder)
    stage.config["init"] = {"cmr_encoder": str(folder / "mae")}
    with pytest.raises(ValueError, match="takes cmr_encoder from .*which has only ecg_encoder, de"):
        origins.take_over(experiment, stage, fresh, {})
    stage.config["init"] = {"ecg_encoder": "nowhere"}
    with pytest.raises(ValueError, match="no folder that mmcl_jax.port wrote"):
        check(stage, [])


@pytest.mark.parametrize("name", ["mmcl", "ptbxl"])
def test_masked_modelling_can_start_from_ported_weights_on_the_command_line(name):
    """The fields are there, so that flags can set them, and empty ones count as none."""
    config = configuration(name)
    assert config["stages"]["mdm"]["init"] == {"ecg_encoder": "", "decoder": ""}
    experiment = Experiment(config, RunDir("nowhere"))
    (stage,) = (stage for stage in experiment.stages if stage.name == "mdm")
    assert stage.config["init"] == {}


def test_a_stage_goes_to_pytorch(folder, tmp_path, capsys):
    assert port(f"{folder}/run:mdm", tmp_path / "b.pth") == 0
    first = torch_file.load(folder / "mae.pth")["model"]
    second = torch_file.load(tmp_path / "b.pth")["model"]
    assert set(second) == set(first)
    for key, array in second.items():
        np.testing.assert_array_equal(array, first[key], strict=True)
    assert port(folder / "run" / "stages" / "mdm", tmp_path / "c.pth") == 0
    assert (tmp_path / "c.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    error = refused(capsys, folder / "run", tmp_path / "d.pth")
    assert "name a stage as" in error
    assert error.endswith(", of mdm\n")
    unfinished = tmp_path / "run" / "stages" / "mdm"
    unfinished.mkdir(parents=True)
    (unfinished / "stage.json").write_text(json.dumps({}))
    error = refused(capsys, f"{tmp_path}/run:mdm", tmp_path / "d.pth")
    assert "the stage is not done" in error


def test_settings_that_weights_depend_on_are_compared():
    spec = {"name": "vit", "width": 32, "depth": 1, "heads": 4, "samples": 500, "patch": [1, 100]}
    towers = Towers({}, {}, {"ecg_encoder": spec}, "ported/a")
    towers.check("ecg_encoder", {**spec, "samples": 2500, "pool": "attention", "drop_path": 0.2})
    with pytest.raises(ValueError, match=r"ported/a has heads 4; .* heads 2.*ecg_encoder.heads=4"):
        towers.check("ecg_encoder", {**spec, "heads": 2})
    with pytest.raises(ValueError, match="is a vit, expected a resnet"):
        towers.check("ecg_encoder", {"name": "resnet"})
