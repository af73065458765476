from mmcl_jax.data.memory import _groups, _left, available_memory


def test_available_memory_is_some_of_the_machine():
    assert 10**6 < available_memory() < 10**15


def test_the_limit_of_a_container(tmp_path):
    assert _left(tmp_path, 7) == 7
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert _left(tmp_path, 7) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert _left(tmp_path, 7) == 7


def test_the_job_of_a_scheduler_lies_in_groups_of_the_machine(tmp_path):
    found = _groups(tmp_path, "4:memory:/old\n0::/slurm/job_7/step_0\n")
    names = ("slurm/job_7/step_0", "slurm/job_7", "slurm", "")
    assert found == [tmp_path / name for name in names]
    # In a container, whose own group is the root; and with version 1 only.
    assert _groups(tmp_path, "0::/\n") == _groups(tmp_path, "4:memory:/old\n") == [tmp_path]
