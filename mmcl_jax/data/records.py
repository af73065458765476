"""How a cohort lies on disk: a TFDS data set in ArrayRecord files, without TensorFlow.

One TF example per record. Both modalities are stored as raw bytes: as lists of numbers they cost
ten times the time to write and to parse. A modality that a record lacks is an array of length 0,
and the data set then declares its first dimension as unknown (None).

    tfds.builder_from_directory(path).as_data_source("train")[0]

reads such a folder too; `record_source.py` does the same faster, and reads only the fields asked
for.
"""

import contextlib
import functools
import math
import os
import pathlib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source, array_record_module
from jaxtyping import Float
from tensorflow_datasets.proto import tf_example_pb2

from mmcl_jax.data.subject import Subject

ECG_SHAPE = (12, 5000)
CMR_SHAPE = (210, 210, 3)
FIELDS = ("ecg", "cmr", "cmr_box")
DATASET = "cohort"

# One record per group is what random access needs. z-scored floats hardly compress, and reading
# them uncompressed is three times as fast.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_DTYPES = {"ecg": np.dtype("<f4"), "cmr": np.dtype("u1"), "cmr_box": np.dtype("<i4")}
_SHAPES = {"ecg": ECG_SHAPE, "cmr": CMR_SHAPE, "cmr_box": (4,)}


def encode(subject: Subject, labels: Float[np.ndarray, " K"]) -> bytes:
    """The record of one subject as a serialised TF example, the same bytes on every machine.

    Args:
        subject: what a source loaded.
        labels: its label values in the order of the cohort's labels, NaN where missing.
    """
    features, serialiser = _serialiser(len(labels))
    box = subject.cmr_box or (0, 0, *CMR_SHAPE[:2])
    record, person = subject.stored_as or (subject.record, subject.subject)
    example = {
        "record": record,
        "subject": person,
        "ecg": np.empty((0, *ECG_SHAPE[1:]), np.float32) if subject.ecg is None else subject.ecg,
        "cmr": np.empty((0, *CMR_SHAPE[1:]), np.uint8) if subject.cmr is None else subject.cmr,
        "cmr_box": np.asarray(box, np.int32),
        "labels": np.asarray(labels, np.float32),
    }
    proto = serialiser.get_tf_example(features.encode_example(example))
    return proto.SerializeToString(deterministic=True)


def decode(record: bytes, fields: Iterable[str] = FIELDS) -> dict[str, np.ndarray]:
    """The wanted fields of a serialised record; a field that the record lacks is absent.

    Returns:
        'ecg' float32 [12, 5000], 'cmr' uint8 [210, 210, 3] (both read-only views of the record),
        'cmr_box' int32 [4].
    """
    features = tf_example_pb2.Example.FromString(record).features.feature
    arrays = {}
    for field in fields:
        if field == "cmr_box":
            if features["cmr"].bytes_list.value[0]:
                arrays[field] = np.array(features[field].int64_list.value, np.int32)
        elif data := features[field].bytes_list.value[0]:
            arrays[field] = np.frombuffer(data, _DTYPES[field]).reshape(_SHAPES[field])
    return arrays


def empty_arrays(fields: Iterable[str], count: int) -> dict[str, np.ndarray]:
    """Zeros for `count` records: [count, ...] in the shapes and types of `decode`.

    They start at multiples of 64 bytes, so that JAX can use them on a CPU without a copy. Memory
    is taken as they are written to.
    """
    return {field: _aligned_zeros((count, *_SHAPES[field]), _DTYPES[field]) for field in fields}


def record_bytes(fields: Iterable[str]) -> int:
    """Bytes of one decoded record."""
    return sum(math.prod(_SHAPES[field]) * _DTYPES[field].itemsize for field in fields)


def stored_fields(fields: Sequence[str]) -> tuple[str, ...]:
    """Modalities with what belongs to them: 'cmr' brings 'cmr_box'."""
    return (*fields, "cmr_box") if "cmr" in fields else tuple(fields)


class ShardWriter:
    """Writes records into one file, which gets its name when it is complete."""

    def __init__(self, file: pathlib.Path):
        self._file = file
        # Two machines may write the same block, when one of them is slow or taken for dead.
        self._partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
        self._writer = array_record_module.ArrayRecordWriter(str(self._partial), _WRITER_OPTIONS)
        self._length = 0

    def write(self, record: bytes) -> None:
        """Appends a record. Raises OSError where it cannot, e.g. because the disk is full."""
        with _as_os_error():
            self._writer.write(record)
        self._length += 1

    def close(self) -> dict[str, str | int]:
        """Ends the file. Returns its name 'file', 'records' and 'bytes'.

        Raises:
            OSError: it does not hold what was written to it, e.g. because the disk is full.
        """
        with _as_os_error():
            self._writer.close()
            reader = array_record_module.ArrayRecordReader(str(self._partial))
            found = reader.num_records()
            reader.close()
        if found != self._length:
            raise OSError(
                f"{self._partial}: holds {found} records, {self._length} were written; disk full?"
            )
        self._partial.replace(self._file)
        size = self._file.stat().st_size
        return {"file": self._file.name, "records": self._length, "bytes": size}


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """ArrayRecord raises RuntimeError where the system refuses something."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


def read_records(folder: pathlib.Path, shard: Mapping[str, str | int]) -> Iterator[bytes]:
    """The serialised records of a file that `ShardWriter.close` described, in order."""
    reader = array_record_module.ArrayRecordReader(os.fspath(folder / shard["file"]))
    try:
        for position in range(shard["records"]):
            yield reader.read([position])[0]
    finally:
        reader.close()


def open_records(
    folder: pathlib.Path, shards: Sequence[Mapping[str, str | int]]
) -> Sequence[bytes]:
    """Random access to the serialised records of files that `ShardWriter.close` described."""
    # 'path[0:n]' spares opening every file just to count its records.
    paths = [f"{os.fspath(folder / shard['file'])}[0:{shard['records']}]" for shard in shards]
    return array_record_data_source.ArrayRecordDataSource(paths)


def shard_name(split: str, position: int, count: int) -> str:
    """The name that TFDS looks for."""
    return f"{DATASET}-{split}.array_record-{position:05d}-of-{count:05d}"


def write_tfds_metadata(
    folder: pathlib.Path,
    shards: Mapping[str, Sequence[Mapping[str, str | int]]],
    label_names: Sequence[str],
    *,
    description: str,
    complete: Iterable[str],
) -> None:
    """Writes the files that make the folder a TFDS data set: dataset_info.json, features.json.

    Args:
        folder: holds the named shards already.
        shards: 'file', 'records', 'bytes' of every file, by split.
        label_names: names of the label columns.
        description: text of the data set.
        complete: the modalities that every record has.
    """
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard["records"] for shard in files],
            num_bytes=sum(shard["bytes"] for shard in files),
        )
        for split, files in shards.items()
        if files
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=_features(len(label_names), tuple(complete), ", ".join(label_names)),
        split_infos=splits,
        version="1.0.0",
        description=description,
        check_data=False,
    )


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _features(
    labels: int, complete: tuple[str, ...] = (), label_doc: str = ""
) -> tfds.features.FeaturesDict:
    def shape(field: str) -> tuple[int | None, ...]:
        return _SHAPES[field] if field in complete else (None, *_SHAPES[field][1:])

    tensor = tfds.features.Tensor
    return tfds.features.FeaturesDict(
        {
            "record": tfds.features.Text(doc="name of the record"),
            "subject": tfds.features.Text(doc="the person"),
            "ecg": tensor(
                shape=shape("ecg"),
                dtype=np.float32,
                encoding="bytes",
                doc="I II III aVR aVL aVF V1-V6, 10 s at 500 Hz, z-scored per lead group",
            ),
            "cmr": tensor(
                shape=shape("cmr"), dtype=np.uint8, encoding="bytes", doc="ES, mid, ED frame"
            ),
            "cmr_box": tensor(
                shape=(4,), dtype=np.int32, doc="heart box: top, left, height, width in pixels"
            ),
            "labels": tensor(shape=(labels,), dtype=np.float32, doc=f"NaN: missing. {label_doc}"),
        }
    )


@functools.lru_cache(maxsize=8)
def _serialiser(labels: int):
    """Encoder and serialiser of the features; the shapes known or not, the bytes are the same."""
    features = _features(labels)
    return features, tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
