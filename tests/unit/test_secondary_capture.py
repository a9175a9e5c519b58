"""A synthetic image as DICOM: what a reader finds in the file, and what nobody can find in it."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from pydicom.uid import SecondaryCaptureImageStorage

from counterray.data.dicom import decode_any
from counterray.data.secondary_capture import Origin, encode_secondary_capture

ORIGIN = Origin(
    request="r" * 64,
    patient="patient-0815",
    image="image-4711-0",
    number=3,
    description="synthetic counterfactual: finding.edema=1",
    software="0.1.0",
)


def grey(bits: int, height: int = 33, width: int = 35) -> np.ndarray:
    """Every grey value of the range, as far as there are pixels; an odd number of them."""
    values = np.linspace(0, 2**bits - 1, height * width).round()
    return values.reshape(height, width).astype(np.uint8 if bits == 8 else np.uint16)


def read(data: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(data))


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_pixels_come_back_through_pydicom_and_through_our_own_reader(bits):
    values = grey(bits)
    data = encode_secondary_capture(values, ORIGIN, bits=bits)
    assert np.array_equal(read(data).pixel_array, values)
    shown = decode_any(data) * (2**bits - 1)
    assert np.array_equal(np.rint(shown), values)


def test_the_file_says_that_it_is_synthetic():
    dataset = read(encode_secondary_capture(grey(8), ORIGIN, bits=8, pixel_spacing=5.5))
    assert dataset.SOPClassUID == SecondaryCaptureImageStorage == dataset.file_meta.MediaStorageSOPClassUID
    assert dataset.ImageType == ["DERIVED", "SECONDARY"]
    assert dataset.ConversionType == "SYN"
    assert dataset.SyntheticData == "YES"
    assert dataset.BurnedInAnnotation == "NO"
    assert dataset.ContentQualification == "RESEARCH"
    assert dataset.PatientName == "SYNTHETIC"
    assert dataset.PatientID.startswith("SYNTHETIC-")
    assert dataset.DerivationDescription == ORIGIN.description
    assert dataset.DerivationCodeSequence[0].CodeValue == "COUNTERFACTUAL"
    assert (dataset.Manufacturer, dataset.SoftwareVersions) == ("counterray", "0.1.0")
    assert dataset.PixelSpacing == [5.5, 5.5]


def test_every_attribute_that_the_standard_requires_is_there():
    """Types 1 and 2 of the modules of the Secondary Capture IOD (PS3.3, table A.8-1)."""
    dataset = read(encode_secondary_capture(grey(12), ORIGIN, bits=12))
    filled = (
        *("StudyInstanceUID", "Modality", "SeriesInstanceUID", "ConversionType", "SOPClassUID"),
        *("SOPInstanceUID", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns"),
        *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"),
    )
    stated = (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
        *("ReferringPhysicianName", "StudyID", "AccessionNumber", "SeriesNumber", "InstanceNumber"),
        *("PatientOrientation", "Manufacturer"),
    )
    assert [name for name in filled if not dataset.get(name) and dataset.get(name) != 0] == []
    assert [name for name in stated if name not in dataset] == []
    assert dataset.InstanceNumber == 3


def test_equal_arguments_give_equal_bytes_and_others_other_identifiers():
    data = encode_secondary_capture(grey(8), ORIGIN, bits=8)
    assert data == encode_secondary_capture(grey(8), ORIGIN, bits=8)
    ours = read(data)
    changes = {"image": "image-4711-1", "patient": "patient-0816", "request": "s" * 64}
    for name, value in changes.items():
        origin = Origin(**{**vars(ORIGIN), name: value})
        other = read(encode_secondary_capture(grey(8), origin, bits=8))
        same_study = other.StudyInstanceUID == ours.StudyInstanceUID
        assert same_study == (other.SeriesInstanceUID == ours.SeriesInstanceUID) == (name == "image")
        assert (other.SOPInstanceUID == ours.SOPInstanceUID) == (name == "patient")
    for uid in (ours.SOPInstanceUID, ours.StudyInstanceUID, ours.SeriesInstanceUID):
        assert uid.is_valid
        assert uid.startswith("2.25.")


def test_no_name_of_the_source_and_no_time_is_in_the_file():
    data = encode_secondary_capture(grey(8), ORIGIN, bits=8)
    assert b"patient-0815" not in data
    assert b"image-4711" not in data
    dates = [element.value for element in read(data) if element.VR in ("DA", "TM", "DT")]
    assert set(dates) <= {""}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": grey(12)}, "4095 does not fit into 8 bits"),
        ({"values": grey(8)[None]}, r"of shape \(1, 33, 35\)"),
        ({"values": grey(8).astype(np.float32)}, "float32"),
        ({"bits": 7}, "bits = 7"),
        ({"origin": Origin(**{**vars(ORIGIN), "description": "x" * 1025})}, "1025 characters"),
    ],
)
def test_what_cannot_be_a_file_is_refused(change, message):
    arguments = {"values": grey(8), "origin": ORIGIN, "bits": 8, **change}
    with pytest.raises(ValueError, match=message):
        encode_secondary_capture(arguments["values"], arguments["origin"], bits=arguments["bits"])
