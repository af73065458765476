import csv

import numpy as np
import pytest

from mmcl_jax.data.images import ventricles
from mmcl_jax.data.images.ventricles import CONVENTIONS

heart_volumes = pytest.importorskip("heart_volumes")

VOXEL = 1.5 * 1.5 * 8.0


def stack(frame):
    """[Z, H, W], apex first, as the reader gives it."""
    return heart_volumes.classes(frame).T[::-1]


def four(values):
    return values[:, None].astype(np.float32)


def test_conventions():
    assert ventricles.convention("acdc") == ventricles.Convention(3, 2, 1)
    own = ventricles.convention("lv=500, myo=205, rv=600")
    assert own == ventricles.Convention(500, 205, 600)
    assert ventricles.convention("lv=1,myo=2").rv is None
    for text in ("brats", "lv=1", "lv=1,myo=1", "lv=0,myo=2", "rv=1,myo=2,lv=3", ""):
        with pytest.raises(ValueError, match="expected one of acdc, mms, ukb, sunnybrook, or"):
            ventricles.convention(text)


def test_translation_gives_the_same_classes_for_every_convention():
    expected = stack(0)
    for convention in (CONVENTIONS["acdc"], CONVENTIONS["mms"], ventricles.Convention(9, 4, 7)):
        numbers = heart_volumes.renumber(
            expected, convention.lv, convention.myocardium, convention.rv
        )
        found = ventricles.translate(four(numbers), convention)
        np.testing.assert_array_equal(found[:, 0], expected)


@pytest.mark.parametrize(
    ("written", "said", "reason"),
    [
        ((3, 2, 1), "mms", "label 1 cannot be the left ventricle: .* [(]label 3: "),
        ((1, 2, 3), "acdc", "label 3 cannot be the left ventricle: .* [(]label 1: "),
        ((2, 1, 3), "ukb", r"label 1 cannot be the left ventricle: \d+% of its border is label 2"),
        ((1, 2, 3), "sunnybrook", "holds 3; the convention knows 0, 1, 2; see --labels"),
        ((1, 2, 4), "ukb", "holds 4; the convention knows 0, 1, 2, 3"),
        ((0, 2, 3), "ukb", "no voxel of the left ventricle [(]label 1[)]"),
    ],
)
def test_a_wrong_convention_is_named(written, said, reason):
    values = four(heart_volumes.renumber(stack(0), *written))
    with pytest.raises(ValueError, match=reason):
        ventricles.translate(values, CONVENTIONS[said])


def test_values_between_labels_are_refused():
    with pytest.raises(ValueError, match="holds 0.5, 1.5; the convention knows"):
        ventricles.translate(four(stack(0)) * 0.5, CONVENTIONS["ukb"])


def test_volumes_are_sums_of_voxels():
    ed, es = stack(heart_volumes.ED), stack(heart_volumes.ES)
    values, flags = ventricles.phenotypes(ed, es, spacing=(1.5, 1.5), distance=8.0, cycle=0.8)
    expected = {
        "LVEDV": (ed == 1).sum() * VOXEL / 1000,
        "LVESV": (es == 1).sum() * VOXEL / 1000,
        "LVM": (ed == 2).sum() * VOXEL / 1000 * 1.05,
        "RVEDV": (ed == 3).sum() * VOXEL / 1000,
        "RVESV": (es == 3).sum() * VOXEL / 1000,
    }
    expected["LVSV"] = expected["LVEDV"] - expected["LVESV"]
    expected["LVEF"] = 100 * expected["LVSV"] / expected["LVEDV"]
    expected["LVCO"] = expected["LVSV"] * 75 / 1000
    expected["RVSV"] = expected["RVEDV"] - expected["RVESV"]
    expected["RVEF"] = 100 * expected["RVSV"] / expected["RVEDV"]
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    thickness = {name for name in values if name.startswith("WT_")}
    assert thickness == {"WT_global", *(f"WT_{number}" for number in range(1, 17))}
    assert set(values) == thickness | set(expected)
    assert flags == ()


def test_what_cannot_be_told_is_left_out():
    ed, es = stack(heart_volumes.ED), stack(heart_volumes.ES)
    cavity, _ = ventricles.phenotypes(ed * (ed == 1), es * (es == 1), spacing=(1, 1), distance=1)
    assert set(cavity) == {"LVEDV", "LVESV", "LVSV", "LVEF"}
    left, _ = ventricles.phenotypes(ed * (ed < 3), es * (es == 1), spacing=(1, 1), distance=1)
    assert set(left) == {*cavity, "LVM", "WT_global"}
    still = np.where(es == 3, 0, es)
    still[ed == 3] = 3
    values, flags = ventricles.phenotypes(ed, still, spacing=(1, 1), distance=1)
    assert "RVEDV" not in values
    assert flags[-1].startswith("right ventricle left out: ")
    gap = ed.copy()
    gap[4] = 0
    _, flags = ventricles.phenotypes(gap, es, spacing=(1, 1), distance=1)
    assert "slices without a label amid those with one at ED: 1" in flags


def test_exchanged_and_absent_phases():
    ed, es = stack(heart_volumes.ED), stack(heart_volumes.ES)
    with pytest.raises(ValueError, match="ED and ES are exchanged"):
        ventricles.phenotypes(es, ed, spacing=(1, 1), distance=1)
    with pytest.raises(ValueError, match="no voxel of the left ventricle at ES"):
        ventricles.phenotypes(ed, es * 0, spacing=(1, 1), distance=1)
    with pytest.raises(ValueError, match="no voxel of the left ventricle at ED"):
        ventricles.phenotypes(ed * 0, es, spacing=(1, 1), distance=1)


@pytest.mark.parametrize("patient", ["SCD0000101", "SCD0000201", "SCD0000301"])
def test_real_volumes_agree_with_the_published_ones(recordings, patient):
    nibabel = pytest.importorskip("nibabel")
    nifti = pytest.importorskip("mmcl_jax.data.formats.nifti")
    folder = recordings / "sunnybrook"
    with open(folder / "summary.csv", newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["patient"] == patient]
    classes, counted = {}, {}
    for phase in ("ED", "ES"):
        path = folder / "nifti_derived" / f"{patient}_label_sa_{phase}.nii.gz"
        volume = nifti.read(path)
        classes[phase] = ventricles.translate(volume.values, CONVENTIONS["sunnybrook"])[:, 0]
        image = nibabel.load(path)
        voxel = abs(np.linalg.det(image.affine[:3, :3]))
        counted[phase] = (np.asanyarray(image.dataobj) == 1).sum() * voxel / 1000
    values, flags = ventricles.phenotypes(
        classes["ED"],
        classes["ES"],
        spacing=volume.spacing,
        distance=volume.distance,
        oriented=volume.oriented,
    )
    assert flags == ()
    assert values["LVEDV"] == pytest.approx(counted["ED"], rel=1e-5)
    assert values["LVESV"] == pytest.approx(counted["ES"], rel=1e-5)
    for name, column in (("LVEDV", "LV_EDV_ml"), ("LVESV", "LV_ESV_ml"), ("LVEF", "LVEF")):
        assert values[name] == pytest.approx(float(row[column]), rel=0.05)
