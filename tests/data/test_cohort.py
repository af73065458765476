"""Writing and opening cohorts."""

import csv
import dataclasses
import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny_source import LABELS, TinySource

from mmcl_jax.data import cohort as cohorts

# Records of splits in the tiny source, by the last digit: 0-6 train, 7 val, 8-9 test.
MIXED = TinySource(refused=(5, 17), flagged=(2,), without_ecg=(11, 28), without_cmr=(4,), paired=10)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("cohort") / "mixed"
    report = cohorts.write(MIXED, path, workers=0, progress=False)
    return path, report


def test_records_come_back(written):
    path, _ = written
    cohort = cohorts.open_cohort(path)
    seen = set()
    for split in ("train", "val", "test"):
        table, source = cohort.table(split), cohort.source(split)
        assert len(source) == cohort.splits[split] == len(table["record"])
        for row, record in enumerate(table["record"]):
            expected = MIXED.load(int(record[1:]))
            seen.add(str(record))
            found = source[row]
            assert expected.split == split
            assert table["subject"][row] == expected.subject
            assert table["has_ecg"][row] == ("ecg" in found) == (expected.ecg is not None)
            assert table["has_cmr"][row] == ("cmr" in found) == (expected.cmr is not None)
            if expected.ecg is not None:
                np.testing.assert_array_equal(found["ecg"], expected.ecg, strict=True)
            if expected.cmr is not None:
                np.testing.assert_array_equal(found["cmr"], expected.cmr, strict=True)
                np.testing.assert_array_equal(
                    found["cmr_box"], np.array(expected.cmr_box, np.int32), strict=True
                )
            labels = [expected.labels.get(label.name, np.nan) for label in LABELS]
            np.testing.assert_array_equal(table["labels"][row], np.float32(labels))
    assert seen == {f"r{number:03d}" for number in range(40)} - {"r005", "r017"}


def test_a_source_reads_only_the_wanted_fields(written):
    cohort = cohorts.open_cohort(written[0])
    assert set(cohort.source("train", ("ecg",))[0]) == {"ecg"}
    with pytest.raises(ValueError, match="unknown fields eeg; a record has ecg, cmr, cmr_box"):
        cohort.source("train", ("eeg",))
    with pytest.raises(IndexError, match="record 99 of a split"):
        cohort.source("train")[99]


def test_it_is_a_tfds_data_set(written):
    path, _ = written
    builder = tfds.builder_from_directory(path)
    assert builder.info.file_format.value == "array_record"
    assert builder.info.features["ecg"].shape == (None, 5000)  # some records have none
    cohort = cohorts.open_cohort(path)
    for split, size in cohort.splits.items():
        data = builder.as_data_source(split)
        assert len(data) == builder.info.splits[split].num_examples == size
        for row in range(size):
            ours = cohort.source(split)[row]
            assert data[row]["record"].decode() == cohort.table(split)["record"][row]
            np.testing.assert_array_equal(data[row]["labels"], cohort.table(split)["labels"][row])
            for field in ours:
                np.testing.assert_array_equal(data[row][field], ours[field], strict=True)
    assert "tensorflow" not in sys.modules


def test_features_of_a_complete_cohort_have_fixed_shapes(tmp_path):
    cohorts.write(TinySource(count=3), tmp_path / "c", workers=0, progress=False)
    features = tfds.builder_from_directory(tmp_path / "c").info.features
    assert features["ecg"].shape == (12, 5000)
    assert features["cmr"].shape == (210, 210, 3)
    assert features["labels"].shape == (4,)
    assert features["cmr"].np_dtype == np.uint8


def test_worker_processes_write_the_same_bytes(written, tmp_path):
    path, _ = written
    cohorts.write(MIXED, tmp_path / "mixed", workers=2, progress=False)
    names = sorted(file.name for file in path.iterdir())
    assert names == sorted(file.name for file in (tmp_path / "mixed").iterdir())
    for name in names:
        assert (path / name).read_bytes() == (tmp_path / "mixed" / name).read_bytes(), name


def test_statistics_are_those_of_the_training_split(written):
    cohort = cohorts.open_cohort(written[0])
    numbers = [n for n in range(40) if n not in (5, 17) and n % 4 != 3]
    train = [n for n in numbers if MIXED.load(n).split == "train"]
    volumes = 100.0 + np.array(train)
    assert cohort.statistics["LVEDV"] == pytest.approx((volumes.mean(), volumes.std()), rel=1e-6)
    assert cohort.statistics["WT_1"] == (9.0, 1.0)  # constant
    assert "CAD" not in cohort.statistics


def test_report(written):
    path, report = written
    assert (report.read, report.used, len(report.refused)) == (40, 38, 2)
    text = str(report)
    assert "read 40, used 38, refused 2" in text
    assert "2 x lead V6 is absent" in text
    assert "1 x a flat lead" in text
    assert "ECG 36, CMR 37, both 35" in text
    positives = [n for n in range(0, 40, 5) if n != 5 and MIXED.load(n).split == "train"]
    line = next(line for line in text.splitlines() if line.split()[:1] == ["CAD"])
    assert f"{100 * len(positives) / report.splits['train']:.1f} %" in line
    with (path / "refused.csv").open() as stream:
        assert list(csv.reader(stream)) == [
            ["record", "file", "reason"],
            ["r005", "/recordings/r005.hea", "lead V6 is absent"],
            ["r017", "/recordings/r017.hea", "lead V6 is absent"],
        ]
    assert (path / "flagged.csv").read_text() == "record,remark\nr002,a flat lead\n"


def test_unusable_values_are_refused(tmp_path):
    bad = np.zeros((12, 5000), np.float32)
    bad[3, 7] = np.inf
    source = TinySource(
        count=8,
        without_cmr=(3,),
        changes=(
            (0, "ecg", bad),
            (1, "cmr_box", (200, 0, 30, 30)),
            (2, "labels", {"LVEF": float("nan")}),
            (3, "ecg", None),
            (4, "labels", {"CAD": 2.0}),
            (6, "record", "r005"),
        ),
    )
    report = cohorts.write(source, tmp_path / "c", workers=0, progress=False)
    reasons = {entry.record: entry.reason for entry in report.refused}
    assert "not finite" in reasons["r000"]
    assert "(200, 0, 30, 30)" in reasons["r001"]
    assert "label LVEF is nan" in reasons["r002"]
    assert "neither an ECG nor CMR" in reasons["r003"]
    assert "label CAD is 2" in reasons["r004"]
    assert "a record of this name was read before" in reasons["r005"]
    assert cohorts.open_cohort(tmp_path / "c").table("train")["record"].tolist() == ["r005"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((1, "split", "dev"), "split is 'dev', expected one of"),
        ((1, "ecg", np.zeros((12, 2500), np.float32)), r"ecg is float32\[12, 2500\], expected"),
        ((1, "cmr", np.zeros((210, 210, 3))), r"cmr is float64\[210, 210, 3\], expected uint8"),
        ((1, "labels", {"BMI": 1.0}), "labels BMI are not among source.labels"),
    ],
)
def test_a_source_that_breaks_the_contract_is_an_error(tmp_path, change, message):
    source = TinySource(count=3, changes=(change,))
    with pytest.raises(ValueError, match=f"record 'r001': {message}"):
        cohorts.write(source, tmp_path / "c", workers=0, progress=False)


def test_an_unforeseen_error_refuses_its_record_only(tmp_path):
    broken = TinySource(count=9, errors=((3, TypeError("an int was expected")),))
    report = cohorts.write(broken, tmp_path / "c", workers=0, progress=False)
    (refused,) = report.refused
    assert refused.record == "3"
    assert refused.reason.startswith(
        "its reading failed in a way that was not foreseen: TypeError: an int was expected (tiny_so"
    )


def test_a_failure_of_the_machine_ends_the_preparation_and_names_the_task(tmp_path):
    broken = TinySource(count=3, errors=((0, MemoryError("8 GB")),))
    with pytest.raises(RuntimeError, match="source 'tiny' failed at 0: MemoryError: 8 GB"):
        cohorts.write(broken, tmp_path / "c", workers=0, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_person_in_two_splits_is_an_error(tmp_path):
    source = TinySource(count=9, changes=((8, "subject", "s003"),))
    with pytest.raises(
        cohorts.CohortError,
        match=r"subject s003 is in two splits: train \(record r003\) and test \(record r008\)",
    ):
        cohorts.write(source, tmp_path / "c", workers=0, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_same_ecg_in_two_splits_is_an_error_and_within_one_a_remark(tmp_path):
    ecg = TinySource().load(3).ecg
    source = TinySource(count=9, changes=((8, "ecg", ecg),))
    with pytest.raises(cohorts.CohortError, match=r"records r003 \(train\) and r008 \(test\)"):
        cohorts.write(source, tmp_path / "c", workers=0, progress=False)
    source = TinySource(count=9, changes=((4, "ecg", ecg),))
    report = cohorts.write(source, tmp_path / "c", workers=0, progress=False)
    assert report.flagged == (("r004", "same ECG as another record: r003"),)


def test_no_usable_record_is_an_error(tmp_path):
    source = TinySource(count=3, refused=(0, 1, 2))
    with pytest.raises(cohorts.CohortError, match="no usable record: 3 read, 3 refused") as error:
        cohorts.write(source, tmp_path / "c", workers=0, progress=False)
    assert "/recordings/r000.hea: lead V6 is absent" in str(error.value)
    with pytest.raises(cohorts.CohortError, match="no usable record: 0 read"):
        cohorts.write(TinySource(count=0), tmp_path / "c", workers=0, progress=False)


def test_existing_output(tmp_path):
    source = TinySource(count=3)
    (tmp_path / "c").mkdir()  # empty: fine
    cohorts.write(source, tmp_path / "c", workers=0, progress=False)
    before = (tmp_path / "c" / "cohort.json").read_text()
    with pytest.raises(FileExistsError, match="exists; choose another output, or --overwrite"):
        cohorts.write(TinySource(count=4), tmp_path / "c", workers=0, progress=False)
    assert (tmp_path / "c" / "cohort.json").read_text() == before
    cohorts.write(TinySource(count=4), tmp_path / "c", workers=0, progress=False, overwrite=True)
    assert cohorts.open_cohort(tmp_path / "c").splits["train"] == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="something else"):
        cohorts.write(source, tmp_path / "thesis", workers=0, progress=False, overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_a_killed_preparation_of_another_source_is_replaced(tmp_path):
    script = f"""
import sys, time
sys.path[:0] = {[str(pathlib.Path(__file__).parents[1])]!r}
import tiny_source
from mmcl_jax.data import cohort
class Slow(tiny_source.TinySource):
    def load(self, task):
        if task == 2:
            print("half way", flush=True)
            time.sleep(60)
        return super().load(task)
cohort.write(Slow(count=4), {str(tmp_path / "c")!r}, workers=0, progress=False)
"""
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half way\n"
    with pytest.raises(FileExistsError, match="another process is writing"):
        cohorts.write(TinySource(count=3), tmp_path / "c", workers=0, progress=False)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("c.incomplete-")
    with pytest.raises(FileNotFoundError):
        cohorts.open_cohort(tmp_path / "c")
    cohorts.write(TinySource(count=3), tmp_path / "c", workers=0, progress=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def test_open_errors(written, tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m mmcl_jax.prepare SOURCE"):
        cohorts.open_cohort(tmp_path / "nowhere")
    with pytest.raises(cohorts.CohortError, match="is not a cohort"):
        cohorts.open_cohort(tmp_path)
    cohorts.write(TinySource(count=3), tmp_path / "c", workers=0, progress=False)
    shard = tmp_path / "c" / "cohort-train.array_record-00000-of-00001"
    size = shard.stat().st_size
    with shard.open("r+b") as stream:
        stream.truncate(size - 1000)
    with pytest.raises(cohorts.CohortError, match=f"{size - 1000:,} bytes, expected {size:,}"):
        cohorts.open_cohort(tmp_path / "c")
    shard.unlink()
    with pytest.raises(cohorts.CohortError, match="00000-of-00001: missing"):
        cohorts.open_cohort(tmp_path / "c")
    (tmp_path / "c" / "index.npz").write_bytes(b"PK")
    content = json.loads((tmp_path / "c" / "cohort.json").read_text())
    (tmp_path / "c" / "cohort.json").write_text(json.dumps(content | {"shards": {}}))
    with pytest.raises(cohorts.CohortError, match="index.npz: missing or damaged"):
        cohorts.open_cohort(tmp_path / "c")
    (tmp_path / "c" / "cohort.json").write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(cohorts.CohortError, match="format 99, this version reads format 1"):
        cohorts.open_cohort(tmp_path / "c")


def test_settings(written):
    cohort = cohorts.open_cohort(written[0])
    assert cohort.settings == {
        "ecg": {"clip": 4.0, "groups": [[0, 3], [3, 6]]},
        "cmr": {"size": 210},
    }
    swapped = {"cmr": {"size": 210}, "ecg": {"groups": [[0, 3], [3, 6]], "clip": 4.0}}
    assert cohort.settings_hash == cohorts.settings_hash(swapped)
    cohorts.check_settings(cohort, MIXED.settings)
    cohorts.check_settings(cohort, {"ecg": MIXED.settings["ecg"]})
    # Of a modality that the cohort does not have; and done elsewhere.
    cohorts.check_settings(cohort, {"other": {"rate": 1}})
    elsewhere = {"ecg": {**cohort.settings["ecg"], "preprocessed": "before the preparation"}}
    cohorts.check_settings(dataclasses.replace(cohort, settings=elsewhere), MIXED.settings)
    with pytest.raises(cohorts.CohortError, match=r"ecg.clip: found 4.0, expected 3.0\. Prepare"):
        cohorts.check_settings(cohort, {"ecg": MIXED.settings["ecg"] | {"clip": 3.0}})
    with pytest.raises(cohorts.CohortError, match="ecg.notch: found nothing, expected 50"):
        cohorts.check_settings(cohort, {"ecg": MIXED.settings["ecg"] | {"notch": 50}})
    with pytest.raises(cohorts.CohortError, match="ecg.clip: found 4.0, expected nothing"):
        cohorts.check_settings(cohort, {"ecg": {"groups": [[0, 3], [3, 6]]}})


def test_edited_cohorts_are_refused(tmp_path):
    cohorts.write(TinySource(), tmp_path / "c", workers=0, progress=False)
    marker = tmp_path / "c" / "cohort.json"
    content = json.loads(marker.read_text())
    content["settings"]["ecg"]["clip"] = 3.0
    marker.write_text(json.dumps(content))
    with pytest.raises(cohorts.CohortError, match="do not have the hash .* they were edited"):
        cohorts.open_cohort(tmp_path / "c")
    content["settings"]["ecg"]["clip"] = 4.0
    marker.write_text(json.dumps(content))

    with np.load(tmp_path / "c" / "index.npz") as columns:
        columns = dict(columns)
    columns["test/subject"][2] = columns["train/subject"][5]
    np.savez(tmp_path / "c" / "index.npz", **columns)
    with pytest.raises(
        cohorts.CohortError, match="1 subjects are in two splits, such as s005 in train and test"
    ):
        cohorts.open_cohort(tmp_path / "c")


def test_targets(written):
    cohort = cohorts.open_cohort(written[0])
    assert cohort.target("CAD") == (LABELS[0],)
    assert cohort.target("LV") == (LABELS[1], LABELS[2])
    assert cohort.target(("WT_1", "CAD")) == (LABELS[3], LABELS[0])
    with pytest.raises(ValueError, match=r"no label called LVEDW.*CAD, LVEDV, LVEF, WT_1"):
        cohort.target("LVEDW")
    with pytest.raises(ValueError, match="no split called 'dev', expected train, val, test"):
        cohort.table("dev")


def test_a_fingerprint_is_that_of_records_splits_and_the_labels_asked_for(written):
    cohort = cohorts.open_cohort(written[0])
    first, second, *_ = (label.name for label in cohort.labels)

    def changed(split, column, value):
        table = {**cohort.tables[split], column: cohort.tables[split][column].copy()}
        table[column][0] = value
        return dataclasses.replace(cohort, tables={**cohort.tables, split: table})

    assert cohorts.open_cohort(written[0]).fingerprint([first]) == cohort.fingerprint([first])
    assert (
        len({cohort.fingerprint(), cohort.fingerprint([first]), cohort.fingerprint([second])}) == 3
    )
    for other in (changed("val", "record", "x"), changed("train", "subject", "x")):
        assert other.fingerprint() != cohort.fingerprint()
    values = np.array(cohort.tables["train"]["labels"][0])
    values[0] += 1
    other = changed("train", "labels", values)
    assert other.fingerprint([first]) != cohort.fingerprint([first])
    assert other.fingerprint([second]) == cohort.fingerprint([second])
    moved = dict(zip(cohort.tables, reversed(cohort.tables.values()), strict=True))
    assert dataclasses.replace(cohort, tables=moved).fingerprint() != cohort.fingerprint()


def test_a_source_without_labels(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Unlabelled(TinySource):
        labels = ()

        def load(self, task):
            return dataclasses.replace(super().load(task), labels={})

    report = cohorts.write(Unlabelled(count=3), tmp_path / "c", workers=0, progress=False)
    assert "the source has no labels" in str(report)
    cohort = cohorts.open_cohort(tmp_path / "c")
    assert cohort.table("train")["labels"].shape == (3, 0)
    assert cohort.table("test")["labels"].shape == (0, 0)
    record = tfds.builder_from_directory(tmp_path / "c").as_data_source("train")[0]
    assert record["labels"].shape == (0,)


def test_negative_workers(tmp_path):
    with pytest.raises(ValueError, match="workers is -1"):
        cohorts.write(TinySource(count=1), tmp_path / "c", workers=-1, progress=False)


@pytest.mark.parametrize("file", ["../stray", "/etc/passwd", "deep/stray"])
def test_a_cohort_reads_no_files_of_others(tmp_path, file):
    cohorts.write(TinySource(count=3), tmp_path / "c", workers=0, progress=False)
    marker = tmp_path / "c" / "cohort.json"
    content = json.loads(marker.read_text())
    content["shards"]["train"][0]["file"] = file
    marker.write_text(json.dumps(content))
    with pytest.raises(cohorts.CohortError, match=f"{file}' is no file of this folder"):
        cohorts.open_cohort(tmp_path / "c")
