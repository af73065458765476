import json
import os
import subprocess
import sys

import pytest

from mmcl_jax import host_memory

PROGRAM = """
import json, os, sys
from mmcl_jax.host_memory import use_huge_pages
use_huge_pages()
print(json.dumps([os.environ.get("GLIBC_TUNABLES", ""), sys.argv[1:], "jax" in sys.modules]))
"""


def started(tmp_path, **environment):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    inherited = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, file, "--a", "b c"], capture_output=True, text=True, check=True,
        env=inherited | environment,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_the_program_starts_again_once_with_its_arguments(tmp_path):
    assert started(tmp_path) == ["glibc.malloc.hugetlb=1", ["--a", "b c"], False]


def test_other_tunables_stay(tmp_path):
    found = started(tmp_path, GLIBC_TUNABLES="glibc.malloc.check=0")
    assert found[0] == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"


def test_a_setting_of_the_user_is_respected(tmp_path):
    found = started(tmp_path, GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    assert found[0] == "glibc.malloc.hugetlb=0"


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ({}, {"XLA_CLIENT_MEM_FRACTION": "0.92"}),
        ({"XLA_CLIENT_MEM_FRACTION": "0.5"}, {"XLA_CLIENT_MEM_FRACTION": "0.5"}),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}),
    ],
)
def test_most_of_the_memory_is_taken_where_nothing_else_is_said(monkeypatch, said, left):
    monkeypatch.setattr(os, "environ", dict(said))
    host_memory.take_most_of_gpus()
    assert os.environ == left
