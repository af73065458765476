import itertools

import numpy as np
import pytest
from scipy import spatial

from mmcl_jax.data.images.wall_thickness import wall_thickness

heart_volumes = pytest.importorskip("heart_volumes")
nifti = pytest.importorskip("mmcl_jax.data.formats.nifti")


def measure(classes, spacing=(1.5, 1.5), oriented=True):
    masks = {"cavity": classes == 1, "myocardium": classes == 2, "rv": classes == 3}
    return wall_thickness(**masks, spacing=spacing, oriented=oriented)


def from_file(path):
    volume = nifti.read(path)
    return measure(volume.values[:, 0], volume.spacing, volume.oriented)


def stack():
    """[Z, H, W], apex first, septum on the left, so that the anterior wall is on top."""
    return heart_volumes.classes().T[::-1]


def expected(segment, count, scales):
    """Mean distance from the inner to the outer circle over a segment, weighted by length."""
    # Degrees against the clock from the anterior wall on top, the septum being on the left.
    middle = np.deg2rad(90 + 360 / count * segment)
    angles = middle + np.deg2rad(np.linspace(-180, 180, 200) / count)
    total = weight = 0.0
    for scale in scales:
        inner = heart_volumes.RADIUS * scale
        x, y = inner * np.cos(angles), inner * np.sin(angles)
        outer = (heart_volumes.RADIUS + heart_volumes.WALL) * scale
        gap = outer - np.hypot(x, y - heart_volumes.SHIFT)
        total, weight = total + inner * gap.mean(), weight + inner
    return total / weight


@pytest.mark.parametrize(("inner", "wall"), [(8.0, 5.0), (14.3, 7.6), (21.0, 4.0)])
def test_rings_are_measured_to_a_tenth_of_a_pixel(inner, wall):
    rows, columns = np.indices((90, 90))
    distance = np.hypot(rows - 43.3, columns - 41.8)[None]
    ring = np.where(distance < inner, 1, np.where(distance < inner + wall, 2, 0))
    values, _ = measure(ring, spacing=(1.0, 1.0))
    assert values["WT_global"] == pytest.approx(wall, abs=0.1)


def test_segments_of_a_known_wall():
    values, flags = measure(stack())
    assert flags == ()
    scales = 1 - 0.06 * np.arange(9)
    for start, count, ring in ((1, 6, scales[:3]), (7, 6, scales[3:6]), (13, 4, scales[6:])):
        for segment in range(count):
            found = values[f"WT_{start + segment}"]
            assert found == pytest.approx(expected(segment, count, ring), abs=0.45)
    # Pixels are 1.5 mm; the mean over the whole ring is far better than that.
    assert values["WT_global"] == pytest.approx(expected(0, 1, scales), abs=0.1)
    assert values["WT_1"] > values["WT_2"] > values["WT_3"] > values["WT_4"]


@pytest.mark.parametrize("axes", [c for n in range(4) for c in itertools.combinations(range(3), n)])
def test_segments_do_not_depend_on_the_order_of_voxels(tmp_path, axes):
    """Axes of the file reversed, with an affine that says so: the heart is the same."""
    wanted, _ = measure(stack())
    volume, matrix = heart_volumes.classes(), heart_volumes.affine()
    for axis in axes:
        matrix[:3, 3] += matrix[:3, axis] * (volume.shape[axis] - 1)
        matrix[:3, axis] *= -1
        volume = np.flip(volume, axis)
    found, _ = from_file(heart_volumes.save(tmp_path / "a.nii", volume, matrix))
    assert found == pytest.approx(wanted, abs=0.1)


def test_segments_do_not_depend_on_the_rotation(tmp_path):
    wanted, _ = measure(stack())
    volume, matrix = heart_volumes.classes(), heart_volumes.affine()
    turned = matrix[:, [1, 0, 2, 3]]
    found, _ = from_file(heart_volumes.save(tmp_path / "a.nii", volume.swapaxes(0, 1), turned))
    assert found == pytest.approx(wanted, abs=0.1)


def test_without_orientation_the_view_is_from_the_apex():
    wanted, _ = measure(stack())
    for classes in (stack(), stack()[::-1]):
        values, flags = measure(classes, oriented=False)
        assert values == pytest.approx(wanted)
        assert flags[0].startswith("wall segments assume a view from the apex")


def test_an_open_ring_is_measured_where_there_is_wall():
    classes = stack()
    wanted, _ = measure(classes)
    rows, columns = np.indices(classes.shape[1:])
    sector = np.abs(rows - 42) < 0.3 * (columns - 50)
    classes[-1][sector & (classes[-1] == 2)] = 0
    found, _ = measure(classes)
    assert found["WT_global"] == pytest.approx(wanted["WT_global"], rel=0.03)


def test_little_is_left_out():
    classes = stack()
    values, flags = measure(np.where(classes == 3, 0, classes))
    assert (set(values), flags) == ({"WT_global"}, ())
    values, flags = measure(classes[4:6])
    assert set(values) == {"WT_global"}
    assert flags[0].startswith("wall thickness by segment left out")
    assert measure(np.where(classes == 2, 0, classes)) == (
        {},
        ("wall thickness left out: no slice with cavity and wall",),
    )


def test_pixels_need_not_be_square():
    wanted, _ = measure(stack())
    found, _ = measure(np.repeat(stack(), 2, axis=1), spacing=(0.75, 1.5))
    assert found["WT_global"] == pytest.approx(wanted["WT_global"], rel=0.02)


@pytest.mark.parametrize(
    ("patient", "original"),
    [("SCD0000101", "SC-HF-I-1"), ("SCD0000201", "SC-HF-I-2"), ("SCD0000301", "SC-HF-I-4")],
)
def test_real_walls_agree_with_the_contours_of_the_expert(recordings, patient, original):
    folder = recordings / "sunnybrook"
    values, _ = from_file(folder / "nifti_derived" / f"{patient}_label_sa_ED.nii.gz")
    spacing = nifti.read(folder / "nifti_derived" / f"{patient}_sa_ED.nii.gz").spacing[0]
    thickness, weights = [], []
    for outer in sorted((folder / "contours" / original / "o-contours").iterdir()):
        name = outer.name.replace("ocontour", "icontour")
        inside = np.loadtxt(outer.parents[1] / "i-contours" / name)
        around = np.loadtxt(outer)
        steps = np.linspace(0, 1, 10, endpoint=False)[:, None, None]
        dense = (around + steps * (np.roll(around, -1, 0) - around)).reshape(-1, 2)
        thickness.append(spacing * spatial.KDTree(dense).query(inside)[0])
        weights.append(np.linalg.norm(inside - np.roll(inside, 1, 0), axis=1))
    wanted = np.average(np.concatenate(thickness), weights=np.concatenate(weights))
    assert values["WT_global"] == pytest.approx(wanted, rel=0.05)
