import json

import numpy as np
import pytest

from mmcl_jax.data.images import cmr


@pytest.fixture
def frames():
    return np.random.default_rng(0).uniform(10, 1000, (3, 200, 180))


def test_channels_are_es_mid_ed_on_one_scale():
    ramp = np.linspace(0.0, 100.0, 210 * 210).reshape(210, 210)
    image = cmr.stack_frames(0.5 * ramp, 0.75 * ramp, ramp)
    assert (image.shape, image.dtype) == ((210, 210, 3), np.uint8)
    high = np.quantile(np.stack([0.5 * ramp, 0.75 * ramp, ramp]), 0.99)
    for channel, frame in enumerate((0.5 * ramp, 0.75 * ramp, ramp)):
        expected = 255 * np.minimum(frame / high, 1)
        assert np.abs(image[..., channel] - expected).max() <= 0.5


def test_the_brightest_hundredth_is_clipped(frames):
    share = (cmr.stack_frames(*frames) == 255).sum() / frames.size
    assert 0.01 <= share < 0.013
    brighter = frames.copy()
    brighter[0, 0, :100] = 1e6
    difference = cmr.stack_frames(*brighter).astype(int) - cmr.stack_frames(*frames)
    assert np.abs(difference[:, 20:]).max() < 255
    assert np.median(np.abs(difference)) <= 1


@pytest.mark.parametrize("shape", [(208, 162), (210, 210), (211, 99), (256, 256), (512, 13)])
def test_fit_pads_and_crops_about_the_centre(shape):
    image = np.arange(1, shape[0] * shape[1] + 1).reshape(shape)
    fitted = cmr.fit(image)
    assert fitted.shape == (210, 210)
    rows, columns = cmr.offset(shape)
    kept = min(shape[0], 210) * min(shape[1], 210)
    assert (fitted > 0).sum() == kept
    for row in (shape[0] // 2, shape[0] // 2 + 40):
        column = shape[1] // 2 - 3
        assert fitted[row + rows, column + columns] == image[row, column]
    # Padding is even on both sides, up to one pixel.
    assert abs(2 * rows - (210 - shape[0])) <= 1


def test_fit_keeps_further_axes():
    image = np.random.default_rng(1).random((100, 300, 3))
    np.testing.assert_array_equal(cmr.fit(image)[..., 2], cmr.fit(image[..., 2]))


def test_unusable_frames_are_errors(frames):
    with pytest.raises(ValueError, match="shapes"):
        cmr.stack_frames(frames[0], frames[1], frames[2, 1:])
    with pytest.raises(ValueError, match="show nothing"):
        cmr.stack_frames(*np.ones((3, 20, 20)))
    frames[1, 3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        cmr.stack_frames(*frames)


def test_box_around_a_mask_is_a_centred_square():
    mask = np.zeros((210, 210), bool)
    mask[80:120, 100:130] = True
    assert cmr.box_around_mask(mask, margin=0.5) == (60, 75, 80, 80)
    assert cmr.box_around_mask(mask, margin=0.0) == (80, 95, 40, 40)
    with pytest.raises(ValueError, match="empty"):
        cmr.box_around_mask(np.zeros((9, 9), bool))


def test_box_follows_padding_and_cropping():
    mask = np.zeros((256, 160), bool)
    mask[100:140, 60:100] = True
    top, left, height, width = cmr.box_around_mask(mask, margin=0.25)
    fitted = cmr.fit(mask)
    inside = fitted[top : top + height, left : left + width]
    assert (height, width) == (60, 60)
    assert inside.sum() == mask.sum()
    rows, columns = np.nonzero(inside)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 49, 10, 49)


@pytest.mark.parametrize("centre", [(0, 0), (255, 255), (128, -5)])
def test_box_stays_inside_the_image(centre):
    top, left, height, width = cmr.box_around(centre, 78, (256, 256))
    assert (height, width) == (78, 78)
    assert 0 <= top <= 132
    assert 0 <= left <= 132
    assert cmr.box_around(centre, 1e4, (256, 256)) == (0, 0, 210, 210)


def test_constant_box_is_that_of_the_published_code():
    assert (int(0.21 * 210), int(0.325 * 210), 78, 78) == cmr.CONSTANT_BOX
    assert int(0.375 * 210) == 78


@pytest.mark.parametrize(
    ("ed", "es", "frames", "mid"),
    [(0, 18, 50, 9), (0, 7, 20, 3), (18, 7, 20, 2), (19, 6, 20, 2), (5, 2, 10, 8)],
)
def test_phases(ed, es, frames, mid):
    area = np.full(frames, 50.0)
    area[ed], area[es] = 90.0, 20.0
    assert cmr.phases(area) == (es, mid, ed)
    assert cmr.mid_frame(ed, es, frames) == mid


def test_phases_need_frames_and_motion():
    with pytest.raises(ValueError, match="2 frames in a cycle, expected at least 3"):
        cmr.phases(np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="never changes"):
        cmr.phases(np.ones(20))


def test_settings_are_json():
    settings = cmr.DEFAULT.as_dict()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["channels"] == ["ES", "mid", "ED"]
