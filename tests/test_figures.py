"""Figures are checked by what they draw: data, labels, limits, colours."""

import io

import matplotlib.image
import numpy as np
import pytest
import scipy.ndimage

from mmcl_jax import figures, similarity_figures


def _curves(offset=0.0):
    steps = [0, 10, 20]
    return {
        "train/loss": (steps, [1.0 + offset, 0.6, 0.4]),
        "val/loss": (steps, [1.1, 0.8, 0.7]),
        "val/auroc": (steps, [0.5, 0.6, 0.7]),
        "learning_rate": (steps, [0.0, 1e-4, 0.0]),
    }


def test_training_curves_of_one_run():
    figure = figures.training_curves("mdm", {"": _curves()}, metric="val/auroc")
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "loss", "validation AUROC", "learning rate"
    ]  # fmt: skip
    assert {axis.get_xlabel() for axis in figure.axes} == {"optimiser step"}
    train, val = figure.axes[0].get_lines()
    np.testing.assert_array_equal(train.get_ydata(), [1.0, 0.6, 0.4])
    assert train.get_color() != val.get_color()
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["training loss", "validation loss"]


def test_training_curves_of_seeds_share_one_legend():
    runs = {"seed 0": _curves(), "seed 1": _curves(0.1)}
    figure = figures.training_curves("finetune/CAD", runs, metric="val/auroc")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["seed 0", "seed 1"]
    colours = [line.get_color() for line in figure.axes[0].get_lines()]
    assert colours == [*figures.COLOURS[:1] * 2, *figures.COLOURS[1:2] * 2]
    assert "dashed: validation" in figure.axes[0].get_ylabel()


def test_training_curves_leave_out_what_no_run_has():
    figure = figures.training_curves("mdm", {"": {"train/loss": ([1], [2.0])}})
    (axis,) = figure.axes
    assert axis.get_lines()[0].get_marker() == "."


def test_roc_curves_skip_missing_labels():
    label = np.array([0, 0, 1, 1, np.nan])
    curve = figures.RocCurve("seed 0: 0.750", label, np.array([0.1, 0.6, 0.5, 0.9, 0.2]))
    figure = figures.roc_curves({"CAD": [curve], "AF": [curve]})
    axis = figure.axes[0]
    assert axis.get_title() == "CAD (n = 4, 2 with the label)"
    assert axis.get_xlabel() == "1 - specificity"
    drawn = axis.get_lines()[1]
    assert np.trapezoid(drawn.get_ydata(), drawn.get_xdata()) == pytest.approx(0.75)
    assert axis.get_legend().get_texts()[1].get_text() == "seed 0: 0.750"


def test_scatter_draws_some_but_fits_all():
    generator = np.random.default_rng(0)
    measured = 150 + 30 * generator.normal(size=800)
    predicted = 100 + 0.4 * measured + 10 * generator.normal(size=800)
    measured[:10] = np.nan
    panel = figures.Scatter("LVEDV", "mL", measured, predicted)
    fewer = figures.Scatter("LVEF", "%", measured[:300], predicted[:300])
    figure = figures.phenotype_scatter([panel, panel, fewer], drawn=500)
    axis = figure.axes[0]
    points = axis.collections[0].get_offsets()
    assert len(points) == 500
    assert len(figure.axes[2].collections[0].get_offsets()) == 290
    np.testing.assert_array_equal(points, figure.axes[1].collections[0].get_offsets())
    line = axis.get_lines()[1]
    slope = np.diff(line.get_ydata()) / np.diff(line.get_xdata())
    fit = np.polyfit(measured[10:], predicted[10:], 1)
    assert slope == pytest.approx(fit[0])
    assert line.get_ydata()[0] == pytest.approx(np.polyval(fit, np.nanmin(measured)))
    r = np.corrcoef(measured[10:], predicted[10:])[0, 1]
    assert axis.get_title() == f"LVEDV, r = {r:.2f}"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("measured [mL]", "predicted [mL]")
    assert axis.get_xlim() == axis.get_ylim()


def test_scatter_of_constant_predictions_has_no_r():
    panel = figures.Scatter("LVEF", "", np.arange(5.0), np.full(5, 2.0))
    figure = figures.phenotype_scatter([panel])
    assert figure.axes[0].get_title() == "LVEF"
    assert figure.axes[0].get_xlabel() == "measured"


def test_enlarge_is_bilinear_with_half_pixel_centres():
    grid = np.random.default_rng(0).normal(size=(7, 5))
    found = similarity_figures.enlarge(grid, 35)
    zoom = (35 / 7, 35 / 5)
    expected = scipy.ndimage.zoom(grid, zoom, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found[2::5, 3::7], grid, atol=1e-12)


def test_cmr_similarity_shows_phases_box_and_map():
    generator = np.random.default_rng(0)
    frames, whole = generator.random((2, 2, 21, 21, 3))
    similarity = generator.uniform(-1, 1, size=(2, 7, 7))
    box = np.array([[4, 6, 10, 12], [0, 0, 21, 21]])
    figure = similarity_figures.cmr_similarity(frames, similarity, whole, box, ["a", "b"])
    first = figure.axes[:10:2]
    pictures = [axis.get_images()[0].get_array() for axis in first]
    for picture, expected in zip(
        pictures,
        (whole[0, ..., 1], *(frames[0, ..., phase] for phase in (0, 1, 2, 1))),
        strict=True,
    ):
        np.testing.assert_array_equal(picture, expected)
    assert [axis.get_ylabel() for axis in first[1:4]] == [
        "end-systole", "mid-phase", "end-diastole"
    ]  # fmt: skip
    (rectangle,) = first[0].patches
    assert rectangle.get_bbox().bounds == (5.5, 3.5, 12, 10)
    overlay = first[4].get_images()[1]
    np.testing.assert_allclose(overlay.get_array(), similarity_figures.enlarge(similarity[0], 21))
    assert overlay.get_clim() == (-1, 1)
    assert (overlay.get_alpha(), overlay.get_cmap().name) == (0.5, "RdBu_r")
    assert figure.axes[1].get_title() == "b"
    assert figure.axes[-1].get_ylabel() == "cosine similarity"


def test_ecg_similarity_puts_each_lead_over_its_patches():
    generator = np.random.default_rng(0)
    ecg, similarity = generator.normal(size=(12, 500)), generator.uniform(-1, 1, size=(12, 5))
    figure = similarity_figures.ecg_similarity(ecg, similarity, "r1")
    by_lead = {axis.get_ylabel(): axis for axis in figure.axes[:12]}
    assert tuple(axis.get_ylabel() for axis in figure.axes[:12:2]) == similarity_figures.LEADS[:6]
    axis = by_lead["V2"]
    np.testing.assert_array_equal(axis.get_lines()[0].get_ydata(), ecg[7])
    image = axis.get_images()[0]
    np.testing.assert_array_equal(image.get_array()[0], similarity[7])
    assert image.get_extent()[:2] == [0, 1]
    assert axis.get_xlim() == (0, 1)
    assert by_lead["aVF"].get_xlabel() == "time [s]"


def test_png_is_reproducible_and_leaves_no_state():
    curve = figures.RocCurve("a", np.array([0.0, 1.0]), np.array([0.2, 0.4]))
    first, second = (figures.png(figures.roc_curves({"CAD": [curve]})) for _ in range(2))
    assert first == second
    assert b"Software" not in first
    assert matplotlib.image.imread(io.BytesIO(first)).shape == (492, 468, 4)
    assert matplotlib.rcParams["axes.spines.top"]
