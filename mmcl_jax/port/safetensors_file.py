"""Reads and writes `.safetensors` files, with bfloat16 as that of ml_dtypes."""

import os
from collections.abc import Mapping

import ml_dtypes
import numpy as np


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file by name.

    Raises:
        ImportError: safetensors is not installed.
        OSError: the file cannot be opened.
        ValueError: the file is truncated, damaged or of another kind, or a type is not known.
    """
    with open(path, "rb") as file:
        content = file.read()
    safetensors = _library()
    try:
        found = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: truncated, damaged or no safetensors file ({error})") from error
    state = {}
    for name, tensor in found:
        if tensor["dtype"] not in _TYPES:
            raise ValueError(f"{path}: {name} is of type {tensor['dtype']}, which is not read")
        dtype = np.dtype(_TYPES[tensor["dtype"]])
        state[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    return state


def save(path: str | os.PathLike, state: Mapping[str, np.ndarray]) -> None:
    """Writes tensors by name. Raises ImportError where safetensors is not installed."""
    from_name = {np.dtype(dtype).name: np.dtype(dtype) for dtype in _TYPES.values()}
    safetensors = _library()
    # The arrays are read through their addresses while this holds them.
    held = {}
    for name, array in state.items():
        little = np.asarray(array).astype(from_name[array.dtype.name], copy=False)
        held[name] = np.ascontiguousarray(little).reshape(array.shape)
    specs = {
        name: safetensors.TensorSpec(
            dtype=array.dtype.name,
            shape=array.shape,
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in held.items()
    }
    # Libraries that read several frameworks look for this word.
    safetensors.serialize_file(specs, os.fspath(path), {"format": "pt"})


_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def _library():
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(
            ".safetensors files need safetensors: pip install 'mmcl_jax[port]'"
        ) from error
    return safetensors
