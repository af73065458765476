"""Files with the weights behind the parity numbers, ported and run without PyTorch."""

import subprocess
import sys

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import relative_error
from port_files import port, small, tower

from mmcl_jax.models import vit
from mmcl_jax.port import ported, safetensors_file, torch_file, torch_writer

WRAPPERS = {
    "signal_encoder_attention_pool": "model",
    "masked_autoencoder": "model",
    "image_encoder": "state_dict",
}


@pytest.fixture(scope="module")
def files(golden, tmp_path_factory):
    """A function: the folder with a network as `published.pth` and, ported, as `ours`."""
    made = {}

    def ported_from_file(network):
        if network not in made:
            folder = tmp_path_factory.mktemp(network)
            state = golden_weights.state_dict(golden, network)
            state = {key: _as_published(key, array) for key, array in state.items()}
            torch_writer.save(folder / "published.pth", {WRAPPERS[network]: state})
            # The sizes of the published files are looked up, so no option is needed.
            assert port(folder / "published.pth", folder / "ours") == 0
            made[network] = folder
        return made[network]

    return ported_from_file


def _as_published(key, array):
    return np.int64(7) if key.endswith("num_batches_tracked") else array


@pytest.mark.parametrize("pool", ["global", "attention"])
def test_features_and_logits_are_the_published_ones(files, golden, pool):
    ours = files("signal_encoder_attention_pool") / "ours"
    expected = np.load(golden / "signal_encoder.npz")
    encoder, variables = tower(ours, "ecg_encoder", pool=pool)
    head, of_head = tower(ours, "head")
    params = dict(variables["params"])
    if pool == "global":
        del params["attention_pool"]
    outputs = jax.jit(encoder.apply)({"params": params}, _ecg(expected))
    logits = head.apply(of_head, outputs["features"])
    assert relative_error(outputs["features"], expected[f"{pool}_pool_features"]) <= 1e-5
    assert relative_error(logits, expected[f"{pool}_pool_logits"]) <= 1e-5
    assert relative_error(outputs["tokens"][:, 1:], expected["mmcl_patch_tokens"]) <= 1e-5


def test_loss_of_the_masked_autoencoder_is_the_published_one(files, golden):
    ours = files("masked_autoencoder") / "ours"
    expected = np.load(golden / "masked_autoencoder.npz")
    ecg = _ecg(expected)
    restore = expected["ids_restore"]
    visible = np.argsort(restore, axis=1)[:, :59]
    encoder, encoded = tower(ours, "ecg_encoder", pool="none")
    decoder, decoded = tower(ours, "decoder")

    @jax.jit
    def autoencode(encoded, decoded, ecg):
        latent = encoder.apply(encoded, ecg, visible=visible)["latent"]
        return latent, decoder.apply(decoded, latent, jnp.asarray(restore))

    latent, prediction = autoencode(encoded, decoded, ecg)
    assert relative_error(latent, expected["latent"]) <= 1e-5
    assert relative_error(prediction, expected["prediction"]) <= 1e-5
    target = np.asarray(vit.patchify(ecg, (1, 100)), np.float64)
    loss = ((np.asarray(prediction, np.float64) - target) ** 2).mean()
    assert relative_error(loss, expected["loss_mse_all_patches"]) <= 1e-6


def test_map_of_the_image_encoder_is_the_published_one(files, golden):
    encoder, variables = tower(files("image_encoder") / "ours", "cmr_encoder")
    expected = np.load(golden / "image_encoder.npz")
    draw = np.random.default_rng(int(expected["seed"]))
    frames = draw.random((2, 3, 210, 210)).astype(np.float32).transpose(0, 2, 3, 1)
    outputs = jax.jit(encoder.apply)(variables, frames)
    channels_first = np.asarray(outputs["map"]).transpose(0, 3, 1, 2)
    assert relative_error(outputs["features"], expected["features"]) <= 1e-4
    assert relative_error(channels_first[:, :64], expected["feature_map_corner"]) <= 1e-4


@pytest.mark.parametrize("network", list(WRAPPERS))
def test_back_to_pytorch_bit_for_bit(files, tmp_path, network):
    folder = files(network)
    wrapper = WRAPPERS[network]
    published = torch_file.load(folder / "published.pth")[wrapper]
    # Heads of a later version, which no network here has.
    kept = {k: v for k, v in published.items() if not k.startswith(("projector.", "predictor."))}
    assert (len(published) - len(kept)) == (17 if network == "masked_autoencoder" else 0)
    assert port(folder / "ours", tmp_path / "again.pth") == 0
    content = torch_file.load(tmp_path / "again.pth")
    assert list(content) == [wrapper]
    _assert_same(content[wrapper], kept)
    pytest.importorskip("safetensors")
    assert port(folder / "ours", tmp_path / "again.safetensors") == 0
    _assert_same(safetensors_file.load(tmp_path / "again.safetensors"), kept)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_types_come_back_as_they_were(golden, tmp_path, capsys, suffix, dtype):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    as_type = jnp.dtype(dtype)
    state = small(golden, "signal_encoder_attention_pool")
    # Numbers of float32 in float64 are not rounded on their way.
    state = {key: array.astype(as_type) for key, array in state.items()}
    published = tmp_path / f"published{suffix}"
    if suffix == ".pth":
        torch_writer.save(published, {"model": state})
    else:
        safetensors_file.save(published, state)
    assert port(published, tmp_path / "ours", "--heads", "3") == 0
    said = f"converted from {dtype} to float32 ({'rounded' if dtype == 'float64' else 'exact'})"
    assert said in capsys.readouterr().out
    leaves = jax.tree.leaves(ported.read(tmp_path / "ours").params)
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    for again in (tmp_path / "again.pth", tmp_path / "again.safetensors"):
        assert port(tmp_path / "ours", again) == 0
        found = safetensors_file.load(again) if again.suffix != ".pth" else torch_file.load(again)
        _assert_same(found.get("model", found), state)


def test_two_ports_write_the_same_file(golden, tmp_path):
    state = small(golden, "signal_encoder_attention_pool")
    torch_writer.save(tmp_path / "published.pth", {"model": state})
    for name in "ab":
        assert port(tmp_path / "published.pth", tmp_path / name, "--heads", "3") == 0
        assert port(tmp_path / name, tmp_path / f"{name}.pth") == 0
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_a_ported_checkpoint_restores_with_orbax_alone(files):
    """In a process that has jax and orbax, and the path."""
    folder = files("signal_encoder_attention_pool")
    script = f"""
import sys
for name in ("mmcl_jax", "flax", "torch"):
    sys.modules[name] = None
import orbax.checkpoint as ocp
params = ocp.StandardCheckpointer().restore({str(folder / "ours/checkpoints/best/0/params")!r})
print(sorted(params), float(params["ecg_encoder"]["block_0"]["attention"]["qkv"]["bias"][3]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    towers, _, number = done.stdout.strip().rpartition(" ")
    assert towers == "['ecg_encoder', 'head']"
    published = torch_file.load(folder / "published.pth")["model"]
    assert np.float32(number) == published["blocks.0.attn.qkv.bias"][3]


def _ecg(expected):
    draw = np.random.default_rng(int(expected["input_seed"]))
    return draw.standard_normal((2, 12, 2500)).astype(np.float32)


def _assert_same(found, expected):
    assert set(found) == set(expected)
    for key, array in expected.items():
        assert found[key].dtype == array.dtype, key
        np.testing.assert_array_equal(found[key], array, strict=True)
