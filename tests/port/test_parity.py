"""Random files as PyTorch saves them, through the command and against PyTorch itself.

What needs no PyTorch is in the other files of this name.
"""

import argparse
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from port_files import DEPTH, HEADS, WIDTH, apply, port, refused

from mmcl_jax import checkpoints, models
from mmcl_jax.models.positions import interpolate
from mmcl_jax.objectives.masked_modelling import shuffle
from mmcl_jax.port import ported, torch_file, torch_writer

torch = pytest.importorskip("torch")
torch_models = pytest.importorskip("torch_models", exc_type=ImportError)
resnets = torch_models.resnets

ECG = np.random.default_rng(0).standard_normal((2, 12, 500), np.float32)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def signal(**options):
    return torch_models.Signal(WIDTH, DEPTH, HEADS, **{"samples": 500, **options})


def masked():
    return torch_models.Masked(WIDTH, DEPTH, HEADS, (32, 1, 4), samples=500)


def close(ours, theirs, tolerance):
    theirs = theirs.detach().numpy()
    assert np.linalg.norm(np.asarray(ours) - theirs) <= tolerance * np.linalg.norm(theirs)


def assert_same_file(first, second, dropped=()):
    """Two files of PyTorch hold the same bits under the same names, but for `dropped`."""
    first = torch.load(first, weights_only=False)
    second = torch.load(second, weights_only=True)
    for wrapper in ("model", "state_dict"):
        if wrapper in first:
            assert list(second) == [wrapper]
            first, second = first[wrapper], second[wrapper]
    assert set(second) == {key for key in first if not key.startswith(dropped)}
    for key, tensor in second.items():
        assert tensor.dtype == first[key].dtype
        assert torch.equal(tensor, first[key])


@pytest.mark.parametrize("parts", [("norm",), ("norm", "fc_norm", "attention_pool", "head")])
def test_signal_encoder(tmp_path, parts):
    network = signal(parts=parts)
    torch.save({"model": network.state_dict()}, tmp_path / "a.pth")
    assert port(tmp_path / "a.pth", tmp_path / "ours", "--heads", "3") == 0
    close(apply(tmp_path / "ours", "ecg_encoder", ECG, pool="none")["tokens"],
          network(torch.from_numpy(ECG)), 1e-5)  # fmt: skip
    if "attention_pool" in parts:
        features = apply(tmp_path / "ours", "ecg_encoder", ECG)["features"]
        close(features, network.pool(torch.from_numpy(ECG)), 1e-5)
        close(apply(tmp_path / "ours", "head", features), network.head(network.pool(
            torch.from_numpy(ECG))), 1e-5)  # fmt: skip
    assert port(tmp_path / "ours", tmp_path / "b.pth") == 0
    assert_same_file(tmp_path / "a.pth", tmp_path / "b.pth")


def test_masked_autoencoder_with_its_training_state(tmp_path, capsys):
    network = masked()
    optimizer = torch.optim.AdamW(network.parameters())
    network.reconstruct(torch.from_numpy(ECG), *order(20)[1:]).square().mean().backward()
    optimizer.step()
    content = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    content["args"] = argparse.Namespace(input_size=(1, 12, 500), device=torch.device("cpu"))
    torch.save(content, tmp_path / "a.pth")
    options = ("--heads", "3", "--decoder-heads", "4")
    assert port(tmp_path / "a.pth", tmp_path / "ours", *options) == 0
    report = capsys.readouterr().out
    assert "projector.0.weight (8, 48)" in report
    assert "left out: optimizer, epoch, args" in report

    noise, visible, restore = order(20)
    latent = apply(
        tmp_path / "ours", "ecg_encoder", ECG, pool="none", visible=jnp.asarray(visible)
    )["latent"]
    ours = apply(tmp_path / "ours", "decoder", latent, jnp.asarray(restore))
    theirs = network.reconstruct(torch.from_numpy(ECG), visible, restore)
    close(ours, theirs, 1e-5)
    patches = ECG.reshape(2, 60, 100)
    loss = ((theirs - torch.from_numpy(patches)) ** 2).mean().item()
    assert abs(float(((ours - patches) ** 2).mean()) - loss) <= 1e-5 * loss
    np.testing.assert_array_equal(shuffle(jnp.asarray(noise), 20)[1], restore)

    assert port(tmp_path / "ours", tmp_path / "b.pth") == 0
    assert_same_file(tmp_path / "a.pth", tmp_path / "b.pth", dropped=("projector.",))


def order(keep):
    noise = torch.rand(2, 60)
    shuffled = noise.argsort(dim=1)
    return noise.numpy(), shuffled[:, :keep], shuffled.argsort(dim=1)


@pytest.mark.parametrize("named", [False, True], ids=["published", "torchvision"])
def test_image_encoder(tmp_path, named, capsys):
    resnet = torch_models.shake(resnets.resnet50())
    state = resnet.state_dict()
    if not named:
        children = torch.nn.Sequential(*list(resnet.children())[:-1])
        state = {f"encoder_imaging.{key}": value for key, value in children.state_dict().items()}
        state = {"state_dict": state}
    torch.save(state, tmp_path / "a.pth")
    assert port(tmp_path / "a.pth", tmp_path / "ours") == 0
    assert ("fc.weight (1000, 2048)" in capsys.readouterr().out) == named
    frames = np.random.default_rng(1).random((1, 48, 48, 3), np.float32)
    maps = torch.nn.Sequential(*list(resnet.children())[:-2])
    theirs = maps(torch.from_numpy(frames.transpose(0, 3, 1, 2))).permute(0, 2, 3, 1)
    close(apply(tmp_path / "ours", "cmr_encoder", frames)["map"], theirs, 1e-4)
    assert port(tmp_path / "ours", tmp_path / "b.pth") == 0
    assert_same_file(tmp_path / "a.pth", tmp_path / "b.pth", dropped=("fc.",))


def lightning(path, **more):
    network = torch_models.Contrastive(resnets.resnet18(), signal(parts=("fc_norm", "head")), WIDTH)
    torch.save({"state_dict": torch_models.shake(network).state_dict(), "epoch": 1, **more}, path)
    return network


def test_lightning_checkpoint(tmp_path, capsys, monkeypatch):
    # Pickled under OmegaConf's name, with a state that holds itself.
    module = type(sys)("omegaconf.dictconfig")
    module.DictConfig = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})
    settings = module.DictConfig()
    settings.parent, settings.type = settings, dict
    monkeypatch.setitem(sys.modules, "omegaconf", type(sys)("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    lightning(tmp_path / "a.ckpt", hyper_parameters=settings, optimizer_states=[{"state": {}}])
    monkeypatch.undo()
    with pytest.raises(ValueError, match="refused: the file asks for omegaconf"):
        torch_file.load(tmp_path / "a.ckpt")

    assert port(tmp_path / "a.ckpt", tmp_path / "ours", "--heads", "3") == 0
    assert "omegaconf" not in sys.modules
    report = capsys.readouterr().out
    assert "classes in the file that were not read: omegaconf.dictconfig.DictConfig" in report
    assert "classifier.weight (2, 48)" in report
    found = ported.read(tmp_path / "ours")
    towers = {"ecg_encoder", "head", "ecg_projector", "cmr_encoder", "cmr_projector"}
    assert set(found.models) == towers
    assert port(tmp_path / "ours", tmp_path / "b.ckpt") == 0
    # `weights_only=False` in the comparison would need OmegaConf.
    first, second = (torch_file.load(tmp_path / f"{n}.ckpt", foreign=True) for n in "ab")
    for key, array in second["state_dict"].items():
        np.testing.assert_array_equal(array, first["state_dict"][key], strict=True)
    assert len(first["state_dict"]) - len(second["state_dict"]) == 2  # the classifier

    # The single encoders, under the keys of the published files.
    assert port(tmp_path / "ours", tmp_path / "s.pth", "--towers", "ecg_encoder") == 0
    single = torch.load(tmp_path / "s.pth", weights_only=True)
    signal(parts=("fc_norm",)).load_state_dict(single["model"], strict=True)
    assert port(tmp_path / "ours", tmp_path / "i.pth", "--towers", "cmr_encoder") == 0
    assert "encoder_imaging.0.weight" in torch.load(tmp_path / "i.pth")["state_dict"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(tmp_path, dtype, capsys):
    state = signal().to(getattr(torch, dtype)).state_dict()
    torch.save({"model": state}, tmp_path / "a.pth")
    assert port(tmp_path / "a.pth", tmp_path / "ours", "--heads", "3") == 0
    assert f"converted from {dtype} to float32 (exact)" in capsys.readouterr().out
    leaves = jax.tree.leaves(ported.read(tmp_path / "ours").params)
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    assert port(tmp_path / "ours", tmp_path / "b.pth") == 0
    assert_same_file(tmp_path / "a.pth", tmp_path / "b.pth")
    assert port(tmp_path / "ours", tmp_path / "c.pth", "--dtype", "float32") == 0
    wide = torch.load(tmp_path / "c.pth")["model"]
    assert all(torch.equal(wide[key], state[key].float()) for key in state)


def test_safetensors(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    state = {**signal().state_dict(), "norm.bias": torch.rand(WIDTH).bfloat16()}
    library.save_file(state, tmp_path / "a.safetensors")
    assert port(tmp_path / "a.safetensors", tmp_path / "ours", "--heads", "3") == 0
    assert port(tmp_path / "ours", tmp_path / "b.safetensors") == 0
    found = library.load_file(tmp_path / "b.safetensors")
    assert set(found) == set(state)
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in state.items())
    assert port(tmp_path / "ours", tmp_path / "b.pth") == 0
    assert set(torch.load(tmp_path / "b.pth")["model"]) == set(state)


def test_positions_of_another_length(tmp_path, capsys):
    network = signal(samples=1000)
    torch.save({"model": network.state_dict()}, tmp_path / "a.pth")
    options = ("--heads", "3", "--samples", "500")
    assert port(tmp_path / "a.pth", tmp_path / "ours", *options) == 0
    assert "positions interpolated (bicubic) from 10 to 5 patches" in capsys.readouterr().out
    found = ported.read(tmp_path / "ours").params["ecg_encoder"]["pos_embed"]
    grid = network.pos_embed[:, 1:].reshape(1, 12, 10, WIDTH).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (12, 5), mode="bicubic", align_corners=False)
    close(found[:, 1:], grid.permute(0, 2, 3, 1).reshape(1, 60, WIDTH), 1e-6)
    np.testing.assert_array_equal(found, interpolate(network.pos_embed.detach().numpy(), 12, 5))


def test_patches_and_leads_of_another_layout(tmp_path, capsys):
    network = signal(patch=(2, 50), leads=8, samples=400, parts=())
    torch.save({"model": network.state_dict()}, tmp_path / "a.pth")
    options = ("--heads", "3", "--leads", "8")
    assert port(tmp_path / "a.pth", tmp_path / "ours", *options) == 0
    ecg = np.random.default_rng(0).standard_normal((1, 8, 400), np.float32)
    theirs = network(torch.from_numpy(ecg))
    found = ported.read(tmp_path / "ours")
    assert found.models["ecg_encoder"]["patch"] == [2, 50]
    # Without `norm` only the pooled network can run, so one is put in its place.
    found.params["ecg_encoder"]["norm"] = {"scale": np.ones(WIDTH), "bias": np.zeros(WIDTH)}
    encoder = models.build({**found.models["ecg_encoder"], "pool": "none"})
    tokens = encoder.apply({"params": found.params["ecg_encoder"]}, ecg)["tokens"]
    close(tokens, theirs, 1e-5)
    assert port(tmp_path / "ours", tmp_path / "b.pth") == 0
    assert_same_file(tmp_path / "a.pth", tmp_path / "b.pth")
    error = refused(capsys, tmp_path / "a.pth", tmp_path / "c", "--leads", "5", "--heads", "3")
    assert "--leads" in error


def test_a_file_is_written_the_same_twice_and_mapped_by_torch(tmp_path):
    state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.int64(3), "c": np.ones(0)}
    for name in "xy":
        torch_writer.save(tmp_path / f"{name}.pth", {"model": state})
    assert (tmp_path / "x.pth").read_bytes() == (tmp_path / "y.pth").read_bytes()
    for mapped in (False, True):
        found = torch.load(tmp_path / "x.pth", weights_only=True, mmap=mapped)["model"]
        for key, array in state.items():
            np.testing.assert_array_equal(found[key].numpy(), array, strict=not np.isscalar(array))
    with pytest.raises(ValueError, match="no storage for numbers of type uint16"):
        torch_writer.save(tmp_path / "z.pth", {"a": np.ones(2, np.uint16)})


def test_without_torch_in_a_process_of_its_own(tmp_path):
    torch.save({"model": signal().state_dict()}, tmp_path / "a.pth")
    script = f"""
import sys
sys.modules["torch"] = None
from mmcl_jax.port.__main__ import main
assert main(["--from", "{tmp_path}/a.pth", "--to", "{tmp_path}/ours", "--heads", "3"]) == 0
assert main(["--from", "{tmp_path}/ours", "--to", "{tmp_path}/b.pth"]) == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert_same_file(tmp_path / "a.pth", tmp_path / "b.pth")
    params, extra, step = checkpoints.load(tmp_path / "ours", "best")
    assert (set(params), extra, step) == ({"ecg_encoder"}, {}, 0)
