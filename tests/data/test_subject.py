import collections
import pickle

from mmcl_jax.data.subject import RefusedRecord, assign_split


def test_refusal_survives_the_way_back_from_a_worker():
    error = pickle.loads(pickle.dumps(RefusedRecord("folder/a.hea", "truncated")))
    assert isinstance(error, RefusedRecord)
    assert (error.path, error.reason) == ("folder/a.hea", "truncated")
    assert str(error) == "folder/a.hea: truncated"


def test_splits_have_their_shares():
    counts = collections.Counter(assign_split(str(number)) for number in range(4000))
    assert abs(counts["train"] / 4000 - 0.70) < 0.03
    assert abs(counts["val"] / 4000 - 0.15) < 0.02
    assert abs(counts["test"] / 4000 - 0.15) < 0.02


def test_split_depends_on_subject_and_seed_only():
    subjects = [str(number) for number in range(100)]
    first = [assign_split(subject, seed=1) for subject in subjects]
    assert first == [assign_split(subject, seed=1) for subject in reversed(subjects)][::-1]
    assert first != [assign_split(subject, seed=2) for subject in subjects]
