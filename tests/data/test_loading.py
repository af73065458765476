"""Names of tasks in the report; the rest is in `test_cohort.py`."""

import dataclasses
import pathlib

from tiny_source import TinySource

from mmcl_jax.data.loading import load_in_order


def test_tasks_may_name_the_record():
    @dataclasses.dataclass
    class Task:
        record: str
        path: pathlib.Path

    class Named(TinySource):
        tasks = tuple(Task(name, pathlib.Path(f"/data/{name}.hea")) for name in ("A1", "A2"))

        def load(self, task):
            return super().load(5 if task.record == "A1" else 6)

    first, second = load_in_order(Named(refused=(5,)), workers=0)
    assert (first.record, first.file) == ("A1", "/recordings/r005.hea")
    assert (second.record, second.file) == ("r006", "/data/A2.hea")
