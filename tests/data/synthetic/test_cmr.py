"""The drawn short-axis slice: its size and brightness follow the anatomy."""

import dataclasses

import numpy as np
import pytest

from mmcl_jax.data.synthetic import anatomy as anatomies
from mmcl_jax.data.synthetic import cmr as imaging

ES, MID, ED = range(3)
N = 60


def person(seed):
    rng = np.random.default_rng((11, seed))
    return anatomies.draw(rng, 1, anatomies.POPULATIONS["paper"])


@pytest.fixture(scope="module")
def slices():
    pairs = []
    for seed in range(N):
        anatomy = person(seed)
        pairs.append((anatomy, imaging.draw(np.random.default_rng(seed), anatomy)))
    return pairs


def test_frames_are_magnitudes(slices):
    for _, drawn in slices:
        assert drawn.frames.shape == (3, 210, 210)
        assert drawn.frames.dtype == np.float32
        assert drawn.frames.min() >= 0
        assert np.isfinite(drawn.frames).all()


def test_cavity_area_follows_the_volume(slices):
    area = np.array([drawn.cavity.sum((1, 2)) for _, drawn in slices])
    shapes = [anatomies.ventricles(anatomy) for anatomy, _ in slices]
    diastolic = [anatomy.volume[0] for anatomy, _ in slices]
    systolic = [shape.es_volume[0] for shape in shapes]
    assert np.corrcoef(area[:, ED], diastolic)[0, 1] > 0.9
    assert np.corrcoef(area[:, ES], systolic)[0, 1] > 0.9
    assert (area[:, ES] < area[:, MID]).all()
    assert (area[:, MID] < area[:, ED]).all()
    # In mm^2 it is the disc of the middle third.
    expected = np.pi * np.array([shape.radius[0, 1] for shape in shapes]) ** 2
    np.testing.assert_allclose(area[:, ED] * imaging.PIXEL**2, expected, rtol=0.03)


def test_bright_blood_in_the_pictures_follows_the_volume(slices):
    """The same from the pixels: bright blood pool inside the epicardium."""
    bright = [
        (drawn.frames[ED][drawn.heart[ED]] > 0.6 * np.quantile(drawn.frames[ED], 0.99)).sum()
        for _, drawn in slices
    ]
    assert np.corrcoef(bright, [anatomy.volume[0] for anatomy, _ in slices])[0, 1] > 0.85


def test_wall_is_dark_and_thickens(slices):
    for _, drawn in slices:
        wall = drawn.heart & ~drawn.cavity
        blood = np.median(drawn.frames[ED][drawn.cavity[ED]])
        assert np.median(drawn.frames[ED][wall[ED]]) < 0.55 * blood
    _, drawn = slices[0]
    es, ed = (drawn.heart[f].sum() / drawn.cavity[f].sum() - 1 for f in (ES, ED))
    assert es > 1.5 * ed


def test_wall_area_follows_the_mass(slices):
    wall = [(drawn.heart[ED] & ~drawn.cavity[ED]).sum() for _, drawn in slices]
    mass = [anatomies.phenotypes(anatomy, anatomy.sinus_rate)["LVM"][0] for anatomy, _ in slices]
    assert np.corrcoef(wall, mass)[0, 1] > 0.9


def test_heart_is_near_the_constant_box(slices):
    top, left, height, width = 44, 68, 78, 78
    for _, drawn in slices:
        rows, columns = np.nonzero(drawn.heart[ED])
        assert top <= rows.mean() < top + height
        assert left <= columns.mean() < left + width
        inside = (rows >= top) & (rows < top + height) & (columns < left + width)
        assert inside.mean() > 0.95


def test_an_infarcted_segment_stays_thin_and_still():
    anatomy = person(0)
    scar = np.zeros((1, 16))
    scar[0, 9] = 1.0  # mid inferior, at the bottom of the picture
    thickness = np.full((1, 16), 7.0)
    thickness[0, 9] = 3.5
    ill = dataclasses.replace(anatomy, scar=scar, thickness=thickness, contraction=1 - 0.9 * scar)
    well = dataclasses.replace(
        anatomy, scar=0 * scar, thickness=np.full((1, 16), 7.0), contraction=np.ones((1, 16))
    )

    def below_and_above(subject):
        drawn = imaging.draw(np.random.default_rng(0), subject)
        rows = np.arange(210)[:, None]
        counts = []
        centre = np.nonzero(drawn.cavity[ED])[0].mean()
        for half in (rows > centre + 2, rows < centre - 2):
            wall = drawn.heart[ED] & ~drawn.cavity[ED] & half
            counts.append((wall.sum(), (drawn.cavity[ES] & half).sum()))
        return counts

    (thin, still), (normal, moving) = below_and_above(ill)
    assert thin < 0.85 * normal
    assert still > 1.2 * moving
    (lower, _), (upper, _) = below_and_above(well)
    assert lower == pytest.approx(upper, rel=0.1)


def test_right_ventricle_lies_to_the_left_and_grows():
    anatomy = person(1)
    pictures = []
    for volume in (110.0, 220.0):
        subject = dataclasses.replace(anatomy, rv_volume=np.array([volume]))
        drawn = imaging.draw(np.random.default_rng(0), subject)
        rows, columns = np.nonzero(drawn.heart[ED])
        blood = drawn.frames[ED] > 0.7 * np.median(drawn.frames[ED][drawn.cavity[ED]])
        beside = slice(columns.min() - 40, columns.min())
        middle = round(rows.mean())
        pictures.append(blood[middle - 3 : middle + 4, beside].sum())
    assert pictures[1] > 1.3 * pictures[0]
