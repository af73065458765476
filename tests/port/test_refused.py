"""Files that are not ported: one line that says why, nothing executed, nothing left behind."""

import os
import pickle
import subprocess
import zipfile

import numpy as np
import pytest
from port_files import HEADS, WIDTH, port, refused, small

from mmcl_jax.port import safetensors_file, torch_writer


@pytest.fixture(scope="module")
def weights(golden):
    return small(golden, "signal_encoder_attention_pool")


@pytest.fixture
def published(weights, tmp_path):
    torch_writer.save(tmp_path / "published.pth", {"model": weights})
    return tmp_path / "published.pth"


def as_zip(path, text):
    """The layout of PyTorch 1.6 and later around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", text)
        archive.writestr("archive/version", "3\n")
    return path


def as_legacy(path, text):
    """The older layout: magic number, protocol, system, the pickle, the storages."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    parts = [*(pickle.dumps(part, 2) for part in head), text, pickle.dumps([], 2)]
    path.write_bytes(b"".join(parts))
    return path


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("write", [as_zip, as_legacy])
@pytest.mark.parametrize("where", ["model", "args", "weight"])
def test_nothing_in_a_file_is_executed(tmp_path, capsys, write, where):
    marker = tmp_path / "marker"
    calls = {
        "posix.system": Call(os.system, f"touch {marker}"),
        "builtins.eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "io.open": Call(open, str(marker), "w"),
    }
    for name, hostile in calls.items():
        content = {
            "model": {"model": hostile, "epoch": 3},
            "args": {"model": {}, "args": hostile},
            "weight": {"model": {"cls_token": hostile}},
        }[where]
        # Protocol 2 calls modules by their names of Python 2.
        path = write(tmp_path / "a.pth", pickle.dumps(content, 4))
        error = refused(capsys, path, tmp_path / "ours")
        assert f"a.pth: refused: the file asks for {name}" in error
        assert not marker.exists()
    # What would have happened.
    pickle.loads(pickle.dumps(calls["io.open"]))
    assert marker.exists()


def test_truncated_files(published, weights, tmp_path, capsys):
    whole = published.read_bytes()
    for size in (0, 1, 30, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        assert "cut.pth" in refused(capsys, tmp_path / "cut.pth", tmp_path / "ours")
    damaged = bytearray(whole)
    place = whole.index(weights["cls_token"].tobytes())
    damaged[place + 5] ^= 1
    (tmp_path / "damaged.pth").write_bytes(damaged)
    assert "wrong checksum" in refused(capsys, tmp_path / "damaged.pth", tmp_path / "ours")
    pytest.importorskip("safetensors")
    safetensors_file.save(tmp_path / "whole.safetensors", weights)
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for size in (0, 5, 900, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        error = refused(capsys, tmp_path / "cut.safetensors", tmp_path / "ours")
        assert "cut.safetensors: truncated, damaged or no safetensors file" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"blocks.0.attn.qkv.weight": (10, WIDTH)},
            "blocks.0.attn.qkv.weight has shape (10, 48), expected (144, 48)",
        ),
        ({"blocks.0.attn.qkv.weight": (10,)}, "has shape (10,): expected [outputs, inputs]"),
        ({"patch_embed.proj.weight": (WIDTH, 3, 16, 16)}, "expected [width, 1, leads, samples]"),
        ({"pos_embed": (1, 60, WIDTH)}, "pos_embed"),
        ({"head.weight": (2, 50)}, "head.weight has shape (2, 50), expected (2, 48)"),
    ],
)
def test_wrong_shapes(weights, tmp_path, capsys, changes, message):
    changed = {key: np.zeros(shape, np.float32) for key, shape in changes.items()}
    torch_writer.save(tmp_path / "a.pth", {"model": {**weights, **changed}})
    error = refused(capsys, tmp_path / "a.pth", tmp_path / "ours", "--heads", str(HEADS))
    assert "a.pth: " in error
    assert message in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv.weight": np.ones(3, np.float32)}, "none of the networks that are known"),
        ({"model": {}}, "none of the networks that are known"),
        (
            {"encoder_imaging.4.0.conv1.weight": np.ones((4, 4, 3, 3), np.float32)},
            "is the prefix right",
        ),
    ],
)
def test_files_of_other_models(tmp_path, capsys, content, message):
    torch_writer.save(tmp_path / "a.pth", content)
    error = refused(capsys, tmp_path / "a.pth", tmp_path / "ours", "--heads", str(HEADS))
    assert "a.pth: " in error
    assert message in error


def test_what_is_no_state_dict(weights, tmp_path, capsys):
    as_zip(tmp_path / "list.pth", pickle.dumps([1, 2], 2))
    error = refused(capsys, tmp_path / "list.pth", tmp_path / "ours")
    assert "list.pth: expected a state dict, found list" in error
    integers = {**weights, "fc_norm.bias": np.ones(WIDTH, np.int64)}
    torch_writer.save(tmp_path / "a.pth", {"model": integers})
    error = refused(capsys, tmp_path / "a.pth", tmp_path / "ours", "--heads", str(HEADS))
    assert "fc_norm.bias has numbers of type int64" in error


def test_keys_that_are_missing(weights, tmp_path, capsys):
    absent = ("fc_norm.bias", "blocks.1.mlp.fc1.bias")
    state = {key: array for key, array in weights.items() if key not in absent}
    torch_writer.save(tmp_path / "a.pth", {"model": state})
    error = refused(capsys, tmp_path / "a.pth", tmp_path / "ours", "--heads", "3")
    assert "lacks 2 of 36 keys: blocks.1.mlp.fc1.bias, fc_norm.bias" in error
    allowed = ("--allow-missing", r"^fc_norm\.", "--allow-missing", r"fc1\.bias$")
    assert port(tmp_path / "a.pth", tmp_path / "ours", "--heads", "3", *allowed) == 0
    assert "2 absent, as allowed" in capsys.readouterr().out


def test_heads_and_lengths_that_do_not_fit(published, tmp_path, capsys):
    ours = tmp_path / "ours"
    assert "give it with --heads" in refused(capsys, published, ours)
    error = refused(capsys, published, ours, "--heads", "5")
    assert "--heads 5 does not divide the width 48" in error
    error = refused(capsys, published, ours, "--samples", "550", "--heads", "3")
    assert "--samples 550 is no whole number of patches" in error
    assert "--leads" in refused(capsys, published, ours, "--leads", "7", "--heads", "3")


def test_numbers_that_do_not_fit_the_type(weights, tmp_path, capsys):
    large = {**weights, "fc_norm.weight": np.full(WIDTH, 1e6, np.float32)}
    torch_writer.save(tmp_path / "a.pth", {"model": large})
    assert port(tmp_path / "a.pth", tmp_path / "ours", "--heads", "3") == 0
    error = refused(capsys, tmp_path / "ours", tmp_path / "b.pth", "--dtype", "float16")
    assert "fc_norm.weight has numbers that do not fit float16" in error


def test_paths_that_do_not_fit(published, tmp_path, capsys):
    ours = tmp_path / "ours"
    assert "No such file" in refused(capsys, tmp_path / "none.pth", ours)
    assert "one of them has to be a PyTorch file" in refused(capsys, tmp_path, ours)
    assert "neither a folder" in refused(capsys, ours, tmp_path / "b.pth")
    (tmp_path / "mine.pth").write_bytes(b"mine")
    assert port(published, tmp_path / "mine.pth", "--heads", "3") == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine.pth").read_bytes() == b"mine"


def test_an_existing_folder_is_replaced_only_when_asked_to(published, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    for target in ("ours", "ours", "mine"):
        code = port(published, tmp_path / target, "--heads", "3")
    assert code == 1
    assert "exists already; --overwrite replaces it" in (error := capsys.readouterr().err)
    assert "exists already; give a new name" in error
    assert port(published, tmp_path / "ours", "--heads", "3", "--overwrite") == 0
    assert port(published, tmp_path / "mine", "--heads", "3", "--overwrite") == 1
