"""From records to the output: in batches over all devices, part by part."""

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

import mmcl_jax
from mmcl_jax.data.cohort import check_settings
from mmcl_jax.data.formats.ecg_files import EcgFiles
from mmcl_jax.data.preparing.loading import default_workers
from mmcl_jax.inference import BATCH_SIZE, Program, TrainedRun, load
from mmcl_jax.inference import input as inference_input
from mmcl_jax.inference import output as inference_output
from mmcl_jax.inference.input import TEXT, FileRows, Row, Rows
from mmcl_jax.inference.output import Parts
from mmcl_jax.progress import Progress

PART_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Summary:
    """What an output holds: records in all, and how many of them were refused."""

    records: int
    refused: int


def run(
    verb: str,
    program_of: Callable[[TrainedRun], Program],
    *,
    run: str,
    input: str,
    output: str,
    stage: str = "",
    split: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    overwrite: bool = False,
    part_rows: int = PART_ROWS,
    **declared: Any,
) -> Summary:
    """Writes the output for a whole input; goes on with what an earlier call has left.

    Args:
        verb: `embed` or `predict`.
        program_of: its program.
        run, input, output, stage, split, batch_size, workers, overwrite: see the help.
        part_rows: records that are written at a time.
        declared: options of `EcgFiles`.

    Raises:
        ValueError: an option or the input does not fit, or the beginning of another output is
            there.
        FileNotFoundError: run or input is absent.
        FileExistsError: the output is there.
    """
    path = pathlib.Path(output)
    inference_output.check(path, overwrite)
    if batch_size < 1 or (workers is not None and workers < 0):
        raise ValueError(f"batch size {batch_size}, workers {workers}: expected at least 1 and 0")
    if jax.process_count() > 1:
        raise ValueError("several JAX processes would write one output; give each its own input")
    trained = load(run, stage)
    program = program_of(trained)
    rows = open_rows(program, input, split, declared)
    batch_size = _round_up(min(batch_size, max(len(rows), 1)), program.multiple)
    plan = {
        "verb": verb,
        "version": mmcl_jax.__version__,
        "run": str(pathlib.Path(run).resolve()),
        "stages": {m.stage.name: m.id for group in program.groups for m in group.members},
        "input": str(pathlib.Path(input).resolve()),
        "splits": list(split),
        "options": _given(declared),
        "rows": len(rows),
        "names": rows.digest(),
        "batch_size": batch_size,
        "part_rows": _round_up(part_rows, batch_size),
    }
    parts = Parts(path, plan)
    if workers is None:
        workers = default_workers() if len(rows) >= _WORTH_PROCESSES else 0
    _write_parts(program, rows, parts, plan, workers)
    refused = sum(
        int(np.count_nonzero(parts.text(number, "refused"))) for number in range(parts.count)
    )
    inference_output.join(parts, path, program.columns, _about(plan, program, refused))
    parts.remove()
    return Summary(len(rows), refused)


def open_rows(program: Program, path: str, splits: Sequence[str], declared: dict[str, Any]) -> Rows:
    """The records of files or of a cohort, preprocessed as those that the stages were trained on.

    Raises:
        ValueError: an option is for the other kind of input, or the cohort was preprocessed
            otherwise.
        FileNotFoundError: the input is absent.
    """
    if not inference_input.is_cohort(path):
        if splits:
            raise ValueError(f"--split is for cohorts, and {path} is none")
        return FileRows(EcgFiles(path, settings=program.settings, **declared))
    if given := _given(declared):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{options}: for files; the records of the cohort {path} are prepared")
    cohort, rows = inference_input.cohort_rows(path, splits)
    trained_on = program.groups[0].members[0].settings
    check_settings(cohort, {"ecg": trained_on})
    return rows


class Part:
    """Fills a part batch by batch: while the device computes one, the next is read.

    No batch goes beyond its part, so that a part does not depend on where the command started.

    Attributes:
        size: records in it.
        text: columns of text, as far as records were added.
    """

    def __init__(self, program: Program, size: int, batch_size: int):
        self.size = size
        self.text: dict[str, list[str]] = {name: [] for name in TEXT}
        self._program, self._batch_size = program, batch_size
        dtype = np.float32 if inference_output.is_embedding(program.columns) else np.float64
        self._values = np.full((len(program.columns), size), np.nan, dtype)
        self._places: list[int] = []
        self._ecg = np.empty(0)
        self._running: tuple[list[int], list[list[Array]]] | None = None

    def add(self, position: int, row: Row) -> None:
        for name, values in self.text.items():
            values.append(getattr(row, name))
        if row.ecg is None:
            return
        if not self._places:
            # A new array for each batch: on a CPU the device reads it in place.
            self._ecg = np.zeros((self._batch_size, *row.ecg.shape), np.float32)
        self._ecg[len(self._places)] = row.ecg
        self._places.append(position)
        if len(self._places) == self._batch_size:
            self._start()

    def close(self) -> np.ndarray:
        """The columns [C, n], when everything is computed."""
        if self._places:
            self._start()
        self._finish()
        return self._values

    def _start(self) -> None:
        running = self._places, self._program.dispatch(self._ecg)
        self._places = []
        self._finish()
        self._running = running

    def _finish(self) -> None:
        if self._running is not None:
            places, outputs = self._running
            self._values[:, places] = self._program.collect(outputs, len(places)).T
            self._running = None


# Below this, processes take longer to start than to read.
_WORTH_PROCESSES = 200


def _write_parts(
    program: Program, rows: Rows, parts: Parts, plan: dict[str, Any], workers: int
) -> None:
    """Computes the parts that are missing, one after another."""
    done = parts.done
    if done == parts.count:
        return
    size = plan["part_rows"]
    start = min(done * size, len(rows))
    if start:
        print(f"going on after {start:,} of {len(rows):,} records", flush=True)
    with (
        Progress(len(rows), title=plan["verb"]) as progress,
        contextlib.closing(rows.read(start, workers)) as reader,
    ):
        progress.skip(start)
        refused = 0
        for number in range(done, parts.count):
            first = number * size
            part = Part(program, min(size, len(rows) - first), plan["batch_size"])
            for position, row in enumerate(itertools.islice(reader, part.size)):
                part.add(position, row)
                refused += bool(row.refused)
                note = f"{refused:,} refused" if refused else ""
                progress.update(first + position + 1, note)
            parts.write(number, part.text, part.close())


def _about(plan: dict[str, Any], program: Program, refused: int) -> dict[str, Any]:
    """What OUTPUT.json says."""
    members = [member for group in program.groups for member in group.members]
    columns = [dataclasses.asdict(column) for column in program.columns]
    if inference_output.is_embedding(program.columns):
        columns = [{"name": "embedding", "size": len(columns), "stages": [members[0].stage.name]}]
    return {
        "verb": plan["verb"],
        "version": plan["version"],
        "run": plan["run"],
        "input": plan["input"],
        "records": plan["rows"],
        "refused": refused,
        "stages": [
            {"name": m.stage.name, "seed": m.stage.seed, "target": m.stage.target, "id": m.id}
            for m in members
        ],
        "windows_per_record": program.crops,
        "preprocessing": {"ecg": dict(members[0].settings)},
        "columns": columns,
    }


def _given(declared: dict[str, Any]) -> dict[str, Any]:
    """The options of `EcgFiles` that differ from their defaults."""
    return {k: v for k, v in declared.items() if v and (k, v) != ("shortest", 10.0)}


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
