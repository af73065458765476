import io
import warnings
import zipfile

import numpy as np
import phantom
import pytest

from mmcl_jax.data.subject import RefusedRecord

pydicom = pytest.importorskip("pydicom")
made_dicom = pytest.importorskip("made_dicom")
cine = pytest.importorskip("mmcl_jax.data.images.cine")
dicom, write_zip = made_dicom.dicom, made_dicom.write_zip


def stack(slices=3, frames=4, **fields):
    """Images whose first pixel is 100 * slice + frame."""
    return [
        dicom(np.full((6, 5), 100 * place + frame), 8.0 * place, frame, **fields)
        for place in range(slices)
        for frame in range(frames)
    ]


def first_pixels(found):
    return found.pixels[:, :, 0, 0].tolist()


EXPECTED = [[100 * place + frame for frame in range(4)] for place in range(3)]


@pytest.mark.parametrize("seed", [0, 1])
def test_order_comes_from_place_and_time(tmp_path, seed):
    found = cine.read_zip(write_zip(tmp_path / "a.zip", stack(), seed))
    assert first_pixels(found) == EXPECTED
    assert found.positions == (0.0, 8.0, 16.0)
    assert found.spacing == pytest.approx(1.8)
    assert found.flags == ("few slices: 3",)


@pytest.mark.parametrize("layout", ["siemens", "ge"])
@pytest.mark.parametrize("reverse", [False, True])
def test_layouts_of_manufacturers(tmp_path, layout, reverse):
    pixels = np.rint([phantom.cine(frames=5, shape=(40, 48), seed=seed) for seed in range(8)])
    gap = -9.0 if reverse else 9.0
    contents = getattr(made_dicom, layout)(pixels, gap)
    found = cine.read_zip(write_zip(tmp_path / "a.zip", contents))
    np.testing.assert_array_equal(found.pixels, pixels[::-1] if reverse else pixels)
    np.testing.assert_allclose(np.diff(found.positions), 9.0)
    assert found.flags == ()


def test_an_enhanced_file(tmp_path):
    pixels = np.rint([phantom.cine(frames=5, shape=(40, 48), seed=seed) for seed in range(8)])
    image = made_dicom.enhanced(pixels)
    found = cine.read_zip(write_zip(tmp_path / "a.zip", [made_dicom.saved(image)]))
    np.testing.assert_array_equal(found.pixels, 2 * pixels - 1)
    np.testing.assert_allclose(found.positions, 8.0 * np.arange(8))
    assert found.flags == ()


def test_several_frames_without_a_place_each_are_refused(tmp_path):
    image = made_dicom.enhanced(np.ones((2, 3, 6, 5)))
    del image.PerFrameFunctionalGroupsSequence
    path = write_zip(tmp_path / "a.zip", [made_dicom.saved(image)])
    with pytest.raises(RefusedRecord, match="it holds 1 of several frames without the place of"):
        cine.read_zip(path)


def test_trigger_time_precedes_the_instance_number(tmp_path):
    images = [dicom(np.full((6, 5), t), 0.0, t, InstanceNumber=9 - t) for t in range(4)]
    assert first_pixels(cine.read_zip(write_zip(tmp_path / "a.zip", images))) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("trigger", [None, 0.0, ""])
def test_instance_number_where_times_say_nothing(tmp_path, trigger):
    found = cine.read_zip(write_zip(tmp_path / "a.zip", stack(TriggerTime=trigger)))
    assert first_pixels(found) == EXPECTED


def test_no_order_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", stack(TriggerTime=None, InstanceNumber=None))
    with pytest.raises(RefusedRecord, match="neither distinct trigger times nor instance numbers"):
        cine.read_zip(path)


def test_two_acquisitions_in_one_series_are_refused(tmp_path):
    images = [
        dicom(np.full((6, 5), t), 0.0, t, InstanceNumber=4 * acquisition + t)
        for acquisition in range(2)
        for t in range(4)
    ]
    with pytest.raises(RefusedRecord, match="8 frames of a slice have 4 different trigger times"):
        cine.read_zip(write_zip(tmp_path / "a.zip", images))


def test_eight_slices_need_no_remark(tmp_path):
    assert cine.read_zip(write_zip(tmp_path / "a.zip", stack(slices=8))).flags == ()


def test_a_missing_slice_and_odd_pixels_are_remarked(tmp_path):
    images = stack(slices=10, frames=3, PixelSpacing=[1.5, 1.8])
    del images[12:15]
    assert cine.read_zip(write_zip(tmp_path / "a.zip", images)).flags == (
        "a slice is missing: a gap of 16.0 mm, 8.0 mm elsewhere",
        "pixels are not square: 1.50 x 1.80 mm",
    )


def test_what_is_left_out_is_listed(tmp_path):
    others = [
        b"no image",
        dicom(np.full((6, 5), 9), 4.0, 0, ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        dicom(np.full((6, 5), 9), 4.0, 0, ImagePositionPatient=None),
        dicom(np.full((6, 5), 9), 4.0, 0, ImageOrientationPatient=[0, 0, 0, 0, 0, 0]),
        dicom(np.full((6, 5), 9), 4.0, 0, PixelSpacing=[0, 0]),
        dicom(np.full((6, 5), 9), 8.0, 9, SeriesDescription="CINE_segmented_SAX_InlineVF"),
        dicom(np.full((6, 5), 9), 8.0, 9, ImageType=["ORIGINAL", "PRIMARY", "P", "ND"]),
        dicom(np.full((6, 5), 9), 8.0, 9, PixelData=None),
        dicom(np.full((6, 5), 9), 8.0, 9, PhotometricInterpretation="MONOCHROME1"),
    ]
    path = write_zip(tmp_path / "a.zip", stack() + others)
    with zipfile.ZipFile(path, "a") as archive:
        # The published files spell it in both ways.
        archive.writestr("manifest.csv", "patientid,seriesid\n")
        archive.writestr("manifest.cvs", "patientid,seriesid\n")
        archive.writestr("inner.zip", path.read_bytes())
    found = cine.read_zip(path)
    assert first_pixels(found) == EXPECTED
    assert found.flags == (
        "files of the zip left out: 1 not DICOM, 1 not grey images (MONOCHROME2), "
        "1 not magnitude images, 1 of other planes, 1 with contours drawn in (InlineVF), "
        "1 without pixels, 3 without position, orientation or pixel size, "
        "1 zips within the zip, not opened",
        "few slices: 3",
    )


def test_a_slice_with_other_frames_is_left_out(tmp_path):
    extra = [dicom(np.full((6, 5), 9), 24.0, frame) for frame in range(2)]
    found = cine.read_zip(write_zip(tmp_path / "a.zip", stack() + extra))
    assert first_pixels(found) == EXPECTED
    assert found.flags[0] == "slices left out: 1 of other size or number of frames"


def test_a_repeated_slice_comes_from_its_last_series(tmp_path):
    again = [
        dicom(np.full((6, 5), 900 + t), 8.0, t, SeriesNumber=7, SeriesInstanceUID="1.2.4")
        for t in range(4)
    ]
    found = cine.read_zip(write_zip(tmp_path / "a.zip", stack() + again))
    assert first_pixels(found) == [EXPECTED[0], [900, 901, 902, 903], EXPECTED[2]]


def test_no_image_is_refused_with_what_there_is(tmp_path):
    path = write_zip(tmp_path / "a.zip", [b"no image", b"PK\x03\x04"])
    with pytest.raises(
        RefusedRecord, match="no MR image with a position .* 1 not DICOM, 1 zips within the zip"
    ):
        cine.read_zip(path)
    with pytest.raises(RefusedRecord, match="it holds 12 without position"):
        cine.read_zip(write_zip(path, stack(ImagePositionPatient=None)))
    with pytest.raises(RefusedRecord, match="it holds no file"):
        cine.read_zip(write_zip(path, []))


def test_a_stack_too_large_for_a_cine_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cine, "_MAX_PIXELS", 300)
    with pytest.raises(RefusedRecord, match="3 slices of 4 frames of .6, 5., more than a cine"):
        cine.read_zip(write_zip(tmp_path / "a.zip", stack()))


def test_real_zips_agree_with_pydicom(recordings):
    path = recordings / "sunnybrook" / "dicom_zip" / "SCD0000201_sax_3slices.zip"
    with warnings.catch_warnings():
        # Some identifiers of these files break the standard.
        warnings.simplefilter("error")
        found = cine.read_zip(path)
    assert found.pixels.shape == (3, 20, 256, 256)
    assert found.spacing == pytest.approx(1.367188)
    # Slices 3, 6 and 9 of a stack with 10 mm between slices.
    np.testing.assert_allclose(np.diff(found.positions), 30.0, atol=0.1)

    images = {}
    with warnings.catch_warnings(), zipfile.ZipFile(path) as archive:
        warnings.simplefilter("ignore")
        for name in archive.namelist():
            image = pydicom.dcmread(io.BytesIO(archive.read(name)))
            images[float(image.SliceLocation), float(image.TriggerTime)] = image.pixel_array
    expected = np.array([images[key] for key in sorted(images)]).reshape(3, 20, 256, 256)
    middle = found.pixels[1]
    np.testing.assert_array_equal(middle, expected[1])
    # The stack may run along SliceLocation or against it.
    assert any(np.array_equal(found.pixels, way) for way in (expected, expected[::-1]))


@pytest.mark.parametrize("patient", ["SCD0000101_sax_full", "SCD0000301_sax_3slices"])
def test_real_stacks_agree_with_their_nifti_volumes(recordings, patient):
    nibabel = pytest.importorskip("nibabel")
    folder = recordings / "sunnybrook"
    found = cine.read_zip(folder / "dicom_zip" / f"{patient}.zip")
    volume = nibabel.load(folder / "nifti_derived" / f"{patient[:10]}_sa_ED.nii.gz")
    voxels = np.asarray(volume.dataobj).transpose(2, 1, 0)
    ed = found.pixels[:, {"SCD0000101": 18, "SCD0000301": 19}[patient[:10]]]
    # Every slice of the zip is one of the volume, in the same or in reversed order.
    order = [
        int(np.flatnonzero([np.array_equal(frame, other) for other in voxels])[0]) for frame in ed
    ]
    steps = np.diff(order)
    assert (steps > 0).all() or (steps < 0).all()


def test_frames_of_different_size_are_no_cine(tmp_path):
    contents = stack()
    contents[1] = dicom(np.zeros((4, 5)), 0.0, 1)
    contents[5] = dicom(np.zeros((4, 5)), 8.0, 1)
    with pytest.raises(RefusedRecord, match="the frames of a slice have 2 different sizes"):
        cine.read_zip(write_zip(tmp_path / "a.zip", contents))


def test_pixels_of_an_impossible_size(tmp_path):
    contents = stack(PixelSpacing=[50, 50])
    with pytest.raises(RefusedRecord, match="pixels of 50 x 50 mm, expected 0.3 to 6 mm"):
        cine.read_zip(write_zip(tmp_path / "a.zip", contents))


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
def test_trigger_times_that_are_no_numbers_give_way_to_instance_numbers(tmp_path):
    contents = stack(TriggerTime="nan")
    assert first_pixels(cine.read_zip(write_zip(tmp_path / "a.zip", contents, 3))) == EXPECTED
