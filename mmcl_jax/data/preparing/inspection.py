"""What a cohort or a single file of recordings holds, as plain values."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from mmcl_jax.data.cohort import open_cohort
from mmcl_jax.data.cohort_format import MARKER
from mmcl_jax.data.signals import ecg
from mmcl_jax.data.signals.leads import lead_name
from mmcl_jax.data.subject import RefusedRecord
from mmcl_jax.data.targets.label_summary import summarise
from mmcl_jax.port.mapped_zip import MappedZip


def describe(path: str | os.PathLike) -> dict[str, Any]:
    """What is at `path`, as JSON; its 'kind' is 'cohort', 'ecg', 'arrays' or 'cmr'.

    Args:
        path: folder of a cohort; a WFDB header or one of its signal files, a CardioSoft XML;
            arrays in .npy, .npz, HDF5 or .pt; a zip of DICOM files or a NIfTI volume.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is of another kind, or damaged.
        RefusedRecord: a recording that cannot be read.
        ImportError: its reader is not installed.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        if not (path / MARKER).is_file():
            raise ValueError(f"{path} is a folder without {MARKER}; give a cohort, or a file")
        return _cohort(path)
    header = path.with_suffix(".hea") if path.suffix in (".dat", ".mat") else path
    if header.suffix != ".hea" and not path.exists():
        header = path.with_name(f"{path.name}.hea")
    if header.suffix == ".hea" and header.is_file():
        return _wfdb(header)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    if not path.is_file():
        raise ValueError(f"{path}: cannot be read: it is no file")
    name = path.name.lower()
    for suffixes, reader in _READERS.items():
        if name.endswith(suffixes):
            return reader(path)
    known = ", ".join(suffix for suffixes in _READERS for suffix in suffixes)
    raise ValueError(f"{path}: expected the folder of a cohort, or a file of .hea, {known}")


def _cohort(path: pathlib.Path) -> dict[str, Any]:
    cohort = open_cohort(path)
    tables = {split: cohort.table(split) for split in cohort.splits}
    labels = {}
    for column, label in enumerate(cohort.labels):
        splits = {s: summarise(label, table["labels"][:, column]) for s, table in tables.items()}
        labels[label.name] = {
            "kind": label.kind,
            "group": label.group,
            "unit": label.unit,
            "splits": splits,
        }
    return {
        "kind": "cohort",
        "path": str(path),
        "source": cohort.source_name,
        "parameters": dict(cohort.parameters),
        "settings": dict(cohort.settings),
        "settings_hash": cohort.settings_hash,
        "splits": {
            split: {
                "records": len(table["record"]),
                "subjects": len(set(table["subject"].tolist())),
                "ecg": int(table["has_ecg"].sum()),
                "cmr": int(table["has_cmr"].sum()),
            }
            for split, table in tables.items()
        },
        "labels": labels,
        "leads": dict(cohort.leads),
    }


def _wfdb(path: pathlib.Path) -> dict[str, Any]:
    from mmcl_jax.data.formats import wfdb

    return _ecg(path, wfdb.read(path))


def _cardiosoft(path: pathlib.Path) -> dict[str, Any]:
    from mmcl_jax.data.formats import cardiosoft

    return _ecg(path, cardiosoft.read(path))


def _ecg(path: pathlib.Path, recording: ecg.Recording) -> dict[str, Any]:
    rows = zip(recording.signal, recording.names, recording.units, strict=True)
    found: dict[str, Any] = {
        "kind": "ecg",
        "path": str(path),
        "rate": recording.rate,
        "samples": recording.signal.shape[1],
        "seconds": recording.signal.shape[1] / recording.rate,
        "leads": [_lead(*row) for row in rows],
    }
    try:
        _, flags = ecg.standardise(path, recording)
    except RefusedRecord as error:
        return {**found, "usable": False, "reason": error.reason, "flags": []}
    return {**found, "usable": True, "reason": "", "flags": list(flags)}


def _lead(signal: Float[np.ndarray, " T"], name: str, unit: str) -> dict[str, Any]:
    """Statistics of one signal in mV; in its own unit where that is no voltage."""
    in_unit = "mV"
    try:
        signal = ecg.to_millivolt(signal[None], (unit,), ("I",))[0]
    except ValueError:
        in_unit = unit
    return {
        "name": name,
        "lead": lead_name(name),
        "unit": unit,
        "statistics_in": in_unit,
        **_statistics(signal),
    }


def _statistics(values: np.ndarray) -> dict[str, float | None]:
    """'missing' share, and 'mean', 'sd', 'min', 'max' of the rest."""
    values = np.asarray(values, np.float64)
    known = values[np.isfinite(values)]
    found = dict.fromkeys(("mean", "sd", "min", "max"))
    if known.size:
        with np.errstate(over="ignore", invalid="ignore"):  # whatever a broken file holds
            numbers = (known.mean(), known.std(), known.min(), known.max())
        found = {name: float(f"{value:.6g}") for name, value in zip(found, numbers, strict=True)}
    missing = 1 - known.size / values.size if values.size else 0.0
    return {"missing": float(f"{missing:.6g}"), **found}


def _npy(path: pathlib.Path) -> dict[str, Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: no array of numbers, or damaged ({error})") from error
    return _arrays(path, {"": array})


def _npz(path: pathlib.Path) -> dict[str, Any]:
    archive = MappedZip(path)
    for name in archive.names:
        if archive.size(name) > _LARGEST and not archive.is_stored(name):
            raise ValueError(
                f"{path}: {name} is compressed and of {archive.size(name) / 2**30:.1f} GiB; save "
                "it with numpy.savez, which does not compress"
            )
    with np.load(path, allow_pickle=False) as arrays:
        return _arrays(path, arrays)


def _hdf5(path: pathlib.Path) -> dict[str, Any]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("HDF5 files need h5py: pip install 'mmcl_jax[hdf5]'") from error
    with h5py.File(path, "r") as file:
        names: list[str] = []
        file.visit(names.append)
        sets = {name: file[name] for name in names if isinstance(file[name], h5py.Dataset)}
        if elsewhere := [name for name, s in sets.items() if s.external or s.is_virtual]:
            raise ValueError(f"{path}: {elsewhere[0]} keeps its values in other files")
        return _arrays(path, sets)


def _torch(path: pathlib.Path) -> dict[str, Any]:
    from mmcl_jax.port import torch_file

    found = torch_file.load(path)
    if isinstance(found, np.ndarray):
        found = {"": found}
    elif isinstance(found, list | tuple):
        found = {f"[{row}]": entry for row, entry in enumerate(found[:_FEW])}
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path}: expected tensors, found {type(found).__name__}")
    arrays = {str(name): entry for name, entry in found.items() if isinstance(entry, np.ndarray)}
    return _arrays(path, arrays)


_LARGEST = 2**30  # bytes of a compressed array, which has to be unpacked as a whole
_MOST = 1000  # rows of a large array that are looked at
_FEW = 10  # entries of a list that are looked at


def _arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: _array(arrays[name]) for name in arrays}
    return {"kind": "arrays", "path": str(path), "arrays": found}


def _array(array: Any) -> dict[str, Any]:
    """Shape and type; of numbers their statistics, and those of each lead of a 12-lead array.

    Args:
        array: a NumPy array or an HDF5 data set, of which the first rows are read.
    """
    found: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if np.dtype(array.dtype).kind not in "biuf" or not array.ndim:
        return found
    sample = np.asarray(array[:_MOST])
    if len(sample) < len(array):
        found["looked_at"] = len(sample)
    found |= _statistics(sample)
    axes = [axis for axis in range(max(0, array.ndim - 2), array.ndim) if array.shape[axis] == 12]
    if array.ndim in (2, 3) and axes:
        found["lead_axis"] = axes[0]
        found["leads"] = [_statistics(row) for row in np.moveaxis(sample, axes[0], 0)]
    return found


def _zip(path: pathlib.Path) -> dict[str, Any]:
    from mmcl_jax.data.images import cine, short_axis

    stack = cine.read_zip(path)
    found = _volume(path, stack.pixels, stack.spacing)
    gaps = np.diff(stack.positions)
    found["slice_distance"] = float(np.median(gaps)) if len(gaps) else None
    try:
        flags = short_axis.prepare(path, stack)[2]
    except RefusedRecord as error:
        return {**found, "usable": False, "reason": error.reason, "flags": list(stack.flags)}
    return {**found, "usable": True, "reason": "", "flags": list(flags)}


def _nifti(path: pathlib.Path) -> dict[str, Any]:
    from mmcl_jax.data.formats import nifti

    volume = nifti.read(path)
    found = _volume(path, volume.values, float(np.mean(volume.spacing)))
    found["slice_distance"] = float(f"{volume.distance:.6g}")
    values = np.unique(volume.values)
    if len(values) <= 16:
        found["values"] = values.tolist()
    return {**found, "flags": list(volume.flags)}


def _volume(
    path: pathlib.Path, pixels: Float[np.ndarray, "Z T H W"], spacing: float
) -> dict[str, Any]:
    slices, frames, rows, columns = pixels.shape
    return {
        "kind": "cmr",
        "path": str(path),
        "slices": slices,
        "frames": frames,
        "rows": rows,
        "columns": columns,
        "pixel_size": float(f"{spacing:.6g}"),
        **_statistics(pixels),
    }


_READERS: Mapping[tuple[str, ...], Callable[[pathlib.Path], dict[str, Any]]] = {
    (".xml",): _cardiosoft,
    (".npy",): _npy,
    (".npz",): _npz,
    (".h5", ".hdf5"): _hdf5,
    (".pt", ".pth"): _torch,
    (".zip",): _zip,
    (".nii", ".nii.gz"): _nifti,
}
