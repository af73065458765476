import numpy as np
import phantom
import pytest

from mmcl_jax.data.images import cmr, short_axis
from mmcl_jax.data.subject import RefusedRecord


def make_cine(pixels, spacing=1.8):
    return short_axis.Cine(pixels[None], (0.0,), spacing, ("few slices: 1",))


def test_image_box_and_remarks():
    pixels = phantom.cine(centre=(60.0, 75.0))
    image, box, flags = short_axis.prepare("a.zip", make_cine(pixels))
    expected = cmr.stack_frames(pixels[phantom.ES], pixels[2], pixels[phantom.ED])
    np.testing.assert_array_equal(image, expected)
    top, left, height, width = box
    assert (height, width) == (78, 78)
    rows, columns = cmr.offset(pixels.shape[1:])
    assert abs(top + 39 - (60 + rows)) <= 2
    assert abs(left + 39 - (75 + columns)) <= 2
    assert flags == (
        "few slices: 1",
        "phases by blood-pool area: ES 4, mid 2, ED 0 of 10 frames counted from 0, slice 1 of 1",
    )


def test_the_box_has_the_same_size_on_the_body():
    _, box, flags = short_axis.prepare("a.zip", make_cine(phantom.cine(), spacing=1.4))
    assert box[2:] == (100, 100)
    assert flags[-1] == "pixel size kept: 1.40 mm, UK Biobank has 1.8 mm"


def test_the_middle_slice_is_taken():
    pixels = np.stack([phantom.cine(seed=seed) for seed in range(4)])
    image, _, flags = short_axis.prepare(
        "a.zip", short_axis.Cine(pixels, (0.0, 8.0, 16.0, 24.0), 1.8, ())
    )
    np.testing.assert_array_equal(image, cmr.stack_frames(*pixels[2, [phantom.ES, 2, phantom.ED]]))
    assert flags[0].endswith("slice 3 of 4")


def test_without_a_ventricle_the_box_is_constant():
    # A bright band that widens and narrows is nothing round.
    pixels = np.zeros((6, 100, 100))
    for frame, width in enumerate((40, 34, 28, 22, 28, 34)):
        pixels[frame, 50 - width // 2 : 50 + width // 2] = 100.0
    _, box, flags = short_axis.prepare("a.zip", make_cine(pixels))
    assert box == cmr.CONSTANT_BOX
    assert flags[-1] == "constant heart box: no left ventricle found"


def test_a_cine_without_motion_is_refused():
    with pytest.raises(RefusedRecord, match=r"a\.zip: the left ventricle never changes"):
        short_axis.prepare("a.zip", make_cine(np.repeat(phantom.cine(frames=5)[:1], 5, axis=0)))
    with pytest.raises(RefusedRecord, match="2 frames in a cycle"):
        short_axis.prepare("a.zip", make_cine(phantom.cine()[:2]))


def test_frames_by_the_areas_of_a_segmentation():
    cine = make_cine(phantom.cine())
    volume = np.array([90.0, 99, 80, 70, 60, 50, 40, 60, 80, 85])
    image, flags = short_axis.take_frames("a.zip", cine, volume, "volume of the label map")
    np.testing.assert_array_equal(image, cmr.stack_frames(*cine.pixels[0, [6, 3, 1]]))
    assert flags == (
        "phases by volume of the label map: ES 6, mid 3, ED 1 of 10 frames counted from 0, "
        "slice 1 of 1",
    )


@pytest.mark.parametrize("volume", [np.arange(9.0), np.full(10, np.nan), np.ones(10)])
def test_unusable_areas_are_refused(volume):
    with pytest.raises(RefusedRecord, match=r"expected 10 numbers|never changes"):
        short_axis.take_frames("a.zip", make_cine(phantom.cine()), volume, "area")
