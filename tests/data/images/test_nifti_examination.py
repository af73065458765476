import dataclasses

import numpy as np
import pytest

from mmcl_jax.data.images import cmr, short_axis, ventricles
from mmcl_jax.data.subject import RefusedRecord

heart_volumes = pytest.importorskip("heart_volumes")
examination = pytest.importorskip("mmcl_jax.data.images.nifti_examination")

ED, ES, MIDDLE = heart_volumes.ED, heart_volumes.ES, 4
LABELLED = examination.Options(labels=ventricles.CONVENTIONS["ukb"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cine and its phases, with label maps, as the UK Biobank pipeline writes them."""
    folder = tmp_path_factory.mktemp("nifti")
    heart_volumes.save(folder / "sa.nii", heart_volumes.cycle(heart_volumes.pixels))
    heart_volumes.save(folder / "seg_sa.nii", heart_volumes.cycle(heart_volumes.classes))
    for phase, frame in (("ED", ED), ("ES", ES)):
        heart_volumes.save(folder / f"sa_{phase}.nii.gz", heart_volumes.pixels(frame))
        heart_volumes.save(folder / f"label_sa_{phase}.nii.gz", heart_volumes.classes(frame))
    return folder


def shown(frame):
    """The middle slice as rows and columns."""
    return heart_volumes.pixels(frame)[:, :, MIDDLE].T.astype(np.float32)


def pair(folder, labels=True):
    files = examination.Files(ed=folder / "sa_ED.nii.gz", es=folder / "sa_ES.nii.gz")
    if not labels:
        return files
    return dataclasses.replace(
        files,
        ed_labels=folder / "label_sa_ED.nii.gz",
        es_labels=folder / "label_sa_ES.nii.gz",
    )


def box_of_mask():
    left = np.isin(heart_volumes.classes(ED)[:, :, MIDDLE].T, (1, 2))
    return cmr.box_around_mask(left)


def test_a_labelled_cycle(folder):
    files = examination.Files(cine=folder / "sa.nii", cine_labels=folder / "seg_sa.nii")
    found = examination.prepare(files, LABELLED)
    np.testing.assert_array_equal(found.image, cmr.stack_frames(shown(ES), shown(2), shown(ED)))
    assert found.box == box_of_mask()
    assert found.flags == (
        "phases by cavity of the label map: ES 4, mid 2, ED 0 of 8 frames counted from 0",
        "pixel size kept: 1.50 mm, UK Biobank has 1.8 mm",
    )
    voxel = 1.5 * 1.5 * 8 / 1000
    assert found.labels["LVEDV"] == pytest.approx((heart_volumes.classes(ED) == 1).sum() * voxel)
    assert found.labels["LVESV"] == pytest.approx((heart_volumes.classes(ES) == 1).sum() * voxel)
    assert {"LVM", "RVEF", "WT_16", "WT_global"} <= set(found.labels)


def test_label_maps_of_two_frames_only(folder, tmp_path):
    sparse = heart_volumes.cycle(heart_volumes.classes)
    sparse[..., [i for i in range(8) if i not in (ED, ES)]] = 0
    labels = heart_volumes.save(tmp_path / "a_sa_gt.nii", sparse)
    files = examination.Files(folder / "sa.nii", labels, ed_frame=0, es_frame=3)
    found = examination.prepare(files, LABELLED)
    assert "ES 4, mid 2, ED 0" in found.flags[0]
    assert found.flags[1] == "phases of the data set differ: ED 0, ES 3"
    sparse[..., ES] = 0
    labels = heart_volumes.save(tmp_path / "b_sa_gt.nii", sparse)
    with pytest.raises(RefusedRecord, match="labelled in frame 0 only, not at ED and ES"):
        examination.prepare(dataclasses.replace(files, cine_labels=labels), LABELLED)


def test_phases_are_found_in_the_cine(folder):
    files = dataclasses.replace(pair(folder), cine=folder / "sa.nii")
    found = examination.prepare(files, LABELLED)
    np.testing.assert_array_equal(found.image, cmr.stack_frames(shown(ES), shown(2), shown(ED)))
    assert found.flags[0].startswith("phases by the data set: ES 4, mid 2, ED 0")
    assert "LVEF" in found.labels
    assert examination.prepare(files, examination.Options()).labels == {}


def test_clipped_phases_are_found_all_the_same(folder, tmp_path):
    clipped = heart_volumes.pixels(ES)
    clipped = np.minimum(clipped, np.quantile(clipped, 0.99).astype(np.int16))
    files = dataclasses.replace(
        pair(folder, labels=False),
        cine=folder / "sa.nii",
        es=heart_volumes.save(tmp_path / "sa_ES.nii", clipped),
    )
    assert "ES 4" in examination.prepare(files, examination.Options()).flags[0]
    other = heart_volumes.save(tmp_path / "other.nii", heart_volumes.pixels(ES) + 100)
    with pytest.raises(RefusedRecord, match="no frame of the cine is this volume"):
        examination.prepare(dataclasses.replace(files, es=other), examination.Options())


def test_frames_of_a_data_set_are_taken(folder):
    files = examination.Files(cine=folder / "sa.nii", ed_frame=7, es_frame=3)
    found = examination.prepare(files, examination.Options())
    assert found.flags[0].startswith("phases by the data set: ES 3, mid 1, ED 7")
    np.testing.assert_array_equal(found.image, cmr.stack_frames(shown(3), shown(1), shown(7)))
    with pytest.raises(RefusedRecord, match="ED is frame 0 and ES frame 8, expected two of 8"):
        examination.prepare(
            dataclasses.replace(files, ed_frame=0, es_frame=8), examination.Options()
        )


def test_a_cine_alone_is_treated_as_one_from_dicom(folder):
    found = examination.prepare(
        examination.Files(cine=folder / "sa.nii"), examination.Options(labels=None)
    )
    pixels = heart_volumes.cycle(heart_volumes.pixels)[:, :, ::-1].transpose(2, 3, 1, 0)
    pixels = np.ascontiguousarray(pixels, np.float32)
    cine = short_axis.Cine(pixels, tuple(8.0 * np.arange(9)), 1.5, ())
    image, box, flags = short_axis.prepare("a", cine)
    np.testing.assert_array_equal(found.image, image)
    assert (found.box, found.flags, found.labels) == (box, flags, {})


def test_a_pair_has_no_mid_frame(folder):
    with pytest.raises(RefusedRecord, match="no mid frame: only ED and ES, no cine; --mid says"):
        examination.prepare(pair(folder), LABELLED)
    ed, es = shown(ED), shown(ES)
    for mid, frame, named in (
        ("mean", (ed + es) / 2, "the mean of ED and ES"),
        ("ed", ed, "ED"),
        ("es", es, "ES"),
    ):
        found = examination.prepare(pair(folder), dataclasses.replace(LABELLED, mid=mid))
        np.testing.assert_array_equal(found.image, cmr.stack_frames(es, frame, ed))
        assert found.flags[0] == f"no mid frame: {named} stands for it"
        assert found.box == box_of_mask()
    with pytest.raises(ValueError, match="mid is 'none', expected one of refuse, mean, ed, es"):
        examination.Options(mid="none")


def test_without_label_maps_the_ventricle_is_searched(folder):
    options = examination.Options(mid="mean")
    found = examination.prepare(pair(folder, labels=False), options)
    top, left, height, width = found.box
    rows, columns = cmr.offset((88, 96))
    assert (height, width) == (94, 94)  # 140 mm
    assert abs(top + 47 - (42 + rows)) <= 3
    assert abs(left + 47 - (50 + columns)) <= 3
    assert found.labels == {}


def test_the_slice_follows_the_labels(folder, tmp_path):
    files = {}
    for phase, frame in (("ed", ED), ("es", ES)):
        few = heart_volumes.classes(frame)
        few[:, :, 3:] = 0
        files[f"{phase}_labels"] = heart_volumes.save(tmp_path / f"{phase}.nii", few)
    options = dataclasses.replace(LABELLED, mid="mean")
    found = examination.prepare(dataclasses.replace(pair(folder), **files), options)
    # The base is last along the normal, so that slice 1 of the file is number 8 of 9.
    assert "no left ventricle in the middle slice: slice 8 is taken" in found.flags
    ed, es = (heart_volumes.pixels(f)[:, :, 1].T.astype(np.float32) for f in (ED, ES))
    np.testing.assert_array_equal(found.image, cmr.stack_frames(es, (ed + es) / 2, ed))


def moved(kind):
    volume, matrix = heart_volumes.classes(ED), heart_volumes.affine()
    if kind == "other shape":
        return volume[:, :, 1:], matrix
    if kind == "mirrored":
        matrix[:3, 0] *= -1
    if kind == "other size":
        matrix[:3, :2] *= 1.2
    if kind == "frames":
        return np.stack([volume] * 2, axis=-1), matrix
    if kind == "acdc":
        volume = heart_volumes.renumber(volume, 3, 2, 1)
    if kind == "empty":
        volume = volume * 0
    return volume, matrix


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("other shape", r"96 x 88 x 8 voxels [(]columns x rows x slices[)], the image has 96 x 88"),
        ("mirrored", "another size or direction by the affine than those of the image"),
        ("other size", "another size or direction by the affine than those of the image"),
        ("frames", "2 frames, the image has 1"),
        ("acdc", "label 1 cannot be the left ventricle"),
        ("empty", "no voxel of the left ventricle"),
    ],
)
def test_label_maps_that_do_not_fit(folder, tmp_path, kind, reason):
    path = heart_volumes.save(tmp_path / "label_sa_ED.nii", *moved(kind))
    files = dataclasses.replace(pair(folder), ed_labels=path)
    with pytest.raises(RefusedRecord, match=reason) as caught:
        examination.prepare(files, dataclasses.replace(LABELLED, mid="mean"))
    assert caught.value.path == str(path)


def test_files_that_lie_apart_are_flagged(folder, tmp_path):
    matrix = heart_volumes.affine()
    matrix[:3, 3] += 5.0
    path = heart_volumes.save(tmp_path / "label.nii", heart_volumes.classes(ED), matrix)
    files = dataclasses.replace(pair(folder), ed_labels=path)
    found = examination.prepare(files, dataclasses.replace(LABELLED, mid="mean"))
    assert "files apart by their affines, voxels are matched by number: 8.7 mm" in found.flags


def test_incomplete_and_contradictory_files(folder, tmp_path):
    options = dataclasses.replace(LABELLED, mid="mean")

    def refused(reason, **changes):
        with pytest.raises(RefusedRecord, match=reason):
            examination.prepare(dataclasses.replace(pair(folder), **changes), options)

    refused("the volume of ES is absent, and there is no cine", es=None)
    refused("the volume of ED is absent, and there is no cine", ed=None)
    refused("the label map of ES is absent", es_labels=None)
    refused("the file is absent", es=tmp_path / "sa_ES.nii.gz")
    refused("ED and ES are the same volume", es=folder / "sa_ED.nii.gz")
    refused("8 frames, expected a single one", ed=folder / "sa.nii", es=folder / "sa.nii")
    refused("expected a cycle|1 frames in a cycle", cine=folder / "sa_ED.nii.gz")
    refused(
        "ED and ES are exchanged",
        ed_labels=folder / "label_sa_ES.nii.gz",
        es_labels=folder / "label_sa_ED.nii.gz",
    )
    refused(
        "nothing says which frames of the cine the label maps belong to",
        cine=folder / "sa.nii",
        ed=None,
        es=None,
    )
    thin = heart_volumes.save(tmp_path / "thin.nii", heart_volumes.pixels(ES)[:, :, 1:])
    refused("96 x 88 x 8 voxels .*, the volume of ED has 96 x 88 x 9", es=thin)
