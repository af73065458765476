import io
import warnings
import zipfile

import numpy as np
import phantom
import pytest

from mmcl_jax.data.subject import RefusedRecord

pydicom = pytest.importorskip("pydicom")
cine = pytest.importorskip("mmcl_jax.data.cine")

ORIENTATION = [0.8, 0.6, 0.0, 0.0, 0.0, -1.0]
NORMAL = np.cross(ORIENTATION[:3], ORIENTATION[3:])


def dicom(pixels, place, frame, **fields):
    """Bytes of one MR image, `place` mm along the normal."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    image = pydicom.Dataset()
    image.file_meta = meta
    image.SOPClassUID = meta.MediaStorageSOPClassUID
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    image.SeriesInstanceUID = "1.2.3"
    image.SeriesNumber = 5
    image.ImageOrientationPatient = ORIENTATION
    image.ImagePositionPatient = [round(value, 4) for value in place * NORMAL]
    image.PixelSpacing = [1.8, 1.8]
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 0
    image.TriggerTime = 10.0 + 40 * frame
    image.InstanceNumber = frame + 1
    image.PixelData = pixels.astype("<u2").tobytes()
    for name, value in fields.items():
        if value is None:
            delattr(image, name)
        else:
            setattr(image, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, image, enforce_file_format=True)
    return buffer.getvalue()


def stack(slices=3, frames=4, **fields):
    """Images whose first pixel is 100 * slice + frame; names say nothing about the order."""
    images = []
    for place in range(slices):
        for frame in range(frames):
            pixels = np.full((6, 5), 100 * place + frame)
            images.append(dicom(pixels, 8.0 * place, frame, **fields))
    return images


def write(path, contents, seed=0):
    order = np.random.default_rng(seed).permutation(len(contents))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, position in enumerate(order):
            archive.writestr(f"{number}.dcm", contents[position])
    return path


def first_pixels(found):
    return found.pixels[:, :, 0, 0].tolist()


EXPECTED = [[100 * place + frame for frame in range(4)] for place in range(3)]


@pytest.mark.parametrize("seed", [0, 1])
def test_order_comes_from_place_and_time(tmp_path, seed):
    found = cine.read_zip(write(tmp_path / "a.zip", stack(), seed))
    assert first_pixels(found) == EXPECTED
    assert found.positions == (0.0, 8.0, 16.0)
    assert found.spacing == pytest.approx(1.8)
    assert found.flags == ("few slices: 3",)


def test_trigger_time_precedes_the_instance_number(tmp_path):
    images = [dicom(np.full((6, 5), t), 0.0, t, InstanceNumber=9 - t) for t in range(4)]
    assert first_pixels(cine.read_zip(write(tmp_path / "a.zip", images))) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("trigger", [None, 0.0])
def test_instance_number_where_times_say_nothing(tmp_path, trigger):
    found = cine.read_zip(write(tmp_path / "a.zip", stack(TriggerTime=trigger)))
    assert first_pixels(found) == EXPECTED


def test_no_order_is_refused(tmp_path):
    path = write(tmp_path / "a.zip", stack(TriggerTime=None, InstanceNumber=None))
    with pytest.raises(RefusedRecord, match="neither distinct trigger times nor instance numbers"):
        cine.read_zip(path)


def test_eight_slices_need_no_remark(tmp_path):
    assert cine.read_zip(write(tmp_path / "a.zip", stack(slices=8))).flags == ()


def test_other_planes_and_files_are_not_read(tmp_path):
    others = [
        b"participant,series\n1,2\n",
        dicom(np.full((6, 5), 9), 4.0, 0, ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        dicom(np.full((6, 5), 9), 4.0, 0, ImagePositionPatient=None),
        dicom(np.full((6, 5), 9), 8.0, 9, SeriesDescription="CINE_segmented_SAX_InlineVF"),
    ]
    found = cine.read_zip(write(tmp_path / "a.zip", stack() + others))
    assert first_pixels(found) == EXPECTED
    assert found.flags == ("few slices: 3",)


def test_a_slice_with_other_frames_is_left_out(tmp_path):
    extra = [dicom(np.full((6, 5), 9), 24.0, frame) for frame in range(2)]
    found = cine.read_zip(write(tmp_path / "a.zip", stack() + extra))
    assert first_pixels(found) == EXPECTED
    assert found.flags[0] == "slices left out: 1 of other size or number of frames"


def test_a_repeated_slice_comes_from_its_last_series(tmp_path):
    again = [
        dicom(np.full((6, 5), 900 + t), 8.0, t, SeriesNumber=7, SeriesInstanceUID="1.2.4")
        for t in range(4)
    ]
    found = cine.read_zip(write(tmp_path / "a.zip", stack() + again))
    assert first_pixels(found) == [EXPECTED[0], [900, 901, 902, 903], EXPECTED[2]]


def test_rescale_slope_and_intercept(tmp_path):
    path = write(tmp_path / "a.zip", stack(RescaleSlope=2, RescaleIntercept=-5))
    assert first_pixels(cine.read_zip(path))[1] == [195, 197, 199, 201]


def test_damaged_zips_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    with pytest.raises(RefusedRecord, match="the zip is absent"):
        cine.read_zip(path)
    path.write_bytes(b"PK no zip")
    with pytest.raises(RefusedRecord, match="not a readable zip"):
        cine.read_zip(path)
    write(path, stack())
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(RefusedRecord, match=r"not a readable zip|in the zip"):
        cine.read_zip(path)
    write(path, [b"no image"])
    with pytest.raises(RefusedRecord, match="no MR image with a position"):
        cine.read_zip(path)


def test_a_truncated_image_is_refused(tmp_path):
    images = stack()
    images[3] = images[3][:-20]
    with pytest.raises(RefusedRecord, match=r"\.dcm in the zip"):
        cine.read_zip(write(tmp_path / "a.zip", images))


def test_a_zip_too_large_for_a_cine_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cine, "_MAX_TOTAL", 5000)
    with pytest.raises(RefusedRecord, match="more than a cine can need"):
        cine.read_zip(write(tmp_path / "a.zip", stack()))


def test_a_phantom_comes_back_unchanged(tmp_path):
    pixels = np.rint(phantom.cine())
    images = [dicom(frame, 0.0, number) for number, frame in enumerate(pixels)]
    np.testing.assert_array_equal(
        cine.read_zip(write(tmp_path / "a.zip", images)).pixels[0], pixels
    )


def test_real_zips_without_a_warning(recordings):
    folder = recordings / "sunnybrook" / "dicom_zip"
    with warnings.catch_warnings():
        # Some identifiers of these files break the standard.
        warnings.simplefilter("error")
        found = cine.read_zip(folder / "SCD0000201_sax_3slices.zip")
    assert found.pixels.shape == (3, 20, 256, 256)
    assert found.spacing == pytest.approx(1.367188)
    # Slices 3, 6 and 9 of a stack with 10 mm between slices.
    np.testing.assert_allclose(np.diff(found.positions), 30.0, atol=0.1)
