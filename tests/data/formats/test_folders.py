from mmcl_jax.data.formats.folders import files_below


def test_links_are_followed_and_loops_end(tmp_path):
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for name in ("b/x.hea", "a.HEA", "b/y.dat", "c.hea/z.hea"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    elsewhere.mkdir()
    (elsewhere / "w.hea").touch()
    (folder / "linked").symlink_to(elsewhere)
    (folder / "b" / "up").symlink_to(folder)
    found = [path.relative_to(folder).as_posix() for path in files_below(folder, (".hea",))]
    assert found == ["a.HEA", "b/x.hea", "c.hea/z.hea", "linked/w.hea"]
