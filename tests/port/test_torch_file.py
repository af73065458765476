"""The reader against PyTorch itself, and against files that want something else."""

import argparse
import collections
import copyreg
import functools
import os
import pickle
import subprocess
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mmcl_jax.port import torch_file, torch_pickle

LAYOUTS = [pytest.param(True, id="zip"), pytest.param(False, id="legacy")]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def save(torch, path, content, zipped):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def same(found, tensor):
    assert found.shape == tuple(tensor.shape)
    # PyTorch gives no NumPy array of bfloat16.
    if found.dtype == ml_dtypes.bfloat16:
        found, tensor = found.astype(np.float32), tensor.float()
    np.testing.assert_array_equal(found, tensor.numpy())


@pytest.mark.parametrize("zipped", LAYOUTS)
def test_every_type_of_number(torch, tmp_path, zipped):
    names = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
    names += ["uint8", "bool"]
    tensors = {name: (torch.arange(7) % 3).to(getattr(torch, name)) for name in names}
    found = torch_file.load(save(torch, tmp_path / "a.pt", tensors, zipped))
    assert list(found) == names
    for name in names:
        expected = ml_dtypes.bfloat16 if name == "bfloat16" else name
        assert found[name].dtype == expected
        same(found[name], tensors[name])


def test_types_without_a_storage_class(torch, tmp_path):
    tensor = torch.arange(5).to(torch.uint16)
    found = torch_file.load(save(torch, tmp_path / "a.pt", tensor, True))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, np.arange(5))


@pytest.mark.parametrize("zipped", LAYOUTS)
def test_views_of_one_storage(torch, tmp_path, zipped):
    base = torch.randn(4, 6, 5)
    views = {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "part": base[1:, ::2, 1:4],
        "row": base[2, 3],
        "element": base[1, 1, 1],
        "expanded": base[:, :1].expand(4, 6, 5),
        "empty": base[:0],
        "scalar": torch.tensor(2.5),
        "nothing": torch.zeros(0, 3),
    }
    found = torch_file.load(save(torch, tmp_path / "a.pt", views, zipped))
    for name, tensor in views.items():
        same(found[name], tensor)
    assert np.shares_memory(found["base"], found["part"])
    assert not found["base"].flags.writeable


@pytest.mark.parametrize("zipped", LAYOUTS)
def test_a_checkpoint_of_a_model(torch, tmp_path, zipped):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(8, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 7,
        "args": argparse.Namespace(input_size=(1, 12, 2500), lr=1e-5, device="cuda", resume=None),
        "device": torch.device("cuda", 0),
        "dtype": torch.float32,
        "size": torch.Size([2, 3]),
        "parameter": model[0].weight,
        "scores": [np.float64(0.5), np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(2, 3))],
        "names": {"a", "b"},
        "bytes": b"\x00\xff",
    }
    found = torch_file.load(save(torch, tmp_path / "a.pth", content, zipped))
    assert type(found["model"]) is dict
    for name, tensor in model.state_dict().items():
        same(found["model"][name], tensor)
    moments = optimizer.state_dict()["state"][0]["exp_avg"]
    same(found["optimizer"]["state"][0]["exp_avg"], moments)
    assert found["args"] == {
        "input_size": (1, 12, 2500), "lr": 1e-5, "device": "cuda", "resume": None,
    }  # fmt: skip
    assert (found["epoch"], found["device"], found["dtype"]) == (7, "cuda:0", "torch.float32")
    assert (found["size"], found["names"], found["bytes"]) == ((2, 3), {"a", "b"}, b"\x00\xff")
    same(found["parameter"], model[0].weight.detach())
    assert found["scores"][0] == 0.5
    for mine, theirs in zip(found["scores"][1:], content["scores"][1:], strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_list_of_images_and_a_list_of_labels(torch, tmp_path):
    images = [torch.rand(3, 4, 4) for _ in range(3)]
    found = torch_file.load(save(torch, tmp_path / "images.pt", images, True))
    for mine, theirs in zip(found, images, strict=True):
        same(mine, theirs)
    assert torch_file.load(save(torch, tmp_path / "labels.pt", [0, 1, 1], True)) == [0, 1, 1]


def test_a_large_tensor_is_read_row_by_row(torch, tmp_path):
    path = save(torch, tmp_path / "a.pt", torch.arange(3000.0).reshape(300, 10), True)
    tensor = torch_file.open_tensor(path)
    np.testing.assert_array_equal(tensor[299], np.arange(2990.0, 3000.0))
    # Not one byte of it was copied: the array lies in the mapped file.
    base = tensor
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    with pytest.raises(ValueError, match="expected one tensor, found dict with model"):
        torch_file.open_tensor(save(torch, tmp_path / "b.pt", {"model": 1}, True))


# --- files that want something else --------------------------------------------------------------


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def touch(path):
    """Runs only if a pickle is executed."""
    path.write_text("executed")


def hostile(marker):
    """Pickles by the end of the first global that each asks for."""
    shell = f"touch {marker}"
    return {
        "posix.system": Call(os.system, shell),
        ".eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        ".exec": {"model": [collections.OrderedDict(a=Call(exec, "1/0"))]},
        ".Popen": (1, (2, [Call(subprocess.Popen, shell)])),
        ".getattr": Call(getattr, Call(__import__, "os"), "system"),
        "._reconstructor": Call(copyreg._reconstructor, dict, dict, {}),
        "functools.partial": Call(functools.partial, touch, marker),
        "collections.Counter": collections.Counter("aab"),
    }


def as_zip(path, text, **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", text)
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return path


def as_legacy(path, text):
    header = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in header) + text)
    return path


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("write", [as_zip, as_legacy])
def test_nothing_is_executed(tmp_path, write, protocol):
    marker = tmp_path / "marker"
    for wanted, content in hostile(marker).items():
        path = write(tmp_path / "a.pt", pickle.dumps(content, protocol))
        with pytest.raises(ValueError, match=r"a\.pt: refused: the file asks for ") as caught:
            torch_file.load(path)
        # Protocol 2 spells modules as Python 2 did.
        assert f"{wanted};" in str(caught.value)
        assert not marker.exists()


def opcodes(*parts):
    """A pickle put together by hand; text is a global."""
    made = b"\x80\x02"
    for part in parts:
        made += f"c{part[0]}\n{part[1]}\n".encode() if isinstance(part, tuple) else part
    return made + b"."


NUMBERS = b"(lp0\nK\x01a"
DTYPE_STATE = pickle.dumps((3, ">", None, None, None, -1, -1, 0), 2)[2:-1]
TENSOR = ("torch._utils", "_rebuild_tensor_v2")


@pytest.mark.parametrize(
    "text",
    [
        # A state for the function itself, as a mapping and as attributes.
        opcodes(TENSOR, b"}X\x04\x00\x00\x00callNsb"),
        opcodes(TENSOR, b"N}X\x04\x00\x00\x00callNs\x86b"),
        opcodes(("collections", "OrderedDict"), b"N}X\x06\x00\x00\x00updateNs\x86b"),
        opcodes(("numpy", "dtype"), b"N}X\x08\x00\x00\x00__init__Ns\x86b"),
        opcodes(("torch", "FloatStorage"), DTYPE_STATE + b"b"),
        # A call with wrong arguments, and one of something that is no function.
        opcodes(TENSOR, b")R"),
        opcodes(("torch", "FloatStorage"), b")R"),
        opcodes(TENSOR, b"(", NUMBERS, b"K\x00K\x01\x85K\x01\x85\x89}tR"),
        # A function or a type by itself, a stack that is empty, a reference that is none.
        opcodes(TENSOR),
        opcodes(("numpy", "dtype")),
        opcodes(b""),
        opcodes(b"K\x01Q"),
        opcodes(b"h\x07"),
        opcodes(b"\x82\x01"),
    ],
    ids=range(14),
)
def test_a_pickle_cannot_change_what_reads_it(tmp_path, torch, text):
    before = {name: repr(value) for name, value in torch_pickle._GLOBALS.items()}
    with pytest.raises(ValueError, match=r"a\.pt: "):
        torch_file.load(as_zip(tmp_path / "a.pt", text))
    assert {name: repr(value) for name, value in torch_pickle._GLOBALS.items()} == before
    assert np.dtype(np.float32).byteorder == "="
    good = save(torch, tmp_path / "b.pt", collections.OrderedDict(a=torch.ones(2)), True)
    same(torch_file.load(good)["a"], torch.ones(2))


def tensor_pickle(size=4, offset=0, shape=(4,), strides=(1,), key="0", metadata=None):
    """A tensor as PyTorch writes it, with any of its numbers."""

    def plain(*values):
        return b"".join(pickle.dumps(value, 2)[2:-1] for value in values)

    storage = b"(" + plain("storage") + b"ctorch\nFloatStorage\n" + plain(key, "cpu", size) + b"tQ"
    arguments = storage + plain(offset, shape, strides, False, {})
    arguments += plain(metadata) if metadata else b""
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (5,)}, "reaches beyond its storage of 16 bytes"),
        ({"offset": 1}, "reaches beyond its storage"),
        ({"shape": (2, 2), "strides": (3, 1)}, "reaches beyond its storage"),
        ({"strides": (-1,)}, "unreadable shape"),
        ({"offset": -4}, "unreadable tensor"),
        ({"shape": (2**40, 2**40), "strides": (0, 0)}, "impossible shape"),
        ({"shape": (2, 2)}, r"shape \(2, 2\) with strides \(1,\)"),
        ({"size": 5}, "storage 0 has 16 bytes, expected 20"),
        ({"size": True}, "unreadable storage"),
        ({"key": "1"}, "member archive/data/1 is missing"),
        ({"key": "../data/0"}, "is missing"),
        ({"metadata": {"conj": True}}, "lazy operation"),
    ],
)
def test_impossible_tensors(tmp_path, changes, message):
    numbers = np.arange(4, dtype=np.float32).tobytes()
    good = as_zip(tmp_path / "good.pt", tensor_pickle(), archive__data__0=numbers)
    np.testing.assert_array_equal(torch_file.load(good), np.arange(4))
    path = as_zip(tmp_path / "a.pt", tensor_pickle(**changes), archive__data__0=numbers)
    with pytest.raises(ValueError, match=rf"a\.pt.*{message}"):
        torch_file.load(path)


def test_broken_files(torch, tmp_path):
    tensors = {"a": torch.arange(1000.0), "b": torch.ones(3)}
    for zipped in (True, False):
        whole = save(torch, tmp_path / "whole.pt", tensors, zipped).read_bytes()
        for size in (1, 3, 20, 100, len(whole) // 2, len(whole) - 1):
            path = tmp_path / "cut.pt"
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match=r"cut\.pt"):
                torch_file.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\x93NUMPY", "not written by torch.save"),
        (pickle.dumps({"model": 1}), "a pickle, but none that torch.save wrote"),
        (pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(7) + pickle.dumps({}), "protocol 7"),
    ],
)
def test_other_files(tmp_path, content, message):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.pt: .*{message}|{message}"):
        torch_file.load(path)
    with pytest.raises(FileNotFoundError):
        torch_file.load(tmp_path / "none.pt")
    with pytest.raises(IsADirectoryError):
        torch_file.load(tmp_path)


def test_other_zips(torch, tmp_path):
    path = tmp_path / "a.pt"
    numbers = np.arange(4, dtype=np.float32).tobytes()
    with pytest.raises(ValueError, match="leads out of the archive"):
        torch_file.load(as_zip(path, tensor_pickle(), archive__data__0=numbers, **{"..__x": b""}))
    with pytest.raises(ValueError, match="leads out of the archive"):
        torch_file.load(as_zip(path, tensor_pickle(), archive__data__0=numbers, **{"__x": b""}))
    with pytest.raises(ValueError, match="big-endian machine"):
        torch_file.load(as_zip(path, tensor_pickle(), archive__byteorder=b"big"))
    with pytest.raises(ValueError, match="TorchScript"):
        torch_file.load(as_zip(path, tensor_pickle(), **{"archive__constants.pkl": b""}))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no tensors")
    with pytest.raises(ValueError, match="no data.pkl in it"):
        torch_file.load(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle())
    with pytest.raises(ValueError, match="is compressed or encrypted"):
        torch_file.load(path)


def test_a_changed_byte_is_found(torch, tmp_path):
    path = save(torch, tmp_path / "a.pt", torch.zeros(1000), True)
    content = bytearray(path.read_bytes())
    content[content.index(bytes(3000)) + 1500] = 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="wrong checksum of member a/data/0"):
        torch_file.load(path)
    assert torch_file.load(path, verify=False).sum() > 0


def test_a_zip_without_checksums(torch, tmp_path):
    options = torch.serialization
    options.set_crc32_options(False)
    try:
        path = save(torch, tmp_path / "a.pt", torch.arange(3), True)
    finally:
        options.set_crc32_options(True)
    np.testing.assert_array_equal(torch_file.load(path), [0, 1, 2])


def test_big_endian_in_the_older_layout(tmp_path):
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": False}, {}, []]
    path = tmp_path / "a.pt"
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
    with pytest.raises(ValueError, match="big-endian"):
        torch_file.load(path)


def test_a_container_that_holds_itself(tmp_path):
    loop = []
    loop.append(loop)
    with pytest.raises(ValueError, match="holds itself"):
        torch_file.load(as_zip(tmp_path / "a.pt", pickle.dumps(loop, 2)))
    wide = [0]
    for _ in range(60):
        wide = [wide, wide]  # 2^60 leaves if every path were walked
    assert len(torch_file.load(as_zip(tmp_path / "a.pt", pickle.dumps(wide, 2)))) == 2


def test_objects_of_numpy_are_refused(tmp_path):
    text = pickle.dumps(np.array([print, None], dtype=object), 2)
    with pytest.raises(ValueError, match="refused"):
        torch_file.load(as_zip(tmp_path / "a.pt", text))
    text = pickle.dumps(np.zeros(2, [("a", "f4")]), 2)
    with pytest.raises(ValueError, match="numbers are read only"):
        torch_file.load(as_zip(tmp_path / "a.pt", text))
    text = pickle.dumps(np.zeros(2, ">f4"), 2)
    with pytest.raises(ValueError, match="big-endian"):
        torch_file.load(as_zip(tmp_path / "a.pt", text))
