"""The picture of a prepared cohort, on small arrays and as `prepare` leaves it."""

import io

import numpy as np
import PIL.Image
import pytest
import tiny_source
from matplotlib.patches import Rectangle

from mmcl_jax import prepare
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.preparing import cohort_figures
from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.data.sources import ptbxl
from mmcl_jax.figures import png


def arrays(subjects, ecgs):
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (subjects, 40, 40, 3), np.uint8),
        "boxes": np.tile(np.array([4, 7, 20, 30]), (subjects, 1)),
        "image_names": [f"c{number}" for number in range(subjects)],
        "ecgs": rng.normal(size=(ecgs, 12, 5000)).astype(np.float32),
        "ecg_names": [f"e{number}" for number in range(ecgs)],
    }


def test_panels_of_a_paired_cohort():
    content = arrays(subjects=3, ecgs=2)
    figure = cohort_figures.preview("Recordings (source: tiny)", **content)
    assert figure.get_suptitle() == "Recordings (source: tiny)"
    rows = figure.subfigs
    assert [row.get_suptitle() for row in rows] == ["c0", "c1", "c2", ""]
    assert len(figure.axes) == 3 * 4 + 2
    for row, image in zip(rows, content["images"], strict=False):
        assert [axis.get_title() for axis in row.axes] == ["ES", "mid", "ED", "ED, heart box"]
        shown = [axis.images[0].get_array() for axis in row.axes]
        np.testing.assert_array_equal(np.stack(shown[:3], axis=-1), image)
        np.testing.assert_array_equal(shown[3], image[4:24, 7:37, 2])
        for axis in row.axes[:3]:
            (box,) = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
            assert box.get_bbox().bounds == (6.5, 3.5, 30, 20)
    for axis, name in zip(rows[-1].axes, ("e0", "e1"), strict=True):
        assert axis.get_title(loc="left") == name
        assert axis.get_xlabel() == "time [s]"
        assert axis.get_xlim() == (0, 5)
        assert tuple(tick.get_text() for tick in axis.get_yticklabels()) == LEADS
        assert len(axis.lines) == 12
    assert "standard deviations apart" in rows[-1].axes[0].get_ylabel()


def test_the_leads_are_drawn_from_top_to_bottom_for_5_s():
    content = arrays(subjects=0, ecgs=1)
    figure = cohort_figures.preview("", **content)
    (axis,) = figure.axes
    levels = axis.get_yticks()
    assert (np.diff(levels) < 0).all()
    for line, level, signal in zip(axis.lines, levels, content["ecgs"][0], strict=True):
        assert line.get_xdata()[-1] == pytest.approx(2499 / 500)
        np.testing.assert_allclose(line.get_ydata() - level, signal[:2500], atol=1e-4)


def test_a_long_name_keeps_its_ends():
    content = arrays(subjects=1, ecgs=0) | {"image_names": ["a" * 40 + "b" * 40]}
    figure = cohort_figures.preview("", **content)
    title = figure.subfigs[0].get_suptitle()
    assert len(title) == 48
    assert title.startswith("a" * 24 + "…b")


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="needs a record with CMR frames or with an ECG"):
        cohort_figures.preview("", **arrays(0, 0))


def test_the_description_is_in_the_file():
    content, again, without = (
        png(cohort_figures.preview("", **arrays(1, 0)), text)
        for text in ("Recordings of Zürich – α", "Recordings of Zürich – α", "")
    )
    with PIL.Image.open(io.BytesIO(content)) as image:
        assert image.info["Description"] == "Recordings of Zürich – α"
    assert again == content
    with PIL.Image.open(io.BytesIO(without)) as image:
        assert "Description" not in image.info


# Which records of ten lack a modality, and the sentence that goes with it. r000 and r001 are one
# person, r007 validates.
COHORTS = {
    "paired": (
        {"paired": 4, "without_cmr": (0,)},
        "Recordings (source: tiny): the ES, mid and ED frames of r001, r002, r004 with the heart "
        "box, and the first 5 s of the preprocessed ECG of r001, r002.",
    ),
    "ecg_only": (
        {"paired": 2, "without_cmr": tuple(range(10))},
        "Recordings (source: tiny): the first 5 s of the preprocessed ECG of r000, r002.",
    ),
    "cmr_only": (
        {"refused": tuple(range(5)), "without_ecg": tuple(range(10))},
        "Recordings (source: tiny): the ES, mid and ED frames of r005, r006, r007 with the heart "
        "box.",
    ),
}


@pytest.mark.parametrize("kind", COHORTS)
def test_prepare_draws_a_preview(kind, monkeypatch, tmp_path, capsys):
    options, sentence = COHORTS[kind]
    source = tiny_source.TinySource(count=10, **options)
    monkeypatch.setattr(ptbxl, "PtbXl", lambda **_: source)
    output = tmp_path / "cohort"
    arguments = ["ptbxl", "--input", "in", "--output", str(output), "--workers", "0"]
    assert prepare.main(arguments) == 0
    file = output / "preview.png"
    assert f"preview: {file}" in capsys.readouterr().out.splitlines()
    assert cohort_figures.shown(file) == sentence
    with PIL.Image.open(file) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] > 1000
    assert pixels.std() > 10
    assert sorted(entry.name for entry in output.glob("preview*")) == ["preview.png"]
    # The picture is a function of the cohort alone.
    before = file.read_bytes()
    cohort_figures.write_preview(output)
    assert file.read_bytes() == before


def test_simulated_subjects_are_called_so(tmp_path):
    class Simulated(tiny_source.TinySource):
        name = "synthetic"

    cohorts.write(Simulated(count=1), tmp_path / "c", workers=0, progress=False)
    text = cohort_figures.shown(cohort_figures.write_preview(tmp_path / "c"))
    assert text.startswith("Simulated subjects (source: synthetic): the ES, mid and ED frames of r")


def test_no_cohort_no_preview(tmp_path):
    with pytest.raises(FileNotFoundError, match="no cohort at"):
        cohort_figures.write_preview(tmp_path / "none")


def test_a_name_is_no_formula():
    content = arrays(subjects=1, ecgs=1) | {
        "image_names": ["$\\undefined$"],
        "ecg_names": ["$x_{$"],
    }
    assert png(cohort_figures.preview("$\\frac{$", **content)).startswith(b"\x89PNG")
