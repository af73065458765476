"""Names of tasks in the report; the rest is in `test_cohort.py`."""

import dataclasses
import pathlib

import pytest
from tiny_source import TinySource

from mmcl_jax.data.preparing.loading import load_in_order, printable, without_tasks


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


def test_names_that_are_no_utf_8_are_written_out():
    source = TinySource(changes=((3, "record", "caf\udce9"), (3, "subject", "\udcff")))
    (found,) = load_in_order(source, 0, [3])
    assert (found.record, found.subject) == ("caf\\udce9", "\\udcff")
    assert printable("café") == "café"


@pytest.mark.parametrize("workers", [0, 1])
def test_some_of_the_tasks(workers):
    assert [e.record for e in load_in_order(TinySource(), workers, (8, 3))] == ["r008", "r003"]


def test_workers_get_a_source_without_tasks():
    class Listed:
        def __init__(self):
            self.tasks, self.seed = (1, 2), 3

    source = Listed()
    assert vars(without_tasks(source)) == {"tasks": (), "seed": 3}
    assert source.tasks == (1, 2)
    assert without_tasks(TinySource(count=2)).tasks == range(2)


def test_control_characters_are_written_out():
    source = TinySource(changes=((3, "record", "a\x1b[2J\rb\0"), (3, "subject", "a\nb\x9b1m")))
    (found,) = load_in_order(source, 0, [3])
    assert (found.record, found.subject) == ("a\\x1b[2J\\x0db\\x00", "a\nb\\x9b1m")
