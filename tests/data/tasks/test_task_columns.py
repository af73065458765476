import math
import pathlib
import pickle

import pytest

from mmcl_jax.data.subject import assign_split
from mmcl_jax.data.tasks.task_columns import TaskColumns


@pytest.fixture
def tasks():
    tasks = TaskColumns("folder", ("age", "AF"), seed=4)
    tasks.append("1", "p", "a.hea", (50.0, math.nan))
    tasks.append("2", "p", "b.hea", (51.0, 1.0))
    tasks.append("3", "", "c.hea", (math.nan, math.nan), "no subject")
    return tasks


def test_a_task_is_made_of_its_row(tasks):
    first, second, third = tasks
    assert (first.record, first.subject, first.path) == ("1", "p", pathlib.Path("folder/a.hea"))
    assert (first.labels, second.labels, third.labels) == ({"age": 50}, {"age": 51, "AF": 1}, {})
    assert first.split == second.split == assign_split("p", 4)
    assert first.split_assigned
    assert (first.refusal, third.refusal) == ("", "no subject")


def test_it_is_a_sequence(tasks):
    assert len(tasks) == 3
    assert tasks[-1] == tasks[2]
    assert tasks[1:] == [tasks[1], tasks[2]]
    assert list(pickle.loads(pickle.dumps(tasks))) == list(tasks)
    with pytest.raises(IndexError):
        tasks[3]


def test_a_value_per_label(tasks):
    with pytest.raises(ValueError, match="4: 1 values for 2 labels"):
        tasks.append("4", "p", "d.hea", (1.0,))
