import gzip

import numpy as np
import pytest

from mmcl_jax.data.subject import RefusedRecord

nibabel = pytest.importorskip("nibabel")
heart_volumes = pytest.importorskip("heart_volumes")
nifti = pytest.importorskip("mmcl_jax.data.formats.nifti")


@pytest.fixture
def volume():
    return heart_volumes.pixels()


def test_values_sizes_and_order_of_slices(tmp_path, volume):
    path = heart_volumes.save(tmp_path / "a.nii.gz", volume)
    read = nifti.read(path)
    assert read.values.shape == (9, 1, 88, 96)
    assert read.values.dtype == np.float32
    # The base comes first in the file; the normal points from the apex to the base.
    expected = np.asanyarray(nibabel.load(path).dataobj)[:, :, ::-1]
    np.testing.assert_array_equal(read.values[:, 0], expected.T)
    np.testing.assert_allclose(read.spacing, (1.5, 1.5), rtol=1e-5)
    assert read.distance == pytest.approx(8.0, rel=1e-5)
    assert (read.oriented, read.cycle, read.flags) == (True, None, ())
    # The affine belongs to the voxels in their new order.
    index = np.array([10, 20, 2, 1])
    place = nibabel.load(path).affine @ (10, 20, 8 - 2, 1)
    np.testing.assert_allclose(read.affine @ index, place, atol=1e-3)


def test_slices_lie_along_the_normal_whichever_comes_first(tmp_path, volume):
    base_first = nifti.read(heart_volumes.save(tmp_path / "a.nii", volume))
    matrix = heart_volumes.affine(first_at_apex=True)
    apex_first = nifti.read(heart_volumes.save(tmp_path / "b.nii", volume[:, :, ::-1], matrix))
    np.testing.assert_array_equal(base_first.values, apex_first.values)


def test_rows_of_dcm2niix_can_be_reversed(tmp_path, volume):
    matrix = heart_volumes.affine()
    matrix[:3, 3] += matrix[:3, 1] * (volume.shape[1] - 1)
    matrix[:3, 1] *= -1
    path = heart_volumes.save(tmp_path / "a.nii", volume[:, ::-1], matrix)
    upside_down = nifti.read(path)
    assert upside_down.flags[0].startswith("rows run upwards")
    straight = nifti.read(path, reverse_rows=True)
    usual = nifti.read(heart_volumes.save(tmp_path / "b.nii", volume))
    assert straight.flags == ()
    np.testing.assert_array_equal(straight.values, usual.values)
    np.testing.assert_allclose(straight.affine, usual.affine, atol=1e-3)


def test_frames_scaling_and_cycle(tmp_path, volume):
    cine = np.stack([volume, volume + 1, volume + 2], axis=-1)
    image = nibabel.Nifti1Image(cine, heart_volumes.affine())
    image.header.set_slope_inter(0.5, 10.0)
    image.header.set_zooms((1.5, 1.5, 8.0, 300.0))
    image.header.set_xyzt_units("mm", "msec")
    path = tmp_path / "cine.nii.gz"
    nibabel.save(image, path)
    read = nifti.read(path)
    expected = nibabel.load(path).get_fdata()[:, :, ::-1]
    np.testing.assert_allclose(read.values, expected.transpose(2, 3, 1, 0), rtol=1e-6)
    assert read.cycle == pytest.approx(0.9)


def test_slices_that_lie_close_are_flagged(tmp_path, volume):
    matrix = heart_volumes.affine()
    matrix[:3, 2] /= 8
    read = nifti.read(heart_volumes.save(tmp_path / "a.nii", volume, matrix))
    assert read.flags == ("slices closer than those of a short-axis cine: 1.00 mm apart",)


def test_without_orientation(tmp_path, volume):
    read = nifti.read(heart_volumes.save(tmp_path / "a.nii", volume, np.diag([1.5, 1.5, 8, 1])))
    assert not read.oriented
    np.testing.assert_array_equal(read.values[:, 0], volume.T)


def test_trailing_dimensions_and_nifti2(tmp_path, volume):
    longer = nibabel.Nifti2Image(volume[..., None, None], heart_volumes.affine())
    nibabel.save(longer, tmp_path / "a.nii")
    assert nifti.read(tmp_path / "a.nii").values.shape == (9, 1, 88, 96)


def changed(volume, **fields):
    """A file whose header was edited afterwards."""
    content = nibabel.Nifti1Image(volume, heart_volumes.affine()).to_bytes()
    header = nibabel.Nifti1Header(content[:348])
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + content[348:]


def broken(kind, volume):
    content = nibabel.Nifti1Image(volume, heart_volumes.affine()).to_bytes()
    packed = gzip.compress(content, compresslevel=1)
    singular = heart_volumes.affine()
    singular[:3, 2] = singular[:3, 1]
    with_nan = volume.astype(np.float32)
    with_nan[3, 4, 5] = np.nan

    def image(data, matrix):
        return nibabel.Nifti1Image(data, matrix).to_bytes()

    wrong = bytearray(packed)
    wrong[-8] ^= 1
    return {
        "empty": b"",
        "text": b"subject,cmr\n" * 50,
        "truncated gz": packed[: len(packed) // 2],
        "checksum": bytes(wrong),
        "truncated": content[:-1000],
        "header only": content[:200],
        "two dimensions": image(volume[:, :, 0], heart_volumes.affine()),
        "slices first": image(volume.transpose(2, 0, 1), heart_volumes.affine()),
        "five dimensions": image(np.stack([volume[..., None]] * 2, -1), heart_volumes.affine()),
        "nan": image(with_nan, heart_volumes.affine()),
        "singular": changed(volume, srow_z=[0, 0, 0, 0]),
        "no number": changed(volume, srow_x=[np.nan, 0, 0, 0]),
        "sizes": changed(volume, pixdim=[1, 1.0, 1.0, 1.0, 0, 0, 0, 0]),
        "metres": changed(volume, xyzt_units=1),
        "large pixels": image(volume, np.diag([20.0, 20.0, 8.0, 1.0])),
        "colours": image(np.zeros((40, 40, 4), [(c, "u1") for c in "RGB"]), np.eye(4)),
        "huge": changed(volume, dim=[3, 32000, 32000, 32000, 1, 1, 1, 1]),
        "no dimensions": changed(volume, dim=[9, 1, 1, 1, 1, 1, 1, 1]),
        "negative": changed(volume, dim=[3, -96, 88, 9, 1, 1, 1, 1]),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "the file is empty"),
        ("text", "not a NIfTI file"),
        ("truncated gz", "damaged gzip file"),
        ("checksum", "damaged gzip file"),
        ("truncated", r"truncated: \d+ bytes expected from the header, \d+ found"),
        ("header only", "unreadable NIfTI header"),
        ("two dimensions", "dimensions 96 x 88, expected columns x rows x slices"),
        ("slices first", "dimensions 9 x 96 x 88, expected at least 32 columns and rows at first"),
        ("five dimensions", "dimensions 96 x 88 x 9 x 1 x 2, expected"),
        ("nan", "1 voxels are NaN or infinite"),
        ("singular", "the affine is not invertible"),
        ("no number", "the affine is not invertible"),
        ("sizes", "voxels of 1 x 1 x 1 mm by pixdim, of 1.5 x 1.5 x 8 mm by the affine"),
        ("metres", "unit of length is meter, expected mm"),
        ("large pixels", "voxels of 20 x 20 x 8 mm, expected pixels of 0.3 to 6 mm"),
        ("colours", "expected one number per voxel"),
        ("huge", "truncated"),
        ("no dimensions", "dimension|header"),
        ("negative", "dimension|truncated|header"),
    ],
)
def test_broken_files(tmp_path, volume, kind, reason):
    path = tmp_path / "broken.nii.gz"
    path.write_bytes(broken(kind, volume))
    with pytest.raises(RefusedRecord, match=reason) as caught:
        nifti.read(path)
    assert caught.value.path == str(path)


def test_absent_files_and_folders(tmp_path):
    with pytest.raises(RefusedRecord, match="the file is absent"):
        nifti.read(tmp_path / "none.nii")
    with pytest.raises(RefusedRecord, match="cannot be read: it is no file"):
        nifti.read(tmp_path)


@pytest.mark.parametrize(
    ("patient", "zipped", "ed", "es"),
    [
        ("SCD0000101", "SCD0000101_sax_full", 18, 7),
        ("SCD0000201", "SCD0000201_sax_3slices", 19, 6),
        ("SCD0000301", "SCD0000301_sax_3slices", 19, 6),
    ],
)
def test_real_volumes_show_the_pixels_of_the_dicom_files(recordings, patient, zipped, ed, es):
    cine = pytest.importorskip("mmcl_jax.data.images.cine")
    folder = recordings / "sunnybrook"
    dicom = cine.read_zip(folder / "dicom_zip" / f"{zipped}.zip")
    for phase, frame in (("ED", ed), ("ES", es)):
        path = folder / "nifti_derived" / f"{patient}_sa_{phase}.nii.gz"
        volume = nifti.read(path)
        # Positions along the same normal; of two patients only some slices are in the zip.
        affine = volume.affine
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        start = normal @ affine[:3, 3] / np.linalg.norm(normal)
        numbers = (np.array(dicom.positions) - start) / volume.distance
        np.testing.assert_allclose(numbers, np.rint(numbers), atol=0.02)
        chosen = volume.values[np.rint(numbers).astype(int), 0]
        np.testing.assert_array_equal(chosen, dicom.pixels[:, frame])
    np.testing.assert_allclose(np.mean(volume.spacing), dicom.spacing, rtol=1e-4)
    assert volume.oriented


def test_zeros_that_unpack_to_far_too_much(tmp_path, volume, monkeypatch):
    path = heart_volumes.save(tmp_path / "a.nii.gz", volume)
    monkeypatch.setattr(nifti, "_MAX_VOXELS", 88 * 96 * 9 - 1)
    with pytest.raises(RefusedRecord, match="76,032 voxels, more than a cine can need"):
        nifti.read(path)
