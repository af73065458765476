"""Unpickler of what `torch.save` writes: tensors, NumPy arrays of numbers and plain containers.

A pickle names functions and has them called. This one knows its own few by the names that PyTorch
and NumPy give to theirs, so that nothing else can be reached from a file.
"""

import math
import pickle
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import UInt8


class Refused(Exception):
    """The file asks for something that is not read."""


# A file may set attributes of what it gets hold of, so it gets tuples, which have none to set.
class Storage(NamedTuple):
    """Numbers in a row; `content` is filled in behind the pickle in the older layout."""

    dtype: np.dtype
    size: int
    content: list[UInt8[np.ndarray, " n"]]


class Foreign(NamedTuple):
    """Stands for an object of another library; `name` is that of its class."""

    name: str


class Unpickler(pickle.Unpickler):
    """Knows the names of `_GLOBALS` only. Storages come from `storage(dtype, key, size)`.

    With `foreign`, objects of the libraries that write hyper-parameters beside weights are read as
    `Foreign`: nothing of them is imported, built or called.
    """

    def __init__(
        self,
        stream: Any,
        storage: Callable[[np.dtype, str, int], Storage],
        *,
        foreign: bool = False,
    ):
        super().__init__(stream, encoding="utf-8")
        self._storage = storage
        self._foreign = foreign

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if self._foreign and _is_foreign(module, name):
            return type("Placeholder", (_Placeholder,), {"__slots__": (), "full_name": full})
        if full not in _GLOBALS:
            raise Refused(
                f"the file asks for {full}; only tensors, NumPy arrays of numbers and plain "
                "containers are read. Save the tensors alone, for instance model.state_dict()"
            )
        return _GLOBALS[full]

    def persistent_load(self, identifier: Any) -> Storage:
        what, kind, key, _, size, *views = identifier
        if what != "storage" or not isinstance(kind, _Kind):
            raise ValueError(f"unknown reference {identifier!r:.80}")
        if any(view is not None for view in views):
            raise Refused("it holds views of storages, as PyTorch before 0.4 wrote them")
        if not isinstance(key, str) or not _is_size(size):
            raise ValueError(f"unreadable storage {key!r} of size {size!r:.40}")
        return self._storage(kind.dtype, key, size)


def plain(tree: Any) -> Any:
    """The tree with arrays for tensors; what a file shares is shared, and no tree holds itself."""
    done: dict[int, Any] = {}
    open_nodes: set[int] = set()

    def convert(node: Any) -> Any:
        if isinstance(node, _Leaf):
            return node
        if id(node) in done:
            return done[id(node)]
        if id(node) in open_nodes:
            raise ValueError("the file holds a container that holds itself")
        open_nodes.add(id(node))
        if isinstance(node, _Tensor):
            made = node.array()
        elif isinstance(node, dict):
            made = {_key(key): convert(value) for key, value in node.items()}
        elif type(node) in (list, tuple):
            made = type(node)(map(convert, node))
        elif isinstance(node, set | frozenset):
            made = {_key(value) for value in node}
        elif isinstance(node, _Array):
            made = node.value
        elif _is_placeholder(node):
            made = Foreign(node.full_name)
        else:
            raise ValueError(f"the file holds {type(node).__name__.lstrip('_')} by itself")
        open_nodes.discard(id(node))
        done[id(node)] = made
        return made

    return convert(tree)


class _Function(NamedTuple):
    """A function that a file may call."""

    call: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


class _Kind(NamedTuple):
    """Type of the numbers of a storage."""

    dtype: np.dtype


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    def array(self) -> np.ndarray:
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        (content,) = self.storage.content
        step = self.dtype.itemsize
        last = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if (self.offset + last + 1) * step > len(content):
            raise ValueError(
                f"a tensor of shape {self.shape} reaches beyond its storage of {len(content)} bytes"
            )
        strides = tuple(step * stride for stride in self.strides)
        return np.ndarray(self.shape, self.dtype, content, self.offset * step, strides)


class _Mapping(dict):
    """Stands for `OrderedDict` and `Namespace`, whose further attributes are not kept."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Namespace(_Mapping):
    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        self.update(state)


class _Placeholder:
    """Takes whatever a file does to an object of another library, and keeps nothing of it."""

    __slots__ = ()
    full_name = ""

    def __new__(cls, *_: Any, **__: Any) -> "_Placeholder":
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass


def _is_placeholder(node: Any) -> bool:
    return isinstance(node, _Placeholder) or (
        isinstance(node, type) and issubclass(node, _Placeholder)
    )


def _is_foreign(module: str, name: str) -> bool:
    return (
        f"{module}.{name}" in _FOREIGN_NAMES
        or module.split(".")[0] in _FOREIGN_LIBRARIES
        or (module.split(".")[0] == "pathlib" and name.endswith("Path"))
    )


class _Dtype:
    """A `numpy.dtype` of numbers."""

    __slots__ = ("dtype",)

    def __init__(self, text: str, *_: Any):
        if not isinstance(text, str) or text not in _NUMPY_TYPES:
            raise Refused(f"the file holds a NumPy array of type {text!r}; numbers are read only")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        if state[1] == ">":
            raise Refused("it was written on a big-endian machine, which is not supported")


class _Array:
    """A NumPy array before and after its state is set."""

    __slots__ = ("value",)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise Refused("the file holds a NumPy array of objects; numbers are read only")
        flat = np.frombuffer(content, dtype.dtype)
        self.value = flat.reshape(_sizes(shape), order="F" if fortran else "C")


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> _Tensor:
    return _tensor(storage, offset, shape, strides, more[2:3], storage.dtype)


def _rebuild_typed(
    storage: Any, offset: Any, shape: Any, strides: Any, _: Any, __: Any, dtype: Any, *more: Any
) -> _Tensor:
    """As `_rebuild`, for the types that have no storage class: the storage holds bytes."""
    if not isinstance(dtype, str) or dtype.removeprefix("torch.") not in _TYPED:
        raise Refused(f"the file holds a tensor of type {dtype!r:.40}")
    return _tensor(storage, offset, shape, strides, more, np.dtype(_TYPED[dtype[6:]]))


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, metadata: Any, dtype: np.dtype
) -> _Tensor:
    if any(metadata):
        raise Refused(f"the file holds a tensor with a lazy operation: {metadata!r:.60}")
    if not isinstance(storage, Storage) or not _is_size(offset):
        raise ValueError("unreadable tensor")
    shape, strides = _sizes(shape), _sizes(strides)
    if len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape} with strides {strides}")
    return _Tensor(storage, offset, shape, strides, dtype)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
        raise Refused("the file holds a NumPy object; numbers are read only")
    return np.frombuffer(content, dtype.dtype, count=1)[0]


def _encode(text: Any, encoding: Any) -> bytes:
    """How a pickle of protocol 2 spells bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("unreadable bytes")
    return text.encode("latin1")


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or not all(map(_is_size, values)):
        raise ValueError(f"unreadable shape {values!r:.60}")
    if math.prod(values) > sys.maxsize:
        raise ValueError(f"impossible shape {values!r:.60}")
    return tuple(values)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= sys.maxsize


def _key(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    if _is_placeholder(value):
        return Foreign(value.full_name)
    if not isinstance(value, _Leaf):
        raise ValueError(f"the file holds {type(value).__name__.lstrip('_')} as a key")
    return value


_Leaf = str | bytes | int | float | complex | bool | None | np.generic

_STORAGES = {
    "Float": np.float32,
    "Double": np.float64,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
    "ComplexFloat": np.complex64,
    "ComplexDouble": np.complex128,
}
_TYPED = {"uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64}
_TYPED |= {"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}
_TORCH_TYPES = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64")
_TORCH_TYPES += ("uint8", "bool", "complex64", "complex128", *_TYPED)
_NUMPY_TYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}

# Hydra's and Lightning's checkpoints hold objects of these beside the weights.
_FOREIGN_LIBRARIES = {"omegaconf", "pytorch_lightning", "lightning", "lightning_fabric"}
_FOREIGN_NAMES = {"typing.Any", "collections.defaultdict"} | {
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("dict", "list", "tuple", "int", "float", "str", "bool", "unicode", "long")
}

_GLOBALS: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _Function(_rebuild),
    "torch._utils._rebuild_tensor_v2": _Function(_rebuild),
    "torch._utils._rebuild_tensor_v3": _Function(_rebuild_typed),
    "torch._utils._rebuild_parameter": _Function(_rebuild_parameter),
    "torch.Size": _Function(_sizes),
    "torch.device": _Function(lambda *parts: ":".join(map(str, parts))),
    "torch.storage.UntypedStorage": _Kind(np.dtype(np.uint8)),
    "collections.OrderedDict": _Mapping,
    "argparse.Namespace": _Namespace,
    "_codecs.encode": _Function(_encode),
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Function(_reconstruct),
    **{
        f"numpy.{core}.multiarray.{name}": _Function(function)
        for core in ("core", "_core")
        for name, function in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
    **{
        f"{module}.{name}": _Function(made)
        for module in ("builtins", "__builtin__")
        for name, made in (("set", set), ("frozenset", frozenset))
    },
    **{f"torch.{name}Storage": _Kind(np.dtype(dtype)) for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": f"torch.{name}" for name in _TORCH_TYPES},
}
