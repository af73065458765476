"""Balanced training sets and their subsets, at the sizes of the paper."""

import numpy as np
import pytest

from mmcl_jax.data.subsets import nested_subset, shuffled_classes

FRACTIONS = (1.0, 0.5, 0.1, 0.033, 0.01, 0.001)


def classes(*sizes, seed=0):
    starts = np.cumsum([0, *sizes])
    members = [np.arange(a, b) for a, b in zip(starts[:-1], starts[1:], strict=True)]
    return shuffled_classes(members, seed)


# Positives among 28,030 training records: 7.19 %, 2.98 % and 4.46 % (paper, sections IV-B, V-D).
@pytest.mark.parametrize(
    ("positives", "tenth", "hundredth"), [(2015, 403, 40), (835, 167, 17), (1250, 250, 25)]
)
def test_sizes_of_the_paper(positives, tenth, hundredth):
    balanced = classes(positives, positives)
    for fraction, size in ((1.0, 2 * positives), (0.1, tenth), (0.01, hundredth)):
        rows = nested_subset(balanced, fraction)
        assert len(rows) == len(set(rows.tolist())) == size
        assert abs((rows < positives).sum() - (rows >= positives).sum()) <= 1


@pytest.mark.parametrize("sizes", [(9, 9), (1000, 7), (5, 60, 300), (12,), (0, 40)])
def test_a_smaller_fraction_is_a_part_of_a_larger_one(sizes):
    found = [set(nested_subset(classes(*sizes), f).tolist()) for f in FRACTIONS]
    assert found[0] == set(range(sum(sizes)))
    for fraction, larger, smaller in zip(FRACTIONS[1:], found[:-1], found[1:], strict=True):
        assert smaller <= larger
        every = sum(size > 0 for size in sizes)
        assert len(smaller) == max(every, round(fraction * sum(sizes)))


def test_shares_of_the_classes_stay():
    rows = nested_subset(classes(100, 300, 600), 0.1)
    assert np.bincount(np.digitize(rows, [100, 400])).tolist() == [10, 30, 60]


def test_a_class_is_drawn_whatever_the_size_of_the_other():
    one, other = classes(20, 50), classes(20, 70)
    np.testing.assert_array_equal(one[0], other[0])
    assert not np.array_equal(one[0], classes(20, 50, seed=1)[0])
