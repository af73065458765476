"""The folder of a sweep: which members have finished, and with what.

sweep.json       the settings it was begun with
results.jsonl    a line per member, in the order in which they finished
results.csv      the same as a table, in the order of the grid
underway-*/      members that have not finished (`underway.py`)
best.json        the chosen point, its settings, mean and standard deviation over the seeds
"""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mmcl_jax import stage_settings
from mmcl_jax.run_dir import append_line, write_atomically
from mmcl_jax.sweep.grid import Point

COLUMNS = ("steps", "best_step", "best", "stopped_early", "diverged")
ROUNDS = ("search", "chosen")


@dataclasses.dataclass(frozen=True, order=True)
class Task:
    """A member by its place in the sweep.

    Attributes:
        round: one of `ROUNDS`.
        point: number in the grid.
        seed: of initialisation, data order and every draw.
    """

    round: str
    point: int
    seed: int


class Results:
    """Results by task, kept on disk as they come.

    Args:
        folder: of the sweep.
        points: of the grid, in order.
        batch_size: of points that do not say.
    """

    def __init__(self, folder: pathlib.Path, points: Sequence[Point], batch_size: int):
        self.folder, self._points, self._batch_size = folder, points, batch_size
        self._file = folder / "results.jsonl"
        self._records = {Task(r["round"], r["point"], r["seed"]): r for r in self._read()}

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Raises ValueError where the folder holds a sweep with other settings or records."""
        file = self.folder / "sweep.json"
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        if not file.is_file():
            write_atomically(file, text)
            return
        before, now = json.loads(file.read_text()), json.loads(text)
        if "cohort" not in before:
            # Sweeps of earlier versions do not have it.
            now.pop("cohort", None)
        if lines := stage_settings.changed(before, now):
            raise ValueError(
                f"{self.folder} holds a sweep with other settings: {'; '.join(lines)}. Use a new "
                "--workdir, or delete the folder to search again"
            )

    def __contains__(self, task: Task) -> bool:
        return task in self._records

    def __getitem__(self, task: Task) -> dict[str, Any]:
        return self._records[task]

    def add(self, task: Task, record: Mapping[str, Any]) -> None:
        """A finished member: `COLUMNS` and `metrics`. It is on disk when this returns."""
        self._records[task] = {**dataclasses.asdict(task), **record}
        append_line(self._file, json.dumps(self._records[task]) + "\n")

    def write_table(self) -> None:
        axes = [axis for axis in self._points[0] if axis != "batch_size"]
        columns = ("round", "point", "batch_size", *axes, "seed", *COLUMNS)
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for task in sorted(self._records, key=lambda t: (ROUNDS.index(t.round), t.point, t.seed)):
            settings = {"batch_size": self._batch_size, **self._points[task.point]}
            record = {**settings, **self._records[task]}
            writer.writerow({name: record[name] for name in columns})
        write_atomically(self.folder / "results.csv", text.getvalue())

    def write_best(self, best: Mapping[str, Any]) -> bool:
        """Writes best.json; False where it says the same already."""
        file = self.folder / "best.json"
        text = json.dumps(best, indent=2) + "\n"
        if file.is_file() and file.read_text() == text:
            return False
        write_atomically(file, text)
        return True

    def _read(self) -> list[dict[str, Any]]:
        if not self._file.is_file():
            return []
        text = self._file.read_text()
        if not text.endswith("\n"):
            # The last line of a run that was killed while writing it.
            text = text[: text.rfind("\n") + 1]
            write_atomically(self._file, text)
        return [json.loads(line) for line in text.splitlines()]
