"""Reads `.pt` and `.pth` files without PyTorch and without running what they contain.

Such a file is a pickle that names functions to be called, with the numbers of the tensors beside
it: in a zip since PyTorch 1.6, behind the pickle in the older layout. Here the only functions it
can name are those of `torch_pickle.py`, which build tensors, NumPy arrays and plain containers;
whatever else it asks for is refused by name.
"""

import io
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mmcl_jax.port.mapped_zip import MappedZip, map_file
from mmcl_jax.port.torch_pickle import Foreign, Refused, Storage, Unpickler, plain

# A dict, list, tuple or set of these, or a NumPy array, text, bytes, a number or None.
Tree = Any


def load(path: str | os.PathLike, *, verify: bool = True, foreign: bool = False) -> Tree:
    """What `torch.save` wrote, with NumPy arrays for tensors.

    Args:
        path: file in the zip or in the older layout.
        verify: compare the checksums of a zip, which reads the whole file.
        foreign: read objects of OmegaConf and Lightning, which checkpoints of those hold beside
            the weights, as `torch_pickle.Foreign`, their content left out. Without, they are
            refused.

    Returns:
        The arrays are read-only views of the file, which must stay as it is while they are in use;
        bfloat16 is that of ml_dtypes. A parameter is an array, an `argparse.Namespace` a dict,
        a device or dtype of PyTorch text.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is truncated, damaged, of another kind or from a big-endian machine,
            or asks for something other than tensors and plain containers.
    """
    path = pathlib.Path(path)
    try:
        file = map_file(path)
        if file[:4].tobytes() == b"PK\x03\x04":
            return _load_zip(path, verify, foreign)
        return _load_legacy(path, file, foreign)
    except OSError:
        raise
    except Refused as error:
        raise ValueError(f"{path}: refused: {error}") from None
    except MemoryError as error:
        raise ValueError(f"{path}: truncated or damaged: it asks for too much memory") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply") from error
    except Exception as error:
        # A damaged pickle raises whatever its opcodes happen to run into.
        text = str(error) or type(error).__name__
        if not text.startswith(str(path)):
            text = f"{path}: truncated, damaged or not written by torch.save ({text})"
        raise ValueError(text) from error


def open_tensor(path: str | os.PathLike) -> np.ndarray:
    """The one tensor of a file; only the rows that are used are read.

    Raises:
        ValueError: as `load`, but checksums are not compared; or the file holds something else.
    """
    found = load(path, verify=False)
    if not isinstance(found, np.ndarray):
        kind = type(found).__name__
        if isinstance(found, dict):
            kind += f" with {', '.join(map(str, list(found)[:5]))}"
        raise ValueError(f"{path}: expected one tensor, found {kind}")
    return found


def foreign(tree: Tree) -> set[str]:
    """Names of the classes whose objects `load` left out."""
    if isinstance(tree, Foreign):
        return {tree.name}
    if isinstance(tree, dict):
        return foreign([*tree, *tree.values()])
    if isinstance(tree, list | tuple | set):
        return set().union(*map(foreign, tree))
    return set()


_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def _load_zip(path: pathlib.Path, verify: bool, foreign: bool) -> Tree:
    archive = MappedZip(path)
    folders = [
        name.removesuffix("/data.pkl") for name in archive.names if name.endswith("/data.pkl")
    ]
    if len(folders) != 1 or f"{folders[0]}/constants.pkl" in archive.names:
        raise ValueError(
            f"{path}: a zip, but none that torch.save wrote: "
            + ("it is a TorchScript archive" if folders else "there is no data.pkl in it")
        )
    folder = folders[0]
    order = f"{folder}/byteorder"
    if order in archive.names and archive.bytes(order).tobytes() != b"little":
        raise ValueError(f"{path}: written on a big-endian machine, which is not supported")
    contents: dict[str, UInt8[np.ndarray, " n"]] = {}

    def storage(dtype: np.dtype, key: str, size: int) -> Storage:
        if key not in contents:
            contents[key] = archive.bytes(f"{folder}/data/{key}", verify=verify)
        if len(contents[key]) != size * dtype.itemsize:
            raise ValueError(
                f"storage {key} has {len(contents[key])} bytes, expected {size * dtype.itemsize}"
            )
        return Storage(dtype, size, [contents[key]])

    text = archive.bytes(f"{folder}/data.pkl").tobytes()
    return plain(Unpickler(io.BytesIO(text), storage, foreign=foreign).load())


def _load_legacy(path: pathlib.Path, file: UInt8[np.ndarray, " n"], foreign: bool) -> Tree:
    if file[0] != 0x80:
        start = file[:40].tobytes()
        hint = ": a Git LFS pointer, fetch the file itself" if b"git-lfs" in start else ""
        raise ValueError(f"{path}: not written by torch.save{hint}")
    storages: dict[str, Storage] = {}

    def storage(dtype: np.dtype, key: str, size: int) -> Storage:
        return storages.setdefault(key, Storage(dtype, size, []))

    with open(path, "rb") as stream:

        def next_object() -> Any:
            return Unpickler(stream, storage, foreign=foreign).load()

        if next_object() != _MAGIC:
            raise ValueError(f"{path}: a pickle, but none that torch.save wrote")
        protocol, system = next_object(), next_object()
        if protocol != _PROTOCOL:
            raise ValueError(f"{path}: protocol {protocol!r}, expected {_PROTOCOL}")
        if not isinstance(system, Mapping) or system.get("little_endian") is not True:
            raise ValueError(f"{path}: written on a big-endian machine, which is not supported")
        tree = next_object()
        keys = next_object()
        position = stream.tell()
    if sorted(keys) != sorted(storages):
        raise ValueError(f"{path}: the tensors need other storages than the file lists")
    for key in keys:
        # Each storage: its number of elements as a 64-bit integer, then the elements.
        found, count = storages[key], file[position : position + 8]
        length = found.size * found.dtype.itemsize
        content = file[position + 8 : position + 8 + length]
        if len(count) < 8 or len(content) < length:
            raise ValueError(f"{path}: truncated in storage {key}")
        if int(count.view("<i8")[0]) != found.size:
            raise ValueError(f"{path}: damaged: storage {key} has another size than its tensors")
        found.content.append(content)
        position += 8 + length
    return plain(tree)
