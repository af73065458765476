"""Similarity over the heart and beside it, against maps whose answer is known."""

import numpy as np
import pytest

from mmcl_jax.interpret.heart import contrast, inside_and_outside, similarity_to_own_and_others


def test_a_map_that_is_one_over_the_heart():
    similarity = np.zeros((1, 4, 4))
    similarity[0, 1:3, 2:4] = 1
    box, size = np.array([[20, 40, 40, 40]]), np.array([[80, 80]])
    inside, outside = inside_and_outside(similarity, box, size)
    np.testing.assert_allclose(inside, [1])
    np.testing.assert_allclose(outside, [0])


def test_a_cell_counts_by_its_area_in_the_box():
    similarity = np.array([[[2.0, 0.0], [0.0, 0.0]]])
    # A quarter of the first cell, and nothing else, is inside.
    inside, outside = inside_and_outside(similarity, np.array([[0, 0, 5, 5]]), np.array([[20, 20]]))
    np.testing.assert_allclose(inside, [2])
    np.testing.assert_allclose(outside, [2 * 0.75 / 3.75])


def test_pixels_agree_where_boxes_do_not_meet_the_cells():
    generator = np.random.default_rng(0)
    similarity = generator.normal(size=(5, 3, 7))
    size = np.array([[21, 14]] * 5)
    corner = generator.integers(0, 6, (5, 2))
    box = np.concatenate([corner, generator.integers(3, 9, (5, 2))], axis=1)
    inside, outside = inside_and_outside(similarity, box, size)
    for number, (top, left, height, width) in enumerate(box):
        pixels = np.repeat(np.repeat(similarity[number], 7, axis=0), 2, axis=1)
        heart = np.zeros((21, 14), bool)
        heart[top : top + height, left : left + width] = True
        assert inside[number] == pytest.approx(pixels[heart].mean(), rel=1e-12)
        assert outside[number] == pytest.approx(pixels[~heart].mean(), rel=1e-12)


def test_others_are_all_but_the_subject():
    generator = np.random.default_rng(1)
    places, ecg = generator.normal(size=(4, 2, 3, 5)), generator.normal(size=(4, 5))
    own, others = similarity_to_own_and_others(places, ecg)
    for number in range(4):
        cosines = places[number] @ ecg.T
        np.testing.assert_allclose(own[number], cosines[..., number], rtol=1e-12)
        expected = np.delete(cosines, number, axis=-1).mean(axis=-1)
        np.testing.assert_allclose(others[number], expected, rtol=1e-12)


def test_what_all_ecgs_share_cancels():
    places = np.random.default_rng(2).normal(size=(3, 2, 2, 4))
    own, others = similarity_to_own_and_others(places, np.ones((3, 4)))
    np.testing.assert_allclose(own, others, rtol=1e-12)


def test_a_ratio_needs_a_mean_beside_the_heart_that_is_above_zero():
    around = np.array([-0.01, 0.0, 0.01, 0.02])
    known = contrast(around + 0.2, around + 0.1)
    assert known == pytest.approx(
        {"inside": 0.205, "outside": 0.105, "ratio": 0.205 / 0.105, "higher_inside": 1.0, "n": 4}
    )
    for outside in (around, -around - 0.1):
        assert contrast(around + 0.2, outside)["ratio"] is None
