import math

import numpy as np
import pytest
from golden_weights import relative_error

from mmcl_jax.models import positions


@pytest.mark.parametrize("width", [256, 384])
def test_table_is_the_published_one(golden, width):
    expected = np.load(golden / "position_embedding.npz")[f"embed_{width}"]
    assert relative_error(positions.sincos_table(width, 12, 25)[0], expected) <= 1e-6


def test_table_encodes_time_first_then_lead():
    table = positions.sincos_table(8, 2, 3)[0]
    np.testing.assert_array_equal(table[0], 0)
    lead, column = 1, 2
    row = table[1 + 3 * lead + column]
    expected = [f(p * w) for p in (column, lead) for f in (math.sin, math.cos) for w in (1, 0.01)]
    np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_width_must_hold_two_halves_of_sine_and_cosine():
    with pytest.raises(ValueError, match="multiple of 4"):
        positions.sincos_table(6, 2, 3)


@pytest.mark.parametrize(("old", "new"), [(25, 50), (25, 10), (5, 7)])
def test_interpolation_is_bicubic_with_half_pixel_centres(old, new):
    leads, width = 2, 4
    table = np.random.default_rng(0).normal(size=(1, 1 + leads * old, width)).astype(np.float32)
    ours = positions.interpolate(table, leads, new)
    expected = np.concatenate([table[0, :1], _bicubic_by_hand(table[0, 1:], leads, old, new)])
    np.testing.assert_allclose(ours[0], expected, atol=1e-5)


def test_same_number_of_columns_changes_nothing():
    table = positions.sincos_table(8, 2, 3)
    assert positions.interpolate(table, 2, 3) is table


def test_straight_lines_stay_straight_away_from_the_borders():
    line = np.arange(20, dtype=np.float32)
    table = np.concatenate([[0], line])[None, :, None].astype(np.float32)
    ours = np.asarray(positions.interpolate(table, 1, 40))[0, 1:, 0]
    expected = (np.arange(40) + 0.5) / 2 - 0.5
    # a = -0.75 reproduces constants, and lines at the two phases of a doubling in pairs.
    np.testing.assert_allclose((ours[4:36:2] + ours[5:36:2]) / 2, line[2:18], atol=1e-5)
    np.testing.assert_allclose(ours[4:36], expected[4:36], atol=0.05)


def test_leads_cannot_change():
    with pytest.raises(ValueError, match="leads"):
        positions.interpolate(positions.sincos_table(8, 2, 5), 3, 7)


def _bicubic_by_hand(grid, leads, old, new, a=-0.75):
    grid = grid.reshape(leads, old, -1)
    out = np.zeros((leads, new, grid.shape[-1]))
    for column in range(new):
        centre = (column + 0.5) * old / new - 0.5
        t = centre - math.floor(centre)
        weights = [
            a * (t + 1) ** 3 - 5 * a * (t + 1) ** 2 + 8 * a * (t + 1) - 4 * a,
            (a + 2) * t**3 - (a + 3) * t**2 + 1,
            (a + 2) * (1 - t) ** 3 - (a + 3) * (1 - t) ** 2 + 1,
            a * (2 - t) ** 3 - 5 * a * (2 - t) ** 2 + 8 * a * (2 - t) - 4 * a,
        ]
        for tap, weight in zip(range(-1, 3), weights, strict=True):
            source = min(max(math.floor(centre) + tap, 0), old - 1)
            out[:, column] += weight * grid[:, source]
    return out.reshape(leads * new, -1)
