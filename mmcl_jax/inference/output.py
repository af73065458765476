"""The output of inference: parts beside the output file, joined to it when all are there.

A part holds a fixed number of records and gets its name when it is complete, so that a command
that was killed goes on after the last whole part. Only one part is in memory at a time.
"""

import csv
import functools
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mmcl_jax.csv_text import neutral
from mmcl_jax.data.formats import arrays
from mmcl_jax.inference.input import TEXT
from mmcl_jax.inference.models import Column
from mmcl_jax.run_dir import differences, write_atomically

FORMATS = (".parquet", ".csv", ".npz")


class Parts:
    """The parts of one output in the folder OUTPUT.parts.

    Args:
        output: the file to be.
        plan: JSON of all that decides what is in it, 'rows' and 'part_rows' among it.

    Raises:
        ValueError: the folder is there with another plan.
    """

    def __init__(self, output: pathlib.Path, plan: Mapping[str, Any]):
        self.folder = output.with_name(f"{output.name}.parts")
        self.count = -(-plan["rows"] // plan["part_rows"])
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "plan.json"
        if file.is_file():
            if lines := differences(json.loads(file.read_text()), json.loads(json.dumps(plan))):
                raise ValueError(
                    f"{self.folder} holds the beginning of another output: {'; '.join(lines)}. "
                    "Repeat that command, delete the folder, or use another --output"
                )
        else:
            write_atomically(file, json.dumps(plan, indent=2, sort_keys=True) + "\n")

    @property
    def done(self) -> int:
        """Number of parts that are there, from the first on."""
        return next((k for k in range(self.count) if not self._file(k).is_file()), self.count)

    def write(
        self, number: int, text: Mapping[str, Sequence[str]], values: Float[np.ndarray, "C n"]
    ) -> None:
        """Writes a part: its text columns [n], and its columns of numbers."""
        temporary = self._file(number).with_suffix(".partial")
        with temporary.open("wb") as file:
            np.savez(
                file, values=values, **{f"text/{k}": np.array(v, str) for k, v in text.items()}
            )
        temporary.replace(self._file(number))

    def text(self, number: int, name: str) -> np.ndarray:
        with np.load(self._file(number), allow_pickle=False) as part:
            return part[f"text/{name}"]

    def values(self, number: int) -> Float[np.ndarray, "C n"]:
        """A view of the file: what is not looked at is not read."""
        return arrays.open_rows(self._file(number), "values")

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _file(self, number: int) -> pathlib.Path:
        return self.folder / f"part-{number:06d}.npz"


def check(output: pathlib.Path, overwrite: bool) -> None:
    """What can be known before anything is computed.

    Raises:
        ValueError: another suffix than `FORMATS`.
        FileExistsError: the output is there already.
        ImportError: its writer is not installed.
    """
    if output.suffix not in FORMATS:
        raise ValueError(f"--output is {output}, expected a file of {', '.join(FORMATS)}")
    if output.exists() and not overwrite:
        raise FileExistsError(
            f"{output} exists; use another --output, or --overwrite to replace it"
        )
    if output.suffix == ".parquet":
        _pyarrow()


def join(
    parts: Parts, output: pathlib.Path, columns: Sequence[Column], about: Mapping[str, Any]
) -> None:
    """Writes the output and beside it OUTPUT.json, which is `about`.

    An embedding is one column of vectors, in a CSV one column per number. Where a record is
    refused, numbers are NaN, in a CSV empty and in Parquet null.
    """
    write = {".csv": _write_csv, ".npz": _write_npz, ".parquet": _write_parquet}[output.suffix]
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        write(parts, temporary, columns, about)
        write_atomically(sidecar(output), json.dumps(about, indent=2) + "\n")
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def is_embedding(columns: Sequence[Column]) -> bool:
    """Whether the columns are the numbers of one vector."""
    return columns[0].kind == "embedding"


def sidecar(output: pathlib.Path) -> pathlib.Path:
    return output.with_name(f"{output.name}.json")


def _write_csv(
    parts: Parts, path: pathlib.Path, columns: Sequence[Column], about: Mapping[str, Any]
) -> None:
    del about
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*TEXT, *(neutral(column.name) for column in columns)])
        for number in range(parts.count):
            text = [parts.text(number, name).tolist() for name in TEXT]
            for *names, numbers in zip(*text, parts.values(number).T.tolist(), strict=True):
                # 9 digits are all that a float32 has.
                cells = ("" if x != x else f"{x:.9g}" for x in numbers)
                writer.writerow([*map(neutral, names), *cells])


def _write_npz(
    parts: Parts, path: pathlib.Path, columns: Sequence[Column], about: Mapping[str, Any]
) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in TEXT:
            # Text of a fixed width, which is mostly zeros.
            blocks = [functools.partial(parts.text, number, name) for number in range(parts.count)]
            dtype = np.dtype(f"<U{max((block().itemsize // 4 for block in blocks), default=1)}")
            _add(archive, name, (about["records"],), dtype, blocks, zipfile.ZIP_DEFLATED)
        if is_embedding(columns):
            blocks = [functools.partial(_vectors, parts, number) for number in range(parts.count)]
            shape = (about["records"], len(columns))
            _add(archive, "embedding", shape, np.dtype("<f4"), blocks)
            return
        for position, column in enumerate(columns):
            blocks = [
                functools.partial(_numbers, parts, number, position)
                for number in range(parts.count)
            ]
            _add(archive, column.name, (about["records"],), np.dtype("<f8"), blocks)


def _add(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    blocks: Sequence[Callable[[], np.ndarray]],
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Adds an array to an .npz, block by block."""
    # A fixed date: the same content makes the same file.
    member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    member.compress_type = compression
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with archive.open(member, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block(), dtype).tobytes())


def _write_parquet(
    parts: Parts, path: pathlib.Path, columns: Sequence[Column], about: Mapping[str, Any]
) -> None:
    pa, pq = _pyarrow()
    fields = [pa.field(name, pa.string()) for name in TEXT]
    if is_embedding(columns):
        fields.append(pa.field("embedding", pa.list_(pa.float32(), len(columns))))
    else:
        fields += [
            pa.field(c.name, pa.float64(), metadata={"unit": c.unit, "description": c.description})
            for c in columns
        ]
    schema = pa.schema(fields, metadata={"mmcl_jax": json.dumps(about)})
    with pq.ParquetWriter(path, schema) as writer:
        for number in range(parts.count):
            text = {name: parts.text(number, name) for name in TEXT}
            refused = text["refused"] != ""
            found = [pa.array(values.tolist(), pa.string()) for values in text.values()]
            if is_embedding(columns):
                flat = pa.array(_vectors(parts, number).reshape(-1), pa.float32())
                missing = pa.array(refused)
                vectors = pa.FixedSizeListArray.from_arrays(flat, len(columns), mask=missing)
                found.append(vectors)
            else:
                found += [pa.array(row, pa.float64(), mask=refused) for row in parts.values(number)]
            writer.write_table(pa.table(found, schema=schema))


def _vectors(parts: Parts, number: int) -> Float[np.ndarray, "n D"]:
    return np.asarray(parts.values(number)).T


def _numbers(parts: Parts, number: int, position: int) -> Float[np.ndarray, " n"]:
    return np.asarray(parts.values(number)[position])


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install 'mmcl_jax[parquet]'") from error
    return pyarrow, pyarrow.parquet
