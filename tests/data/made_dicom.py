"""DICOM files for tests, in the layouts of Siemens, GE and enhanced multi-frame files."""

import io
import zipfile

import numpy as np
import pydicom
from pydicom import uid

ORIENTATION = [0.8, 0.6, 0.0, 0.0, 0.0, -1.0]
NORMAL = np.cross(ORIENTATION[:3], ORIENTATION[3:])


def position(place, within=(0.0, 0.0)):
    """ImagePositionPatient of a slice `place` mm along the normal, shifted within its plane."""
    shift = within[0] * np.array(ORIENTATION[:3]) + within[1] * np.array(ORIENTATION[3:])
    return [round(float(value), 4) for value in place * NORMAL + shift]


def bare(pixels, syntax=uid.ExplicitVRLittleEndian):
    """An MR image without a place and a time."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = uid.MRImageStorage
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    image = pydicom.Dataset()
    image.file_meta = meta
    image.SOPClassUID = meta.MediaStorageSOPClassUID
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    image.SeriesInstanceUID = "1.2.3"
    image.SeriesNumber = 5
    image.Rows, image.Columns = pixels.shape[-2:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 0
    image.PixelData = np.asarray(pixels).astype("<u2").tobytes()
    return image


def saved(image):
    """The bytes of its file."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, image, enforce_file_format=True)
    return buffer.getvalue()


def dicom(pixels, place, frame, **fields):
    """Bytes of one image, `place` mm along the normal; a field that is None is left out."""
    image = bare(pixels)
    image.ImageOrientationPatient = ORIENTATION
    image.ImagePositionPatient = position(place)
    image.PixelSpacing = [1.8, 1.8]
    image.TriggerTime = 10.0 + 40 * frame
    image.InstanceNumber = frame + 1
    for name, value in fields.items():
        if value is None:
            delattr(image, name)
        else:
            setattr(image, name, value)
    return saved(image)


def siemens(cine, gap=10.0):
    """A series per slice, instance numbers from 1 in each, all trigger times the same in each."""
    return [
        dicom(
            *(frame, gap * z, t),
            Manufacturer="SIEMENS",
            SeriesNumber=20 - z,
            SeriesInstanceUID=f"1.2.{20 - z}",
            SeriesDescription=f"CINE_segmented_SAX_b{z + 1}",
            ImageType=["ORIGINAL", "PRIMARY", "M", "RETRO", "NORM", "DIS2D"],
            CardiacNumberOfImages=len(cine[z]),
        )
        for z in range(len(cine))
        for t, frame in enumerate(cine[z])
    ]


def ge(cine, gap=8.0):
    """One series of all slices; instance numbers go through the slices first, geometry jitters."""
    return [
        dicom(
            *(frame, gap * z + 0.01 * (t % 3), t),
            Manufacturer="GE MEDICAL SYSTEMS",
            ImageOrientationPatient=[value + 1e-5 * (t % 2) for value in ORIENTATION],
            InstanceNumber=len(cine) * t + z + 1,
            TriggerTime=33.3 * t + 0.7 * z,
            PixelRepresentation=1,
        )
        for z in range(len(cine))
        for t, frame in enumerate(cine[z])
    ]


def enhanced(cine, gap=8.0):
    """One file of all frames in an arbitrary order, geometry in functional groups."""
    order = [(z, t) for t in range(len(cine[0])) for z in reversed(range(len(cine)))]
    image = bare(np.stack([cine[z][t] for z, t in order]))
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = uid.EnhancedMRImageStorage
    image.NumberOfFrames = len(order)
    shared = pydicom.Dataset()
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=ORIENTATION)]
    shared.PixelMeasuresSequence = [_item(PixelSpacing=[1.8, 1.8])]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = []
    for z, t in order:
        frame = pydicom.Dataset()
        frame.PlanePositionSequence = [_item(ImagePositionPatient=position(gap * z))]
        frame.CardiacSynchronizationSequence = [_item(NominalCardiacTriggerDelayTime=40.0 * t)]
        frame.PixelValueTransformationSequence = [_item(RescaleSlope=2, RescaleIntercept=-1)]
        image.PerFrameFunctionalGroupsSequence.append(frame)
    return image


def write_zip(path, contents, seed=0):
    """A zip of files in a random order; names say nothing about it."""
    order = np.random.default_rng(seed).permutation(len(contents))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, index in enumerate(order):
            archive.writestr(f"{number}.dcm", contents[index])
    return path


def _item(**fields):
    item = pydicom.Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return item
