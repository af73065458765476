"""Damaged records and file systems that go away, at every place where recordings are read."""

import dataclasses
import json
import pathlib
import threading

import numpy as np
import pytest
from tiny_experiment import read_config, shrink
from tiny_source import TinySource

from mmcl_jax import retry
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data import finite, pipeline, record_source
from mmcl_jax.data.record_source import CorruptRecord
from mmcl_jax.data.resident import Recordings
from mmcl_jax.experiment import Experiment
from mmcl_jax.run_dir import RunDir

FIELDS = ("ecg", "cmr")
OPTIONS = {"fields": FIELDS, "labels": "CAD", "batch_size": 8}
BAD = 5  # row of the training split


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "cohort"
    cohorts.write(TinySource(count=40), folder, workers=0, progress=False)
    return cohorts.open_cohort(folder)


def file_of(cohort) -> pathlib.Path:
    (shard,) = cohort.shards["train"]
    return cohort.path / shard["file"]


@pytest.fixture(scope="module")
def damaged(whole, tmp_path_factory):
    """The same cohort, with one bit of the ECG of record BAD flipped."""
    folder = tmp_path_factory.mktemp("damaged") / "cohort"
    cohorts.write(TinySource(count=40), folder, workers=0, progress=False)
    cohort = cohorts.open_cohort(folder)
    ecg = whole.source("train", ("ecg",))[BAD]["ecg"].tobytes()
    content = bytearray(file_of(cohort).read_bytes())
    content[content.find(ecg[1000:1100]) + 50] ^= 1
    file_of(cohort).write_bytes(content)
    return cohort


def rows(cohort):
    return pipeline.select(cohort, "train", fields=FIELDS)


def first_epoch(cohort, **options):
    selected = rows(cohort)
    steps = pipeline.steps_per_epoch(cohort, "train", selected, OPTIONS["batch_size"])
    batches = pipeline.train_batches(cohort, "train", selected, seed=1, **{**OPTIONS, **options})
    try:
        return [next(batches) for _ in range(steps)]
    finally:
        batches.close()


def test_a_damaged_record_is_named(damaged):
    name = damaged.table("train")["record"][BAD]
    source = damaged.source("train")
    message = rf"{file_of(damaged)}: record {BAD} \({name}\) is damaged: .*hash mismatch. Copy the"
    for _ in range(2):
        with pytest.raises(CorruptRecord, match=message):
            source[BAD]
    # The others are still read.
    assert source[BAD + 1]["ecg"].shape == (12, 5000)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_stops_at_a_damaged_record(damaged, workers):
    with pytest.raises(CorruptRecord, match=f"record {BAD} .* is damaged"):
        first_epoch(damaged, workers=workers)


def check_skipped(found, expected):
    """The batches are those of the whole cohort; row BAD counts nowhere."""
    seen = 0
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours["index"], theirs["index"])
        bad = theirs["index"] == BAD
        seen += bad.sum()
        np.testing.assert_array_equal(ours["valid"], np.where(bad, 0, 1))
        np.testing.assert_array_equal(ours["label_valid"][:, 0], np.where(bad, 0, 1))
        for name in set(ours) & set(FIELDS):
            np.testing.assert_array_equal(ours[name][~bad], theirs[name][~bad])
            assert np.isfinite(ours[name]).all()
            # Another record stands in for it: batch statistics see no row of zeros.
            assert ours[name][bad].any() == bad.any()
    assert seen == 1


@pytest.mark.parametrize("cached", [False, True])
def test_a_damaged_record_can_be_left_out(whole, damaged, capsys, cached):
    lenient = dataclasses.replace(damaged, on_corrupt="skip")
    options = {}
    if cached:
        options["cache"] = pipeline.record_cache(lenient, "train", rows(lenient), FIELDS)
    check_skipped(first_epoch(lenient, **options), first_epoch(whole))
    found = capsys.readouterr().err
    assert found.count("left out: ") == 1
    assert str(damaged.table("train")["record"][BAD]) in found


def test_a_damaged_record_can_be_left_out_of_the_device(whole, damaged):
    lenient = dataclasses.replace(damaged, on_corrupt="skip")
    found = Recordings(resident="always").of(lenient, {"train": rows(lenient)}, FIELDS)
    assert found.unreadable == {"train": [BAD]}
    batches = first_epoch(lenient, fields=found.fields, without=found.unreadable["train"])
    check_skipped(batches, first_epoch(whole))
    kept = np.asarray(found.resident["train"]["ecg"])
    assert np.abs(kept).max(axis=(1, 2)).min() > 0


def test_another_word_than_stop_or_skip_is_an_error(whole):
    with pytest.raises(ValueError, match="data.on_corrupt is 'ignore', expected stop or skip"):
        dataclasses.replace(whole, on_corrupt="ignore").source("train")


def test_a_cohort_that_comes_back_is_waited_for(whole, monkeypatch, capsys):
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.02)
    expected = whole.source("train")[3]["ecg"]
    source = whole.source("train")
    away = whole.path.with_name("away")
    whole.path.rename(away)
    timer = threading.Timer(0.1, away.rename, [whole.path])
    timer.start()
    np.testing.assert_array_equal(source[3]["ecg"], expected)
    timer.join()
    assert "reading record 3: [Errno 2] No such file" in capsys.readouterr().err


def test_a_cohort_that_stays_away_is_an_error(whole, monkeypatch):
    monkeypatch.setattr(retry, "PATIENCE", 0.0)
    away = whole.path.with_name("away")
    source = whole.source("train")
    whole.path.rename(away)
    try:
        with pytest.raises(FileNotFoundError, match=file_of(whole).name):
            source[0]
    finally:
        away.rename(whole.path)


def test_records_that_are_no_numbers_are_described(damaged, monkeypatch):
    decode = record_source.decode

    def infinite(record, fields):
        ecg = decode(record, fields)["ecg"].copy()
        ecg[3, 7] = np.inf
        return {**decode(record, fields), "ecg": ecg}

    # Preparation refuses such a record.
    monkeypatch.setattr(record_source, "decode", infinite)
    found = finite.describe(damaged, "train", np.array([BAD, 2]), fields=FIELDS, labels=("CAD",))
    table = damaged.table("train")
    assert [entry["record"] for entry in found] == [table["record"][BAD], table["record"][2]]
    assert [entry["subject"] for entry in found] == [table["subject"][BAD], table["subject"][2]]
    assert [entry["not_finite"] for entry in found] == [["damaged"], ["ecg"]]


@pytest.mark.usefixtures("compiled_quickly")
def test_a_run_counts_what_it_leaves_out(damaged, tmp_path, capsys):
    config = shrink(read_config("mmcl"))
    config["data"] |= {"path": str(damaged.path), "preprocessing": damaged.settings}
    with pytest.raises(CorruptRecord, match=f"record {BAD} .* is damaged"):
        Experiment(config, RunDir(tmp_path)).run_all(["mdm"])
    config["data"]["on_corrupt"] = "skip"
    assert Experiment(config, RunDir(tmp_path)).run_all(["mdm"])
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    epochs = config["stages"]["mdm"]["epochs"]
    assert sum(line.get("train/records_left_out", 0) for line in lines) == epochs
    assert capsys.readouterr().err.count(f"record {BAD} ") == 1
