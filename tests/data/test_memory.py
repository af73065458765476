from mmcl_jax.data.memory import _container, available_memory


def test_available_memory_is_some_of_the_machine():
    assert 10**6 < available_memory() < 10**15


def test_the_limit_of_a_container(tmp_path):
    assert _container(tmp_path, 7) == 7
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert _container(tmp_path, 7) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert _container(tmp_path, 7) == 7
