import numpy as np
import phantom
import pytest

from mmcl_jax.data.images import cmr, left_ventricle


@pytest.mark.parametrize("centre", [(60.0, 75.0), (50.0, 90.0), (74.0, 66.0)])
def test_finds_the_beating_disc(centre):
    found = left_ventricle.find(phantom.cine(centre), spacing=1.8)
    assert abs(found.row - centre[0]) < 1.5
    assert abs(found.column - centre[1]) < 1.5
    assert 9 < found.radius < 18


def test_position_does_not_depend_on_the_intensity_scale():
    cine = phantom.cine()
    assert left_ventricle.find(cine, 1.8) == left_ventricle.find(4.0 * cine, 1.8)


def test_phases_of_the_disc():
    cine = phantom.cine()
    ventricle = left_ventricle.find(cine, 1.8)
    area = left_ventricle.pool_area(np.stack([cine, cine]), ventricle)
    assert cmr.phases(area) == (phantom.ES, 2, phantom.ED)
    # Two equal slices have twice the area of one.
    np.testing.assert_allclose(area, 2 * left_ventricle.pool_area(cine[None], ventricle))


@pytest.mark.parametrize("pixels", [np.zeros((5, 40, 40)), np.full((5, 40, 40), 7.0)])
def test_nothing_to_find(pixels):
    assert left_ventricle.find(pixels, 1.8) is None


def test_objects_of_another_size_are_no_ventricle():
    # The disc of 16 pixels has an area of 50 to 804 mm2 at these pixel sizes.
    assert left_ventricle.find(phantom.cine(shape=(128, 128)), spacing=0.2) is None


def test_otsu_separates_two_classes():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 3000), rng.normal(10, 1, 1000)])
    assert 3 < left_ventricle.otsu(values) < 7
