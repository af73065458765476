"""Cohorts with hashed names: nothing of the source's names is left, all else is as without."""

import base64
import csv
import json
import pathlib
import pickle
import re
import stat

import made_cardiosoft
import numpy as np
import pytest
from eid_source import EIDS, EidSource
from noting_source import MIXED

from mmcl_jax import prepare
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.preparing import blocks, hashed_ids, preparation
from mmcl_jax.data.preparing.admission import CohortError
from mmcl_jax.data.preparing.loading import without_tasks
from mmcl_jax.data.sources import ptbxl


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "_SMALLEST", 7)


def write(source, output, key, **options):
    ids = hashed_ids.open_key(key, output)
    return cohorts.write(source, output, ids=ids, **{"workers": 0, "progress": False, **options})


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def occurrences(names, folder):
    """The files below a folder, or their pictures, that hold one of the names in any encoding."""
    found = set()
    for file in folder.rglob("*"):
        data = file.read_bytes() if file.is_file() else b""
        for picture in re.findall(rb"data:image/png;base64,([^\"]+)", data):
            data += base64.b64decode(picture)
        data += bytes(str(file.relative_to(folder)), "utf-8")
        for name in names:
            for encoding in ("utf-8", "utf-16-le", "utf-32-le"):
                if name.encode(encoding) in data:
                    found.add((file.name, name))
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "c"
    report = cohorts.write(EidSource(**MIXED), folder, workers=0, progress=False)
    return report, cohorts.open_cohort(folder)


@pytest.fixture(scope="module")
def hashed(tmp_path_factory):
    """Output of the command, folder of the cohort, folder of its lists."""
    folder = tmp_path_factory.mktemp("hashed")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ptbxl, "PtbXl", lambda **_: EidSource(**MIXED))
        patched.setattr(blocks, "_SMALLEST", 7)
        printed = _run(["ptbxl", "--input", "in"], folder / "c", folder / "keys" / "secret", 1)
    return printed, folder / "c", folder / "keys" / "secret.names" / "c"


def _run(arguments, output, key, code):
    import contextlib
    import io

    stream = io.StringIO()
    common = ["--output", str(output), "--hash-ids", str(key), "--workers", "0", "--strict"]
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        assert prepare.main([*arguments, *common]) == code
    return stream.getvalue()


def test_the_search_finds_names_in_a_cohort_without_hashes(plain):
    _, cohort = plain
    found = {name for name, _ in occurrences(EIDS, cohort.path)}
    assert {"index.npz", "refused.csv", "flagged.csv", "cohort.json"} <= found
    assert any("array_record" in name for name in found)


def test_no_file_of_the_folder_holds_a_name(hashed):
    _, folder, _ = hashed
    names = {file.name for file in folder.iterdir()}
    assert {"prepare_report.html", "preview.png", "refused.csv", "flagged.csv"} <= names
    assert not (folder / blocks.FOLDER).exists()
    assert occurrences([*EIDS, "/bulk", "20205", "incomplete"], folder) == set()
    for name in ("refused.csv", "flagged.csv"):
        listed = [row["record"] for row in rows(folder / name)]
        assert listed == sorted(listed)
    assert len(rows(folder / "refused.csv")) == 3
    assert {row["file"] for row in rows(folder / "refused.csv")} == {""}
    assert {row["remark"] for row in rows(folder / "flagged.csv")} >= {"a flat lead"}


def test_the_terminal_names_no_one(hashed):
    printed, _, lists = hashed
    assert not [name for name in (*EIDS, "/bulk") if name in printed]
    assert "read 40, used 37, refused 3" in printed
    assert "a flat lead" in printed
    assert f"--strict: 3 records were refused, see {lists / 'refused.csv'}" in printed


def test_what_was_told_stays_beside_the_key(hashed, plain):
    _, folder, lists = hashed
    report, _ = plain
    told = json.loads((folder / "cohort.json").read_text())["parameters"]
    assert set(told) == {"seed", "folds", "ids"}
    assert told["folds"] == {"val": [9]}
    whole = json.loads((lists / "source.json").read_text())
    assert whole["parameters"]["subjects"] == f"{EIDS[0]}|(\\d+)"
    assert whole["cohort"] == str(folder)
    refused = {row["record"]: row for row in rows(lists / "refused.csv")}
    assert (
        refused[f"{EIDS[5]}_20205_2_0"]["reason"] == f"{EIDS[5]}_20205_2_0.xml: lead V6 is absent"
    )
    assert len(refused) == len({e.record for e in report.refused})
    assert len(rows(lists / "flagged.csv")) == len(report.flagged)
    key = lists.parent.parent / "secret"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert {stat.S_IMODE(file.stat().st_mode) for file in lists.iterdir()} == {0o600}
    assert stat.S_IMODE(lists.stat().st_mode) == 0o700


def test_splits_labels_and_recordings_are_those_without_hashes(hashed, plain):
    _, folder, lists = hashed
    _, expected = plain
    found = cohorts.open_cohort(folder)
    link = {row["record in cohort"]: row for row in rows(lists / "link.csv")}
    assert found.splits == expected.splits
    for name, pair in expected.statistics.items():
        assert found.statistics[name] == pytest.approx(pair)
    moved = 0
    for split in found.splits:
        table, wanted = found.table(split), expected.table(split)
        place = {name: row for row, name in enumerate(wanted["record"].tolist())}
        # Sources are sorted by name: the order must not tell whose a record is.
        assert table["record"].tolist() == sorted(table["record"].tolist())
        for row, name in enumerate(table["record"].tolist()):
            assert re.fullmatch("r[0-9a-f]{20}", name)
            entry = link.pop(name)
            there = place[entry["record"]]
            moved += there != row
            assert entry["subject"] == wanted["subject"][there]
            assert entry["subject in cohort"] == table["subject"][row]
            assert entry["split"] == split
            assert entry["file"].startswith("/bulk/")
            np.testing.assert_array_equal(table["labels"][row], wanted["labels"][there])
            ours, theirs = found.source(split)[row], expected.source(split)[there]
            assert ours.keys() == theirs.keys()
            for field in ours:
                np.testing.assert_array_equal(ours[field], theirs[field])
    assert link == {}
    assert moved > 10


def test_the_names_depend_on_nothing_but_key_and_name(tmp_path):
    first = hashed_ids.open_key(tmp_path / "key", tmp_path / "a")
    again = hashed_ids.open_key(tmp_path / "key", tmp_path / "b")
    other = hashed_ids.open_key(tmp_path / "other", tmp_path / "a")
    assert first.key != other.key
    assert len(first.key) == 32
    for name in ("4012300", "é"):
        assert first.record(name) == again.record(name) != other.record(name)
        assert first.record(name)[1:] != first.subject(name)[1:]
    assert first.key.hex() not in repr(first)
    assert pickle.loads(pickle.dumps(first)) == first


def test_a_known_name(tmp_path):
    """The construction is fixed: another version must give the names that a key gave before."""
    ids = hashed_ids.open_key(known_key(tmp_path / "key"), tmp_path / "c")
    # printf 'record\0004012300' | openssl dgst -sha256 -mac HMAC -macopt hexkey:00...01
    assert ids.record("4012300") == "r731288e9b1a5b064f499"


def test_interrupted_continued_and_with_a_worker(tmp_path):
    key = known_key(tmp_path / "key")
    write(EidSource(**MIXED), tmp_path / "whole", key)
    with pytest.raises(RuntimeError, match="the network is gone"):
        write(EidSource(**MIXED, fails=FAILS), tmp_path / "c", key)
    (left,) = tmp_path.glob(f"c.incomplete-*/{blocks.FOLDER}")
    assert list(left.glob("0*.json"))
    log = tmp_path / "log"
    write(EidSource(**MIXED, log=str(log)), tmp_path / "c", key, workers=1)
    assert 0 < len(log.read_text().split()) < 40
    assert content(tmp_path / "c") == content(tmp_path / "whole")
    lists = tmp_path / "key.names"
    for name in ("link.csv", "refused.csv", "flagged.csv"):
        assert (lists / "c" / name).read_bytes() == (lists / "whole" / name).read_bytes()


def test_blocks_that_other_machines_write(tmp_path):
    """As Apache Beam does: the source travels as a pickle, without its tasks."""

    def distribute(source, parts, missing):
        source = pickle.loads(pickle.dumps(without_tasks(source)))
        assert len(source.tasks) == 0
        for number in missing:
            blocks.write_block(parts.path, number, source, parts.tasks(number))

    key = known_key(tmp_path / "key")
    write(EidSource(**MIXED), tmp_path / "a", key)
    write(EidSource(**MIXED), tmp_path / "b", key, distribute=distribute)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_another_key_begins_afresh(tmp_path, capsys):
    with pytest.raises(RuntimeError, match="the network is gone"):
        write(EidSource(fails=FAILS), tmp_path / "c", known_key(tmp_path / "one"))
    write(EidSource(), tmp_path / "c", tmp_path / "two", progress=True)
    assert "an unfinished preparation had other parameters;" in capsys.readouterr().err


def test_nothing_is_left_of_a_preparation_without_hashes(tmp_path, monkeypatch):
    """It was killed when its files had their last names, and there were more of them."""

    def fail(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(preparation, "write_tfds_metadata", fail)
        with pytest.raises(OSError, match="disk full"):
            cohorts.write(EidSource(**MIXED), tmp_path / "c", workers=0, progress=False)
    assert list(tmp_path.glob("c.incomplete-*/cohort-train*"))
    write(EidSource(count=9), tmp_path / "c", known_key(tmp_path / "key"))
    assert occurrences(EIDS, tmp_path / "c") == set()
    assert len(list((tmp_path / "c").glob("cohort-train*"))) == 1


def known_key(file):
    file.write_text("00" * 31 + "01\n")
    file.chmod(0o600)
    return file


FAILS = 30


def test_errors_name_no_one(tmp_path, monkeypatch):
    torn = EidSource(paired=10, changes=((1, "split", "test"),))
    monkeypatch.setattr(ptbxl, "PtbXl", lambda **_: torn)
    printed = _run(["ptbxl", "--input", "in"], tmp_path / "c", tmp_path / "key", 1)
    file = tmp_path / "key.names" / "c" / "error.txt"
    assert "stopped by CohortError; what it says may name people or files" in printed
    assert str(file) in printed
    assert not [name for name in EIDS if name in printed]
    assert f"subject {EIDS[0]} is in two splits" in file.read_text()
    # A failure of the machine, which names its task.
    monkeypatch.setattr(ptbxl, "PtbXl", lambda **_: EidSource(fails=3))
    printed = _run(["ptbxl", "--input", "in"], tmp_path / "c", tmp_path / "key", 1)
    assert "stopped by RuntimeError" in printed
    assert not [name for name in ("Task(", *EIDS) if name in printed]
    assert "the network is gone" in file.read_text()


def test_two_names_with_one_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(hashed_ids, "_DIGITS", 1)
    with pytest.raises(CohortError, match="have the same hash"):
        write(EidSource(), tmp_path / "c", tmp_path / "key")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("text", ["", "secret", "00" * 31, "ü" * 64])
def test_something_else_than_a_key(tmp_path, text):
    (tmp_path / "key").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="not a key, which is 64 hexadecimal digits"):
        hashed_ids.open_key(tmp_path / "key", tmp_path / "c")
    assert (tmp_path / "key").read_text(encoding="utf-8") == text


def test_the_key_stays_out_of_cohorts(tmp_path, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "cohort.json").touch()
    (tmp_path / "link").symlink_to(tmp_path / "new")
    for place in ("new/key", "new/deep/key", "link/key", "old/deep/key", "new/../new/key"):
        with pytest.raises(ValueError, match="lies in the folder of a cohort"):
            hashed_ids.open_key(tmp_path / place, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    hashed_ids.open_key(tmp_path / "newer" / "key", tmp_path / "new")
    (tmp_path / "newer" / "key").chmod(0o644)
    hashed_ids.open_key(tmp_path / "newer" / "key", tmp_path / "new")
    assert "others may read the key" in capsys.readouterr().err


def test_lists_of_another_cohort_of_the_same_name(tmp_path):
    hashed_ids.open_key(tmp_path / "key", tmp_path / "a" / "mine")
    with pytest.raises(FileExistsError, match="lists of another cohort of this name"):
        hashed_ids.open_key(tmp_path / "key", tmp_path / "b" / "mine")


def test_uk_biobank(tmp_path):
    """The names of its files are participant numbers; so are its list of withdrawals."""
    pytest.importorskip("defusedxml")
    pytest.importorskip("pyarrow")
    pytest.importorskip("pydicom")
    eids = [str(5_000_011 + 1000 * number) for number in range(6)]
    bulk = tmp_path / "bulk" / "20205"
    bulk.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for eid in eids:
        counts = rng.integers(-200, 200, (12, 5000))
        (bulk / f"{eid}_20205_2_0.xml").write_bytes(made_cardiosoft.xml(counts))
    (bulk / f"{eids[3]}_20205_2_0.xml").write_text("<damaged")
    (bulk / f"{eids[2]}_20205_2_1.xml").write_bytes(made_cardiosoft.xml(counts))
    withdrawn = tmp_path / "withdrawn.txt"
    withdrawn.write_text(f"{eids[4]}\n")
    source = ["ukb", "--input", str(tmp_path / "bulk"), "--withdrawn", str(withdrawn)]
    printed = _run(source, tmp_path / "shared", tmp_path / "key", 1)
    assert "read 6, used 4, refused 2" in printed
    assert occurrences([*eids, ".xml", "bulk"], tmp_path / "shared") == set()
    assert not [eid for eid in eids if eid in printed]
    link = rows(tmp_path / "key.names" / "shared" / "link.csv")
    assert [row["subject"] for row in link] == [eids[0], eids[1], eids[2], eids[5]]
    assert pathlib.Path(link[0]["file"]).name == f"{eids[0]}_20205_2_0.xml"
    reasons = {row["reason"] for row in rows(tmp_path / "key.names" / "shared" / "refused.csv")}
    assert "withdrawn" in reasons
