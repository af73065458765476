import os

import pytest

from mmcl_jax.data.formats import ukb_files


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def visits(folder):
    return [(v.eid, v.instance, v.ecg, v.cmr) for v in ukb_files.find(folder).visits]


def test_files_of_one_visit_belong_together(tmp_path):
    touch(
        tmp_path,
        "20205/1000012_20205_2_0.xml",
        "20205/1000012_20205_3_0.xml",
        "20205/10/999_20205_2_0.XML",
        "20209/1000012_20209_2_0.zip",
        "20209/1000020_20209_3_0.zip",
    )
    assert visits(tmp_path) == [
        ("999", 2, "20205/10/999_20205_2_0.XML", ""),
        ("1000012", 2, "20205/1000012_20205_2_0.xml", "20209/1000012_20209_2_0.zip"),
        ("1000012", 3, "20205/1000012_20205_3_0.xml", ""),
        ("1000020", 3, "", "20209/1000020_20209_3_0.zip"),
    ]


def test_files_of_other_fields_do_not_count(tmp_path):
    touch(tmp_path, "1_20205_2_0.xml", "1_20208_2_0.zip", "1_6025_0_0.xml", "ukb.csv", "x.txt")
    found = ukb_files.find(tmp_path)
    assert visits(tmp_path) == [("1", 2, "1_20205_2_0.xml", "")]
    assert found.strangers == []


def test_other_names_are_listed(tmp_path):
    touch(
        *(tmp_path, "1_20205_2_0.xml", "ecg.xml", "a/1_20209_2.zip", "1_20205_2_0.zip"),
        *("1_20209_2_0.xml", "１_20205_2_0.xml"),
    )
    assert [file for file, _ in ukb_files.find(tmp_path).strangers] == [
        *("1_20205_2_0.zip", "1_20209_2_0.xml", "a/1_20209_2.zip", "ecg.xml", "１_20205_2_0.xml")
    ]
    reasons = dict(ukb_files.find(tmp_path).strangers)
    assert reasons["1_20205_2_0.zip"] == "field 20205 is delivered as .xml"
    assert reasons["ecg.xml"].startswith("the name is not EID_20205_INSTANCE_ARRAY.xml or EID_2")


def test_names_of_any_bytes(tmp_path):
    touch(tmp_path, "1_20205_2_0.xml", os.fsdecode(b"\xff\xfe.xml"))
    (found,) = ukb_files.find(tmp_path).strangers
    assert found[0] == os.fsdecode(b"\xff\xfe.xml")


def test_several_files_of_a_field(tmp_path):
    touch(tmp_path, "1_20205_2_1.xml", "a/1_20205_2_0.xml", "b/1_20205_2_0.xml")
    (visit,) = ukb_files.find(tmp_path).visits
    assert visit.ecg == "a/1_20205_2_0.xml"
    assert visit.flags == (
        "several files of field 20205: a/1_20205_2_0.xml is used, "
        "b/1_20205_2_0.xml, 1_20205_2_1.xml not",
    )


def test_links_are_followed_once(tmp_path):
    bulk = touch(tmp_path / "bulk", "1_20205_2_0.xml")
    (bulk / "again").symlink_to(bulk)
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "20205").symlink_to(bulk)
    assert visits(folder) == [("1", 2, "20205/1_20205_2_0.xml", "")]
    assert ukb_files.find(folder).visits[0].flags == ()


def test_absent_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder; expected the one of the bulk"):
        ukb_files.find(tmp_path / "none")
    touch(tmp_path, "1_20208_2_0.zip", "x.xml")
    with pytest.raises(FileNotFoundError, match="holds no file named EID_20205_INSTANCE_ARRAY"):
        ukb_files.find(tmp_path)
