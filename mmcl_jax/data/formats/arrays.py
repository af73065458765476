"""Arrays on disk, one record per row, of which only the rows that are used are read.

`open_rows` opens `.npy`, `.npz`, HDF5 and `.pt` files; `EcgArray` and `CmrArray` know what a row
means. They are small and picklable: a worker process opens the file for itself.
"""

import dataclasses
import functools
import io
import math
import os
import pathlib
import stat
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Shaped

from mmcl_jax.data.signals.ecg import Recording
from mmcl_jax.port import torch_file
from mmcl_jax.port.mapped_zip import MappedZip

SUFFIXES = (".npy", ".npz", ".h5", ".hdf5", ".pt", ".pth")


class Rows(Protocol):
    """A NumPy array, an HDF5 data set, or a list of arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Shaped[np.ndarray, "..."]: ...


def open_rows(path: str | os.PathLike, name: str = "") -> Rows:
    """Opens an array of numbers without reading it.

    A process keeps the last few that it opened, as long as the file does not change.

    Args:
        name: of the array in an `.npz` or HDF5 file; not needed where there is one only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or of another kind, holds objects, or `name` does not say
            which of its arrays is meant.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
        raise ValueError(f"{path}: cannot be read: it is no file")
    return _open(os.fspath(path), name, status.st_size, status.st_mtime_ns)


@dataclasses.dataclass(frozen=True)
class EcgArray:
    """ECGs in an array [N, C, T] or [N, T, C].

    Attributes:
        path, name: see `open_rows`.
        leads: name of each of the C signals, in the order of the array.
        rate: samples per second.
        unit: of all signals.
    """

    path: str
    name: str
    leads: tuple[str, ...]
    rate: float
    unit: str

    def __len__(self) -> int:
        return len(open_rows(self.path, self.name))

    def recording(self, row: int) -> Recording:
        """The signals of one row. Raises ValueError where its shape does not fit the leads."""
        signal = leads_first(np.asarray(open_rows(self.path, self.name)[row]), len(self.leads))
        return Recording(signal, self.leads, (self.unit,) * len(self.leads), self.rate)


@dataclasses.dataclass(frozen=True)
class CmrArray:
    """Frames ES, mid and ED of a slice in an array [N, 3, H, W] or [N, H, W, 3]."""

    path: str
    name: str

    def __len__(self) -> int:
        return len(open_rows(self.path, self.name))

    def frames(self, row: int) -> Float[np.ndarray, "3 H W"]:
        """ES, mid and ED of one row. Raises ValueError where it is no three frames."""
        return frames_first(np.asarray(open_rows(self.path, self.name)[row]))


def leads_first(signal: Shaped[np.ndarray, "..."], leads: int) -> Float[np.ndarray, "C T"]:
    """A recording as float64 with its signals in rows, whichever of its axes holds them.

    Raises:
        ValueError: neither axis, or both, has as many entries as there are leads.
    """
    if signal.ndim != 2 or signal.shape.count(leads) != 1:
        raise ValueError(
            f"shape is {signal.shape}, expected ({leads}, samples) or (samples, {leads}) for "
            f"{leads} leads"
        )
    return _numbers(signal if signal.shape[0] == leads else signal.T)


def frames_first(image: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "3 H W"]:
    """Three frames as float64, whether they come first or last. Raises ValueError otherwise."""
    if image.ndim != 3 or (image.shape[0] == 3) == (image.shape[2] == 3):
        raise ValueError(f"shape is {image.shape}, expected (3, H, W) or (H, W, 3): ES, mid, ED")
    return _numbers(image if image.shape[0] == 3 else image.transpose(2, 0, 1))


# A compressed array has to be held in memory as a whole, by every process.
_LARGEST_COMPRESSED = 2**30  # bytes
# HDF5 can compress a row of zeros a thousandfold; a day of 12 leads at 1 kHz has 4 GiB.
_LARGEST_RECORD = 2**33  # bytes


@functools.lru_cache(maxsize=8)
def _open(path: str, name: str, size: int, changed: int) -> Rows:
    suffix = pathlib.Path(path).suffix.lower()
    if name and suffix not in (".npz", ".h5", ".hdf5"):
        raise ValueError(f"{path} holds one array, so that {name!r} cannot be chosen")
    if suffix == ".npy":
        rows = _open_npy(path)
    elif suffix == ".npz":
        rows = _open_npz(path, name)
    elif suffix in (".h5", ".hdf5"):
        rows = _open_hdf5(path, name)
    elif suffix in (".pt", ".pth"):
        rows = torch_file.load(path, verify=False)
    else:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
    if isinstance(rows, list | tuple):
        if not all(isinstance(row, np.ndarray) for row in rows):
            raise ValueError(f"{path}: a list of something else than arrays")
    elif isinstance(rows, dict) or not hasattr(rows, "ndim"):
        raise ValueError(f"{path}: expected one array, found {type(rows).__name__}")
    elif rows.ndim < 2:
        raise ValueError(f"{path}: shape is {rows.shape}, expected one record per row")
    elif not _is_number(rows.dtype):
        raise ValueError(f"{path}: an array of type {rows.dtype}, expected numbers")
    elif (size := math.prod(rows.shape[1:]) * rows.dtype.itemsize) > _LARGEST_RECORD:
        raise ValueError(
            f"{path}: shape is {rows.shape}, so one record has {size / 2**30:.1f} GiB; expected "
            f"one record per row, of at most {_LARGEST_RECORD / 2**30:.1f} GiB"
        )
    return rows


def _open_npy(path: str) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: truncated, damaged or no array of numbers ({error})") from error


def _open_npz(path: str, name: str) -> np.ndarray:
    archive = MappedZip(path)
    arrays = [entry.removesuffix(".npy") for entry in archive.names if entry.endswith(".npy")]
    member = f"{_choose(path, name, arrays)}.npy"
    if not archive.is_stored(member):
        if archive.size(member) > _LARGEST_COMPRESSED:
            raise ValueError(
                f"{path}: {member} is compressed and of {archive.size(member) / 2**30:.1f} GiB, "
                "which every process would have to hold; save it with numpy.save instead"
            )
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[member.removesuffix(".npy")]
    content = archive.bytes(member, verify=False)
    header = io.BytesIO(content[:65_536].tobytes())
    version = np.lib.format.read_magic(header)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"{path}: {member} is of version {version}; save it with numpy.savez")
    shape, fortran, dtype = read[version](header)
    if not _is_number(dtype):
        raise ValueError(f"{path}: {member} is an array of type {dtype}, expected numbers")
    order = "F" if fortran else "C"
    try:
        return np.ndarray(shape, dtype, content, header.tell(), order=order)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {member} is truncated ({error})") from error


def _open_hdf5(path: str, name: str) -> Rows:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("HDF5 files need h5py: pip install 'mmcl_jax[hdf5]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: truncated, damaged or no HDF5 file ({error})") from error
    names: list[str] = []

    def visit(entry: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            names.append(entry)

    file.visititems(visit)
    chosen = file[_choose(path, name, names)]
    # HDF5 can also take the values from any other file of the machine.
    if chosen.external or chosen.is_virtual:
        raise ValueError(
            f"{path}: {chosen.name} keeps its values in other files; copy them into it"
        )
    return chosen


def _choose(path: str, name: str, names: Sequence[str]) -> str:
    if name in names or (not name and len(names) == 1):
        return name or names[0]
    found = ", ".join(names) or "none"
    if name:
        raise ValueError(f"{path}: no array called {name!r}; it holds {found}")
    raise ValueError(f"{path}: expected one array, or the name of one; it holds {found}")


def _is_number(dtype: Any) -> bool:
    # bfloat16 has a kind of its own.
    return np.dtype(dtype).kind in "fiub" or np.dtype(dtype).name.startswith(("bfloat", "float8"))


def _numbers(array: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    if not _is_number(array.dtype):
        raise ValueError(f"values are of type {array.dtype}, expected numbers")
    return array.astype(np.float64)
