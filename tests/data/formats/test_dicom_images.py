import io
import zipfile

import numpy as np
import pytest

from mmcl_jax.data.subject import RefusedRecord

pydicom = pytest.importorskip("pydicom")
made_dicom = pytest.importorskip("made_dicom")
dicom_images = pytest.importorskip("mmcl_jax.data.formats.dicom_images")
dicom, write_zip = made_dicom.dicom, made_dicom.write_zip

PIXELS = np.arange(30).reshape(6, 5)


def decoded(path):
    (image,), _ = dicom_images.read_zip(path)
    return dicom_images.decode(path, image)


def test_pixels_agree_with_pydicom(tmp_path):
    content = dicom(PIXELS, 0.0, 0, RescaleSlope=2.5, RescaleIntercept=-7, PixelRepresentation=1)
    expected = pydicom.dcmread(io.BytesIO(content)).pixel_array * 2.5 - 7
    found = decoded(write_zip(tmp_path / "a.zip", [content]))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("syntax", [pydicom.uid.RLELossless, pydicom.uid.ImplicitVRLittleEndian])
def test_other_transfer_syntaxes(tmp_path, syntax):
    image = pydicom.dcmread(io.BytesIO(dicom(PIXELS, 0.0, 0)))
    if syntax.is_compressed:
        image.compress(syntax)
    else:
        image.file_meta.TransferSyntaxUID = syntax
    np.testing.assert_array_equal(
        decoded(write_zip(tmp_path / "a.zip", [made_dicom.saved(image)])), PIXELS
    )


@pytest.mark.parametrize(
    ("syntax", "reason"),
    [
        (pydicom.uid.JPEGLSLossless, r"JPEG-LS Lossless .* \(1\.2\.840\.10008\.1\.2\.4\.80\)"),
        (pydicom.uid.MPEG2MPML, "which is not supported"),
    ],
)
def test_no_decoder_is_a_refusal_that_names_the_syntax(tmp_path, monkeypatch, syntax, reason):
    image = pydicom.dcmread(io.BytesIO(dicom(PIXELS, 0.0, 0)))
    image.file_meta.TransferSyntaxUID = syntax
    image.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    image["PixelData"].VR = "OB"
    path = write_zip(tmp_path / "a.zip", [made_dicom.saved(image)])
    if syntax == pydicom.uid.JPEGLSLossless:
        decoder = dicom_images.pydicom_pixels.get_decoder(syntax)
        monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(RefusedRecord, match=reason):
        decoded(path)


def test_a_damaged_compressed_image_is_refused(tmp_path):
    image = pydicom.dcmread(io.BytesIO(dicom(PIXELS, 0.0, 0)))
    image.compress(pydicom.uid.RLELossless)
    content = made_dicom.saved(image).replace(
        b"\x02\x00\x00\x00\x40\x00", b"\x09\x00\x00\x00\x40\x00"
    )
    with pytest.raises(RefusedRecord, match=r"0\.dcm in the zip"):
        decoded(write_zip(tmp_path / "a.zip", [content]))


@pytest.mark.parametrize("version", [b"\0\1", b"\0" * 10_000])
def test_a_deflated_file_is_not_inflated(tmp_path, version):
    image = pydicom.dcmread(io.BytesIO(dicom(PIXELS, 0.0, 0)))
    # An element that stands before the transfer syntax.
    image.file_meta.FileMetaInformationVersion = version
    image.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    images, left_out = dicom_images.read_zip(
        write_zip(tmp_path / "a.zip", [made_dicom.saved(image)])
    )
    assert (images, left_out) == ([], {"deflated DICOM files, not supported": 1})


def test_truncated_and_contradictory_images_are_refused(tmp_path):
    content = dicom(PIXELS, 0.0, 0)
    with pytest.raises(RefusedRecord, match=r"a\.zip: 0\.dcm in the zip"):
        decoded(write_zip(tmp_path / "a.zip", [content[:-20]]))
    with pytest.raises(RefusedRecord, match=r"0\.dcm in the zip"):
        decoded(write_zip(tmp_path / "a.zip", [dicom(PIXELS, 0.0, 0, Rows=9)]))
    with pytest.raises(RefusedRecord, match=r"0\.dcm in the zip"):
        decoded(write_zip(tmp_path / "a.zip", [content.replace(b"1.8\\1.8", b"x.8\\1.8")]))
    # Length of the first element of the header.
    with pytest.raises(RefusedRecord, match=r"0\.dcm in the zip: .{,210}$"):
        decoded(write_zip(tmp_path / "a.zip", [content[:138] + b"\xf9" + content[139:]]))


def test_unreadable_zips_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    with pytest.raises(RefusedRecord, match="the zip is absent"):
        dicom_images.read_zip(path)
    path.touch()
    with pytest.raises(RefusedRecord, match="the zip has 0 bytes"):
        dicom_images.read_zip(path)
    path.write_bytes(b"PK no zip")
    with pytest.raises(RefusedRecord, match="not a readable zip"):
        dicom_images.read_zip(path)
    write_zip(path, [dicom(PIXELS, 0.0, 0)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(RefusedRecord, match="not a readable zip"):
        dicom_images.read_zip(path)
    path.write_bytes(whole[:200] + bytes(60) + whole[260:])
    with pytest.raises(RefusedRecord, match=r"not a readable zip|in the zip"):
        dicom_images.read_zip(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(RefusedRecord, match="cannot be read: Is a directory"):
        dicom_images.read_zip(path)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", [dicom(PIXELS, 0.0, 0)])
    content = bytearray(path.read_bytes())
    # The flags of the file, in its own header and in the directory.
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(RefusedRecord, match=r"0\.dcm in the zip is encrypted"):
        dicom_images.read_zip(path)


@pytest.mark.parametrize(
    "name", ["../x.dcm", "/etc/x.dcm", "a/../../x.dcm", "..\\x.dcm", "C:\\x.dcm", "\\x.dcm"]
)
def test_names_outside_the_zip_are_refused(tmp_path, name):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, dicom(PIXELS, 0.0, 0))
    with pytest.raises(RefusedRecord, match="names a file outside itself: '"):
        dicom_images.read_zip(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zip"]


def test_folders_in_a_zip_are_no_concern(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("series")
        archive.writestr("series/..x.dcm", dicom(PIXELS, 0.0, 0))
    np.testing.assert_array_equal(decoded(path), PIXELS)


def test_zips_too_large_for_a_cine_are_refused(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.zip", [dicom(PIXELS, 0.0, n) for n in range(3)])
    for limit, value in (("_MAX_TOTAL", 1000), ("_MAX_MEMBER", 500), ("_MAX_MEMBERS", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(dicom_images, limit, value)
            with pytest.raises(RefusedRecord, match="3 files of 0 MiB .* more than a cine needs"):
                dicom_images.read_zip(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.dcm", bytes(300 * 2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(RefusedRecord, match="1 files of 300 MiB unpacked"):
        dicom_images.read_zip(path)
    # The same with a size that is not true.
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(RefusedRecord, match="not a readable zip"):
        dicom_images.read_zip(path)


def test_other_packing_methods_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("0.dcm", dicom(PIXELS, 0.0, 0))
    with pytest.raises(RefusedRecord, match=r"packed with method 12, expected 0 \(stored\) or 8"):
        dicom_images.read_zip(path)


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
def test_a_scale_that_is_no_number(tmp_path):
    content = dicom(PIXELS, 0.0, 0, RescaleSlope="nan")
    with pytest.raises(RefusedRecord, match="RescaleSlope is nan"):
        dicom_images.read_zip(write_zip(tmp_path / "a.zip", [content]))


def test_a_reason_is_the_same_in_every_run():
    error = ValueError("no image in <_io.BytesIO object at 0x7fbb448641d0>")
    assert dicom_images._brief(error) == "no image in <_io.BytesIO object>"
