"""Writes `.pth` files that `torch.load` reads, also with `weights_only=True`, without PyTorch."""

import os
import pickle
import struct
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np

# Numbers in dicts by name.
Tree = Mapping[str, "Tree | np.ndarray"]


def save(path: str | os.PathLike, tree: Tree) -> None:
    """Writes arrays as tensors in the layout that PyTorch 1.6 and later write.

    The same arrays give the same file, byte for byte.

    Raises:
        ValueError: an array of a type that PyTorch has no storage for.
    """
    arrays: list[np.ndarray] = []
    # The version of the pickle protocol that torch.save writes.
    text = pickle.PROTO + b"\x02" + _dict(tree, arrays) + pickle.STOP
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "archive/data.pkl", text)
        _add(archive, "archive/byteorder", b"little")
        for number, array in enumerate(arrays):
            _add(archive, f"archive/data/{number}", array.tobytes())
        _add(archive, "archive/version", b"3\n")


def _dict(tree: Tree, arrays: list[np.ndarray]) -> bytes:
    items = b"".join(
        _text(name) + (_dict(node, arrays) if isinstance(node, Mapping) else _tensor(node, arrays))
        for name, node in tree.items()
    )
    return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS


def _tensor(array: np.ndarray, arrays: list[np.ndarray]) -> bytes:
    """The call that builds a contiguous tensor from a storage of its own."""
    name = np.asarray(array).dtype.name
    if name not in _STORAGES:
        raise ValueError(f"PyTorch has no storage for numbers of type {name}")
    kind, dtype = _STORAGES[name]
    array = np.asarray(array).astype(dtype, copy=False)
    strides = [int(np.prod(array.shape[i + 1 :], dtype=np.int64)) for i in range(array.ndim)]
    storage = _tuple(
        _text("storage"), _global("torch", kind), _text(str(len(arrays))), _text("cpu"),
        _number(array.size),
    )  # fmt: skip
    arrays.append(array)
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _number(0),
        _tuple(*map(_number, array.shape)),
        _tuple(*map(_number, strides)),
        pickle.NEWFALSE,  # needs no gradient
        _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,  # no hooks
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _text(text: str) -> bytes:
    content = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(content)) + content


def _number(number: int) -> bytes:
    if number < 2**31:
        return pickle.BININT + struct.pack("<i", number)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", number)


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    # A date of its own would make every file another one; 1980 is the first that a zip can hold.
    member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    # PyTorch maps storages that begin at a multiple of 64 bytes: a field named FB fills the gap.
    start = archive.fp.tell() + _HEADER + len(name) + _FIELD
    gap = -start % 64
    member.extra = b"FB" + struct.pack("<H", gap) + b"Z" * gap
    archive.writestr(member, content)


_HEADER, _FIELD = 30, 4  # bytes before the name of a member, and before the content of a field
_STORAGES = {
    "float32": ("FloatStorage", np.dtype("<f4")),
    "float64": ("DoubleStorage", np.dtype("<f8")),
    "float16": ("HalfStorage", np.dtype("<f2")),
    "bfloat16": ("BFloat16Storage", np.dtype(ml_dtypes.bfloat16)),
    "int64": ("LongStorage", np.dtype("<i8")),
}
