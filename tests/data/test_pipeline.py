"""Selection, order and content of the batches."""

import itertools

import numpy as np
import pytest
from tiny_source import TinySource

from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.order import EpochOrder, full_batches
from mmcl_jax.data.pipeline import (
    eval_batches,
    record_cache,
    select,
    steps_per_epoch,
    train_batches,
)

# 29 training records; r000 and r001 (and so on up to r009) are one person's.
SOURCE = TinySource(count=40, paired=10, without_ecg=(11,), without_cmr=(4, 20))
OPTIONS = {"fields": ("ecg", "cmr"), "labels": ("CAD", "LVEDV"), "batch_size": 8, "seed": 3}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline") / "cohort"
    cohorts.write(SOURCE, path, workers=0, progress=False)
    return cohorts.open_cohort(path)


def take(batches, count):
    found = list(itertools.islice(batches, count))
    batches.close()
    return found


def assert_equal(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], strict=True)


def test_select_by_field_and_label(cohort):
    table = cohort.table("train")
    record = table["record"]
    assert set(record) - set(record[select(cohort, "train")]) == {"r011"}
    both = select(cohort, "train", fields=("ecg", "cmr"))
    assert set(record) - set(record[both]) == {"r004", "r011", "r020"}
    # LVEDV is missing where the number is 3 modulo 4, LVEF never: any label of the group will do.
    with_volume = select(cohort, "train", fields=("cmr",), target="LVEDV")
    assert all(int(name[1:]) % 4 != 3 for name in record[with_volume])
    assert len(select(cohort, "train", target="LV")) == len(select(cohort, "train"))
    np.testing.assert_array_equal(with_volume, np.sort(with_volume))


def test_select_balanced(cohort):
    disease = cohort.table("train")["labels"][:, 0]
    rows = select(cohort, "train", target="CAD", balanced=True)
    everyone = select(cohort, "train", target="CAD")
    positives = everyone[disease[everyone] == 1]
    assert set(positives) <= set(rows)
    assert len(rows) == 2 * len(positives) == len(set(rows))
    np.testing.assert_array_equal(rows, select(cohort, "train", target="CAD", balanced=True))
    other = select(cohort, "train", target="CAD", balanced=True, seed=1)
    assert set(positives) <= set(other) != set(rows)


def test_fractions_are_nested_in_each_class(cohort):
    disease = cohort.table("train")["labels"][:, 0]
    previous = set()
    for fraction in (0.01, 0.1, 0.5, 1.0):
        rows = select(cohort, "train", target="CAD", balanced=True, fraction=fraction)
        assert previous <= set(rows)
        assert disease[rows].mean() == 0.5
        previous = set(rows)
    whole = select(cohort, "train", target="LVEDV")
    half = select(cohort, "train", target="LVEDV", fraction=0.5)
    assert len(half) == round(len(whole) / 2)
    assert set(half) < set(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "LVEDV", "balanced": True}, "needs one binary label as target, found.*LVEDV"),
        ({"balanced": True}, "needs one binary label as target, found target=None"),
        ({"target": "HCM"}, "no label called HCM. Labels: CAD, LVEDV, LVEF, WT_1"),
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"fields": ("ecg", "echo")}, "fields: found echo, expected some of ecg, cmr"),
        ({"fields": "ecg"}, "fields: found 'ecg'"),
    ],
)
def test_select_errors(cohort, options, message):
    with pytest.raises(ValueError, match=message):
        select(cohort, "train", **options)


def test_select_nothing(tmp_path):
    source = TinySource(count=3, without_cmr=(0, 1, 2))
    cohorts.write(source, tmp_path / "c", workers=0, progress=False)
    cohort = cohorts.open_cohort(tmp_path / "c")
    with pytest.raises(ValueError, match="none of the 3 records of split 'train' has cmr"):
        select(cohort, "train", fields=("cmr",))
    with pytest.raises(ValueError, match="none of the 0 records of split 'test' has ecg"):
        select(cohort, "test")
    cohorts.write(TinySource(count=1), tmp_path / "d", workers=0, progress=False)
    with pytest.raises(ValueError, match="one class of CAD only"):
        select(cohorts.open_cohort(tmp_path / "d"), "train", target="CAD", balanced=True)


def test_content_of_a_batch(cohort):
    rows = select(cohort, "train", fields=("ecg", "cmr"))
    (batch,) = take(train_batches(cohort, "train", rows, **OPTIONS), 1)
    shapes = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
    assert shapes == {
        "ecg": ((8, 12, 5000), "float32"),
        "cmr": ((8, 210, 210, 3), "uint8"),
        "cmr_box": ((8, 4), "int32"),
        "labels": ((8, 2), "float32"),
        "label_valid": ((8, 2), "float32"),
        "valid": ((8,), "float32"),
        "index": ((8,), "int32"),
    }
    mean, deviation = cohort.statistics["LVEDV"]
    known = []
    for position, row in enumerate(batch["index"]):
        subject = SOURCE.load(int(cohort.table("train")["record"][row][1:]))
        np.testing.assert_array_equal(batch["ecg"][position], subject.ecg)
        np.testing.assert_array_equal(batch["cmr"][position], subject.cmr)
        assert tuple(batch["cmr_box"][position]) == subject.cmr_box
        assert batch["labels"][position, 0] == subject.labels["CAD"]
        known.append("LVEDV" in subject.labels)
        volume = (subject.labels["LVEDV"] - mean) / deviation if known[-1] else 0.0
        assert batch["labels"][position, 1] == pytest.approx(volume, abs=1e-6)
    np.testing.assert_array_equal(batch["label_valid"][:, 1], known)
    assert 0 < sum(known) < 8
    assert batch["valid"].all()


def test_only_what_was_asked_for(cohort):
    rows = select(cohort, "train")
    (batch,) = take(train_batches(cohort, "train", rows, fields=("ecg",), batch_size=4, seed=0), 1)
    assert batch.keys() == {"ecg", "valid", "index"}


def test_batches_without_recordings_keep_order_and_labels(cohort):
    rows = select(cohort, "train", fields=("ecg", "cmr"))
    whole = take(train_batches(cohort, "train", rows, **OPTIONS), 7)
    bare = take(train_batches(cohort, "train", rows, **(OPTIONS | {"fields": ()})), 7)
    left = {"labels", "label_valid", "valid", "index"}
    assert_equal(bare, [{name: batch[name] for name in left} for batch in whole])
    options = {"labels": "LV", "batch_size": 6}
    whole = list(eval_batches(cohort, "test", np.arange(7), fields=("ecg",), **options))
    bare = list(eval_batches(cohort, "test", np.arange(7), fields=(), **options))
    assert_equal(bare, [{name: batch[name] for name in left} for batch in whole])


def test_cached_batches_are_those_of_the_files(cohort):
    rows = select(cohort, "train", fields=("ecg", "cmr"))
    cache = record_cache(cohort, "train", rows, ("ecg", "cmr"))
    count = 2 * steps_per_epoch(cohort, "train", rows, 8)
    here = take(train_batches(cohort, "train", rows, **OPTIONS), count)
    assert_equal(take(train_batches(cohort, "train", rows, cache=cache, **OPTIONS), count), here)
    options = {"fields": ("ecg", "cmr"), "batch_size": 10}
    here = list(eval_batches(cohort, "train", rows, **options))
    assert_equal(list(eval_batches(cohort, "train", rows, cache=cache, **options)), here)
    with pytest.raises(ValueError, match="processes cannot share a cache"):
        train_batches(cohort, "train", rows, cache=cache, workers=1, **OPTIONS)
    with pytest.raises(ValueError, match="the cache holds .'ecg', 'cmr', .* need .'ecg',"):
        train_batches(cohort, "train", rows, cache=cache, **(OPTIONS | {"fields": ("ecg",)}))


def test_statistics_of_another_cohort(cohort):
    rows = select(cohort, "test", target="LVEF")
    (batch,) = eval_batches(
        cohort,
        "test",
        rows,
        fields=("ecg",),
        labels=("LVEF",),
        batch_size=len(rows),
        statistics={"LVEF": (50.0, 2.0)},
    )
    expected = (cohort.table("test")["labels"][rows, 2] - 50) / 2
    np.testing.assert_allclose(batch["labels"][:, 0], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="statistics of label LVEDV are missing"):
        eval_batches(
            cohort, "test", rows, fields=("ecg",), labels="LV", batch_size=2, statistics={}
        )


def test_a_later_start_continues_the_same_batches(cohort):
    rows = select(cohort, "train", fields=("ecg", "cmr"))
    steps = steps_per_epoch(cohort, "train", rows, 8)
    assert steps == 3
    whole = take(train_batches(cohort, "train", rows, **OPTIONS), 3 * steps + 1)
    for start in (1, steps, 2 * steps + 1):
        rest = take(
            train_batches(cohort, "train", rows, start_step=start, **OPTIONS), len(whole) - start
        )
        assert_equal(rest, whole[start:])
    orders = [[tuple(b["index"]) for b in whole[e * steps : (e + 1) * steps]] for e in range(3)]
    assert orders[0] != orders[1] != orders[2]
    other = take(train_batches(cohort, "train", rows, **(OPTIONS | {"seed": 4})), steps)
    assert [tuple(batch["index"]) for batch in other] != orders[0]


def test_worker_processes_give_the_same_batches(cohort):
    rows = select(cohort, "train", fields=("ecg", "cmr"))
    here = take(train_batches(cohort, "train", rows, start_step=2, **OPTIONS), 4)
    there = take(train_batches(cohort, "train", rows, start_step=2, workers=2, **OPTIONS), 4)
    assert_equal(here, there)


def test_processes_share_every_batch(cohort):
    rows = select(cohort, "train", fields=("ecg", "cmr"))
    whole = take(train_batches(cohort, "train", rows, **OPTIONS), 4)
    parts = [
        take(train_batches(cohort, "train", rows, process_index=i, process_count=2, **OPTIONS), 4)
        for i in range(2)
    ]
    joined = [
        {name: np.concatenate([first[name], second[name]]) for name in first}
        for first, second in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)


def test_nobody_is_twice_in_a_batch(cohort):
    rows = select(cohort, "train")
    people = cohort.table("train")["subject"]
    assert len(set(people[rows])) < len(rows)
    options = {"fields": ("ecg",), "batch_size": 6, "seed": 0}
    steps = steps_per_epoch(cohort, "train", rows, 6)
    seen = set()
    for batch in take(train_batches(cohort, "train", rows, **options), 5 * steps):
        assert len(set(people[batch["index"]])) == 6
        seen |= set(batch["index"])
    assert seen == set(rows)  # what one epoch leaves out is in another


@pytest.mark.parametrize("batch_size", [1, 3, 8, 16])
def test_epochs_of_many_records_per_person(batch_size):
    rng = np.random.default_rng(batch_size)
    subjects = np.array([f"p{person}" for person in rng.zipf(1.5, 500).clip(max=60)])
    rows = rng.permutation(500)[:400]
    _, counts = np.unique(subjects[rows], return_counts=True)
    steps = full_batches(counts, batch_size)
    order = EpochOrder(rows, subjects, batch_size, 0, slice(0, batch_size))
    for epoch in range(3):
        batches = np.stack([order[epoch * steps + step] for step in range(steps)])
        assert batches.shape == (steps, batch_size)
        assert len(np.unique(batches)) == batches.size
        assert set(batches.ravel()) <= set(rows)
        for batch in batches:
            assert len(set(subjects[batch])) == batch_size
    # One batch more could not be filled with different people.
    assert np.minimum(counts, steps + 1).sum() < (steps + 1) * batch_size


def test_one_record_per_person_gives_a_uniform_order():
    subjects = np.array([f"p{number}" for number in range(12)])
    order = EpochOrder(np.arange(12), subjects, 4, 0, slice(0, 4))
    epochs = np.stack([np.stack([order[3 * e + s] for s in range(3)]) for e in range(4000)])
    assert all(sorted(epoch.ravel()) == list(range(12)) for epoch in epochs[:50])
    # Two given records share a batch with probability 3 / 11 (standard deviation 0.007).
    batch_of = np.argsort(epochs.reshape(4000, 12), axis=1) // 4
    together = (batch_of[:, 0] == batch_of[:, 1]).mean()
    neighbours = (batch_of[:, 5] == batch_of[:, 6]).mean()
    assert together == pytest.approx(3 / 11, abs=0.03)
    assert neighbours == pytest.approx(3 / 11, abs=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "batch_size is 64, larger than the 2. people .2. records. of the sel"),
        ({"batch_size": 6, "process_count": 4}, "batch_size is 6, expected a multiple of the 4"),
        ({"process_index": 2, "process_count": 2}, "process_index is 2 of 2"),
        ({"labels": ("CAD", "HCM")}, "no label called HCM"),
        ({"fields": ("ecg", "mri")}, "fields: found mri"),
    ],
)
def test_train_errors(cohort, changes, message):
    rows = select(cohort, "train", fields=("ecg", "cmr"))
    with pytest.raises(ValueError, match=message):
        train_batches(cohort, "train", rows, **(OPTIONS | changes))


def test_rows_that_do_not_fit(cohort):
    with pytest.raises(ValueError, match="the selection of split 'train' is empty"):
        train_batches(cohort, "train", np.array([], int), **OPTIONS)
    with pytest.raises(ValueError, match="rows 0 to 99, split 'train' has"):
        train_batches(cohort, "train", np.array([0, 99]), **OPTIONS)
    with pytest.raises(ValueError, match="2 of 28 selected.*have no cmr, the first is r004"):
        train_batches(cohort, "train", select(cohort, "train"), **OPTIONS)


@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_covers_every_row_once(cohort, process_count):
    rows = select(cohort, "test")[:0:-1]
    parts = [
        list(
            eval_batches(
                cohort,
                "test",
                rows,
                fields=("ecg",),
                labels="disease",
                batch_size=6,
                process_index=index,
                process_count=process_count,
            )
        )
        for index in range(process_count)
    ]
    count = -(-len(rows) // 6)
    assert len(rows) % 6 == 1  # so that the second of two processes ends on padding only
    assert [len(part) for part in parts] == [count] * process_count
    merged = {
        name: np.concatenate([part[step][name] for step in range(count) for part in parts])
        for name in parts[0][0]
    }
    valid = merged["valid"] == 1
    np.testing.assert_array_equal(merged["index"][valid], rows)
    assert (merged["index"][~valid] == -1).all()
    for name in ("ecg", "labels", "label_valid"):
        assert not merged[name][~valid].any()
    np.testing.assert_array_equal(
        merged["labels"][valid, 0], cohort.table("test")["labels"][rows, 0]
    )
    np.testing.assert_array_equal(merged["label_valid"][valid], 1)
