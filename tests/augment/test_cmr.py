import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.augment import cmr
from mmcl_jax.augment.cmr import CmrAugmentation

NEUTRAL = {
    "flip_probability": 0.0,
    "rotation_probability": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "scale": (1.0, 1.0),
    "ratio": (1.0, 1.0),
    "probability": 1.0,
}


def image(height=40, width=40, seed=0):
    return np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)


def box_of(*values):
    return jnp.array(values, jnp.int32)


def whole(height, width):
    return box_of(0, 0, height, width)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def many(augmentation, frames, box):
    return jax.jit(jax.vmap(lambda key: augmentation(key, frames, box)))


def resize(source, size):
    """Bilinear resize with half-pixel centres and repeated borders, one output pixel at a time."""
    height, width, _ = source.shape
    result = np.zeros((size, size, 3))
    for row in range(size):
        y = min(max((row + 0.5) * height / size - 0.5, 0), height - 1)
        y0 = int(y)
        y1 = min(y0 + 1, height - 1)
        for column in range(size):
            x = min(max((column + 0.5) * width / size - 0.5, 0), width - 1)
            x0 = int(x)
            x1 = min(x0 + 1, width - 1)
            upper = source[y0, x0] * (1 - (x - x0)) + source[y0, x1] * (x - x0)
            lower = source[y1, x0] * (1 - (x - x0)) + source[y1, x1] * (x - x0)
            result[row, column] = upper * (1 - (y - y0)) + lower * (y - y0)
    return result


@pytest.mark.parametrize("box", [(5, 8, 20, 20), (0, 0, 40, 40), (30, 2, 10, 25), (3, 4, 7, 6)])
@pytest.mark.parametrize("size", [16, 33])
def test_clean_is_the_bilinear_resize_of_the_heart_box(box, size):
    frames = image()
    top, left, height, width = box
    expected = resize(frames[top : top + height, left : left + width], size)
    ours = CmrAugmentation(size=size).clean(jnp.asarray(frames), box_of(*box))
    np.testing.assert_allclose(ours, expected, atol=5e-6)


def test_clean_without_crop_resizes_the_whole_frame_and_ignores_the_box():
    frames = image(30, 44)
    ours = CmrAugmentation(size=20, crop_heart=False).clean(jnp.asarray(frames), box_of(1, 2, 3, 4))
    np.testing.assert_allclose(ours, resize(frames, 20), atol=5e-6)


def test_same_size_is_the_identity():
    frames = jnp.asarray(image())
    uncropped = CmrAugmentation(size=40, crop_heart=False).clean(frames, whole(40, 40))
    np.testing.assert_array_equal(uncropped, frames)
    cropped = CmrAugmentation(size=40).clean(frames, whole(40, 40))
    np.testing.assert_array_equal(cropped, frames)


def test_closed_gate_leaves_the_clean_image():
    frames, box = jnp.asarray(image()), box_of(4, 6, 25, 25)
    closed = CmrAugmentation(size=32, probability=0.0)
    views = many(closed, frames, box)(keys(5))
    clean = np.asarray(closed.clean(frames, box))
    np.testing.assert_allclose(views, np.broadcast_to(clean, views.shape), atol=1e-6)


def test_gate_opens_at_its_rate():
    frames, box = jnp.asarray(image(12, 12)), whole(12, 12)
    augmentation = CmrAugmentation(size=12, probability=0.8)
    views = many(augmentation, frames, box)(keys(1000))
    clean = np.isclose(views, frames[None], atol=1e-6).all(axis=(1, 2, 3))
    assert clean.mean() == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize(("turns", "flip"), [(0, True), (1, False), (-1, False), (1, True)])
def test_warp_flips_first_and_turns_counter_clockwise(turns, flip):
    frames = image(21, 21)
    expected = np.rot90(frames[:, ::-1] if flip else frames, turns)
    ours = cmr.warp(
        jnp.asarray(frames),
        whole(21, 21),
        jnp.array([0.0, 0.0, 21.0, 21.0]),
        angle=turns * np.pi / 2,
        flip=flip,
        size=21,
    )
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_warp_fills_with_zero_what_a_rotation_brings_in_from_outside_the_box():
    frames = np.ones((40, 40, 3), np.float32)
    ours = np.asarray(
        cmr.warp(
            jnp.asarray(frames),
            box_of(10, 10, 20, 20),
            jnp.array([0.0, 0.0, 20.0, 20.0]),
            angle=np.pi / 4,
            flip=False,
            size=20,
        )
    )
    # The frame goes on beyond the box, yet the four corners are empty, as after a crop.
    np.testing.assert_array_equal(ours[[0, 0, -1, -1], [0, -1, 0, -1]], 0)
    np.testing.assert_allclose(ours[10, 10], 1, rtol=1e-6)
    radius = np.hypot(*np.meshgrid(np.arange(20) - 9.5, np.arange(20) - 9.5))
    np.testing.assert_allclose(ours[radius < 10], 1, rtol=1e-6)


def test_warp_agrees_with_a_slow_reference_for_a_general_rotation():
    rows, columns = np.mgrid[0:40, 0:40].astype(np.float32)
    # Bilinear interpolation is exact on a ramp, so that positions can be read off the values.
    frames = np.stack([rows, columns, rows + columns], axis=-1)
    angle, size, window = 0.3, 15, (4.0, 6.0, 14.0, 12.0)
    ours = cmr.warp(
        jnp.asarray(frames),
        box_of(5, 7, 24, 28),
        jnp.array(window),
        angle=angle,
        flip=True,
        size=size,
    )
    for row, column in [(3, 4), (7, 7), (10, 2), (5, 11)]:
        y = window[0] + (row + 0.5) * window[2] / size - 0.5
        x = window[1] + (column + 0.5) * window[3] / size - 0.5
        offset = complex(x - 13.5, -(y - 11.5)) * np.exp(-1j * angle)
        expected_row = 5 + 11.5 - offset.imag
        expected_column = 7 + 27 - (13.5 + offset.real)
        np.testing.assert_allclose(
            ours[row, column],
            [expected_row, expected_column, expected_row + expected_column],
            atol=1e-3,
        )


def test_windows_are_distributed_as_asked():
    windows = jax.vmap(
        lambda key: cmr.random_window(
            key, jnp.array(80), jnp.array(100), scale=(0.6, 1.0), ratio=(3 / 4, 4 / 3)
        )
    )(keys(3000))
    top, left, height, width = np.asarray(windows).T
    np.testing.assert_array_equal(np.asarray(windows), np.round(windows))
    assert top.min() == 0
    assert left.min() == 0
    assert (top + height).max() == 80
    assert (left + width).max() == 100
    area, ratio = height * width / 8000, width / height
    assert area.min() > 0.58
    assert area.max() <= 1
    assert ratio.min() > 0.73
    assert ratio.max() < 1.36
    # Square images: the area is uniform where every ratio fits.
    square = jax.vmap(
        lambda key: cmr.random_window(
            key, jnp.array(500), jnp.array(500), scale=(0.2, 0.7), ratio=(0.9, 1.1)
        )
    )(keys(3000))
    area = np.asarray(square[:, 2] * square[:, 3]) / 500**2
    np.testing.assert_allclose(
        np.quantile(area, [0.25, 0.5, 0.75]), [0.325, 0.45, 0.575], atol=0.02
    )


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(100, 20, (36, 0, 27, 20)), (20, 100, (0, 36, 20, 27))],
)
def test_window_falls_back_to_the_largest_centred_one(height, width, expected):
    window = cmr.random_window(
        jax.random.key(0),
        jnp.array(height),
        jnp.array(width),
        scale=(1.0, 1.0),
        ratio=(3 / 4, 4 / 3),
    )
    np.testing.assert_array_equal(window, expected)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_colour_jitter_agrees_with_the_formulas(order):
    frames = image()
    factors = (1.3, 0.6, 1.4)
    expected = frames.astype(np.float64)
    for operation in order:
        grey = expected @ np.array([0.2989, 0.587, 0.114])
        other = (0.0, grey.mean(), grey[..., None])[operation]
        expected = factors[operation] * expected + (1 - factors[operation]) * other
        expected = np.clip(expected, 0, 1)
    ours = cmr.colour_jitter(jnp.asarray(frames), jnp.array(order), jnp.array(factors))
    np.testing.assert_allclose(ours, expected, atol=5e-6)


def test_jitter_draws_every_order_and_factors_in_range():
    orders, factors = jax.vmap(lambda key: cmr.random_jitter(key, (0.5, 0.25, 2.0)))(keys(2000))
    _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 250
    low, high = np.asarray(factors).min(axis=0), np.asarray(factors).max(axis=0)
    np.testing.assert_allclose(low, [0.5, 0.75, 0.0], atol=0.02)
    np.testing.assert_allclose(high, [1.5, 1.25, 3.0], atol=0.02)


def test_flip_and_rotation_happen_at_their_rates_and_neutral_settings_change_nothing():
    frames, box = jnp.asarray(image(9, 9)), whole(9, 9)
    rates = {"flip_probability": 0.3, "rotation_probability": 0.4}
    views = many(CmrAugmentation(size=9, **{**NEUTRAL, **rates}), frames, box)(keys(2000))
    unchanged = np.isclose(views, frames[None], atol=1e-5).all(axis=(1, 2, 3))
    flipped = np.isclose(views, frames[None, :, ::-1], atol=1e-5).all(axis=(1, 2, 3))
    assert unchanged.mean() == pytest.approx(0.7 * 0.6, abs=0.05)
    assert flipped.mean() == pytest.approx(0.3 * 0.6, abs=0.05)


def test_views_stay_in_the_unit_range_and_differ_by_key():
    frames, box = jnp.asarray(image()), box_of(2, 3, 30, 30)
    augmentation = CmrAugmentation(size=24)
    views = np.asarray(many(augmentation, frames, box)(keys(8)))
    assert views.shape == (8, 24, 24, 3)
    assert views.min() >= 0
    assert views.max() <= 1
    assert np.abs(views[0] - views[1]).mean() > 0.01


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("probability", -0.1),
        ("degrees", -1.0),
        ("scale", (0.0, 1.0)),
        ("ratio", (2.0, 1.0)),
    ],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        CmrAugmentation(**{field: value})


def test_a_fixed_box_replaces_the_subjects_own():
    frames = jnp.asarray(np.random.default_rng(0).random((210, 210, 3)), jnp.float32)
    fixed = CmrAugmentation(box=(44, 68, 78, 78)).clean(frames, jnp.array([0, 0, 50, 50]))
    own = CmrAugmentation().clean(frames, jnp.array([44, 68, 78, 78]))
    np.testing.assert_array_equal(fixed, own)
