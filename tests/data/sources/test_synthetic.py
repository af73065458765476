"""The synthetic source: the same subjects whatever the order, splits, labels, shares, refusals."""

import collections
import pickle

import numpy as np
import pytest
from scipy import stats

from mmcl_jax.data.sources.synthetic import Synthetic
from mmcl_jax.data.targets.labels import DEMOGRAPHICS, DISEASES, PHENOTYPES

PHENOTYPE_NAMES = {label.name for label in PHENOTYPES}


@pytest.fixture(scope="module")
def subject():
    return Synthetic(subjects=50, phenotyped=1.0).load(3)


def assert_equal(a, b):
    assert (a.record, a.subject, a.split, a.labels, a.cmr_box) == (
        *(b.record, b.subject, b.split, b.labels, b.cmr_box),
    )
    np.testing.assert_array_equal(a.ecg, b.ecg)
    np.testing.assert_array_equal(a.cmr, b.cmr)


def test_subject_has_every_part(subject):
    assert subject.record == subject.subject == "synthetic-000003"
    assert subject.ecg.shape == (12, 5000)
    assert subject.ecg.dtype == np.float32
    assert subject.cmr.shape == (210, 210, 3)
    assert subject.cmr.dtype == np.uint8
    names = {label.name for label in DISEASES + PHENOTYPES + DEMOGRAPHICS}
    assert set(subject.labels) == names
    assert {type(value) for value in subject.labels.values()} == {float}


def test_each_lead_group_is_normalised(subject):
    for group in (slice(0, 3), slice(3, 6), slice(6, 12)):
        assert abs(subject.ecg[group].mean()) < 1e-4
        assert subject.ecg[group].std() == pytest.approx(1, abs=1e-3)


def test_frames_come_as_es_mid_ed(subject):
    """The bright cavity in the middle of the box grows from channel to channel."""
    top, left, height, width = subject.cmr_box
    box = subject.cmr[top : top + height, left : left + width].astype(float)
    middle = box[height // 4 : -height // 4, width // 4 : -width // 4]
    bright = [(middle[..., channel] > 150).sum() for channel in range(3)]
    assert bright[0] < bright[1] < bright[2]


def test_subject_depends_on_seed_and_index_alone(subject):
    source = pickle.loads(pickle.dumps(Synthetic(subjects=50, phenotyped=1.0)))
    source.load(7)
    assert_equal(source.load(3), subject)
    assert_equal(Synthetic(subjects=4, phenotyped=1.0).load(3), subject)
    other = Synthetic(subjects=50, seed=1, phenotyped=1.0).load(3)
    assert np.abs(other.ecg - subject.ecg).max() > 0.5
    assert other.labels["LVEDV"] != subject.labels["LVEDV"]


def test_splits_are_70_15_15_and_depend_on_the_seed():
    source = Synthetic(subjects=400)
    splits = [source.split(index) for index in source.tasks]
    assert collections.Counter(splits) == {"train": 280, "val": 60, "test": 60}
    longer = Synthetic(subjects=100_000)
    assert [longer.split(index) for index in range(400)] == splits
    other = Synthetic(subjects=400, seed=1)
    assert [other.split(index) for index in range(400)] != splits


def test_other_splits():
    source = Synthetic(subjects=400, splits=(35, 10, 55))
    counts = collections.Counter(source.split(index) for index in source.tasks)
    assert counts == {"train": 140, "val": 40, "test": 220}
    assert source == Synthetic(subjects=400, splits=[35, 10, 55])


def test_shares_of_phenotypes_and_frames():
    source = Synthetic(subjects=40, phenotyped=0.5, imaged=0.6)
    subjects = [source.load(index) for index in source.tasks]
    imaged = [s for s in subjects if s.cmr is not None]
    phenotyped = [s for s in subjects if set(s.labels) >= PHENOTYPE_NAMES]
    assert 12 < len(imaged) < 36
    assert 3 < len(phenotyped) < 24
    assert all(s.cmr is not None for s in phenotyped)
    for s in subjects:
        assert len(PHENOTYPE_NAMES & set(s.labels)) in (0, 61)
        assert (s.cmr is None) == (s.cmr_box is None)


def test_labels_agree_with_the_simulation(subject):
    simulation = Synthetic(subjects=50).simulate(3)
    labels, rate = subject.labels, simulation.electrophysiology.heart_rate
    assert labels["LVCO"] == pytest.approx(labels["LVSV"] * rate / 1000, rel=1e-12)
    assert labels["CAD"] == simulation.diseases["CAD"]
    assert simulation.ecg.shape == (12, 5000)
    assert simulation.slice.frames.shape == (3, 210, 210)


def test_the_ecg_tells_something_about_the_heart():
    """Rank correlation of one crude feature with the truth; a model should find far more."""
    source = Synthetic(subjects=90, prevalence="demo")
    rates, irregular, fibrillation, weak, lateral_t = [], [], [], [], []
    for index in source.tasks:
        simulation = source.simulate(index)
        beat = simulation.electrophysiology
        energy = np.abs(np.diff(simulation.ecg, axis=1)).sum(0)
        energy = np.convolve(energy, np.ones(30) / 30, "same")
        above = energy > 0.5 * np.quantile(energy, 0.99)
        starts = np.nonzero(above[1:] & ~above[:-1])[0]
        starts = starts[np.diff(starts, prepend=-500) > 120]
        intervals = np.diff(starts) / 500
        rates.append((60 / intervals.mean(), beat.heart_rate))
        irregular.append(intervals.std() / intervals.mean())
        fibrillation.append(beat.fibrillation)
        weak.append(simulation.phenotypes["LVEF"])
        lead = simulation.ecg[10]
        after = [lead[s + 60 : s + 200].mean() - lead[s - 20] for s in starts[1:-1]]
        lateral_t.append(np.mean(after) / np.ptp(lead))
    # The median: so simple a detector takes a tall T wave for a beat now and then.
    assert np.median(np.abs(np.diff(rates, axis=1))) < 2  # beats/min
    fibrillation = np.array(fibrillation)
    assert 3 <= fibrillation.sum() <= 25
    assert np.median(np.array(irregular)[fibrillation]) > 2 * np.median(
        np.array(irregular)[~fibrillation]
    )
    assert stats.spearmanr(weak, lateral_t).statistic > 0.25


def test_settings_are_those_of_the_preprocessing():
    settings = Synthetic().settings
    assert set(settings) == {"ecg", "cmr"}
    assert settings == Synthetic(seed=4, prevalence="demo").settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prevalence": "clinic"}, "prevalence is 'clinic', expected one of paper, demo"),
        ({"subjects": 0}, "subjects is 0, expected an integer of at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"phenotyped": 1.5}, "phenotyped is 1.5, expected a share"),
        ({"imaged": -0.1}, "imaged is -0.1"),
        ({"splits": (70, 20, 20)}, "splits is .70, 20, 20., expected three percentages"),
        ({"splits": (72, 13, 15)}, "each a multiple of 5, 100 together"),
        ({"splits": (50, 50)}, "expected three percentages for train, val and test"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Synthetic(**fields)


def test_a_subject_outside_the_cohort_is_refused():
    with pytest.raises(IndexError, match="subject 5 of a cohort of 5"):
        Synthetic(subjects=5).load(5)
