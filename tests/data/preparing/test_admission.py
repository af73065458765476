import numpy as np
import pytest

from mmcl_jax.data.preparing.admission import Admission, CohortError
from mmcl_jax.data.preparing.loading import Loaded


def entry(record, split, *, assigned, digest=b"ecg"):
    return Loaded(
        record=record,
        subject=f"of {record}",
        split=split,
        file=f"{record}.hea",
        has_ecg=True,
        has_cmr=False,
        labels=np.zeros(0),
        flags=(),
        ecg_digest=digest,
        payload=b"",
        split_assigned=assigned,
    )


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
def test_an_ecg_that_a_hash_puts_into_two_splits_counts_once(first, second):
    admission = Admission()
    assert admission.judge(entry("a", "train", assigned=first))
    assert admission.judge(entry("b", "test", assigned=second)) is None
    (refused,) = admission.refused
    assert (refused.record, refused.file) == ("b", "b.hea")
    assert refused.reason == (
        "holds the same ECG, bit for bit, as record a, whose split is train and not test"
    )
    assert admission.judge(entry("c", "train", assigned=True))
    assert admission.flagged == [("c", "same ECG as another record: a")]


def test_an_ecg_that_the_data_set_puts_into_two_splits_is_an_error():
    admission = Admission()
    admission.judge(entry("a", "train", assigned=False))
    with pytest.raises(CohortError, match=r"records a \(train\) and b \(test\) hold the same ECG"):
        admission.judge(entry("b", "test", assigned=False))
