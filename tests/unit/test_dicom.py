"""DICOM: the pixels as a viewer shows them, and what is no chest film."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from counterray.data.dicom import decode_any, decode_dicom, read_dicom
from counterray.data.pixels import Rejected, geometry, resize


def dicom(stored: np.ndarray, *, bits: int = 12, signed: bool = False, **tags: object) -> bytes:
    """A DICOM file of 16 allocated bits."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.BodyPartExamined = "DX", "CHEST"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = stored.astype(np.int16 if signed else np.uint16).tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


RAMP = np.arange(64 * 64).reshape(64, 64)
"""0 to 4095: every value of 12 bits."""


def test_without_a_window_the_stored_bits_are_the_range():
    assert np.allclose(decode_any(dicom(RAMP)), RAMP / 4095, atol=1e-6)
    assert np.allclose(decode_any(dicom(RAMP, bits=15)), RAMP / 32767, atol=1e-6)


def test_signed_pixels():
    assert np.allclose(decode_any(dicom(RAMP - 2048, signed=True)), RAMP / 4095, atol=1e-6)


def test_monochrome1_is_inverted():
    inverted = decode_any(dicom(RAMP, PhotometricInterpretation="MONOCHROME1"))
    assert np.allclose(inverted, 1 - RAMP / 4095, atol=1e-6)


def test_a_window_by_hand():
    """Center 1000.5, width 1001: black up to 500, white above 1500, 0.5 at 1000 (PS3.3, C.11.2.1.2)."""
    values = decode_any(dicom(RAMP, WindowCenter="1000.5", WindowWidth="1001")).ravel()
    assert values[500] == 0
    assert values[1501] == 1
    assert values[1000] == pytest.approx(0.5)
    assert values[750] == pytest.approx(0.25)


def test_the_window_is_in_rescaled_units():
    values = decode_any(
        dicom(RAMP, RescaleSlope="2", RescaleIntercept="-1000", WindowCenter="1000.5", WindowWidth="1001")
    ).ravel()
    assert values[750] == 0, "750 * 2 - 1000 = 500 is the lower end"
    assert values[1000] == pytest.approx(0.5)


def test_a_falling_rescale_inverts_with_and_without_a_window():
    falling = {"RescaleSlope": "-1", "RescaleIntercept": "4095"}
    assert np.allclose(decode_any(dicom(RAMP, **falling)), 1 - RAMP / 4095, atol=1e-6)
    values = decode_any(dicom(RAMP, WindowCenter="1000.5", WindowWidth="1001", **falling)).ravel()
    assert values[4095 - 750] == pytest.approx(0.25)
    assert values[0] == 1


def test_the_first_of_several_windows_counts():
    two = dicom(RAMP, WindowCenter=["1000.5", "2000"], WindowWidth=["1001", "10"])
    assert (decode_any(two) == decode_any(dicom(RAMP, WindowCenter="1000.5", WindowWidth="1001"))).all()


def test_a_voi_table_is_applied():
    item = pydicom.Dataset()
    item.LUTDescriptor = [4096, 0, 10]
    item.LUTData = (1023 - np.arange(4096) // 4).astype(np.uint16).tobytes()
    values = decode_any(dicom(RAMP, VOILUTSequence=[item])).ravel()
    assert values[0] == 1
    assert values[4095] == 0
    assert values[2048] == pytest.approx(511 / 1023)


@pytest.mark.parametrize(
    ("tags", "detail"),
    [
        ({"BodyPartExamined": "LEG OF JOHN DOE"}, "BodyPartExamined is not a chest$"),
        ({"Modality": "JOHN_DOE"}, "Modality is unknown"),
        ({"Modality": "CT"}, "CT"),
        ({"Modality": "OT", "BodyPartExamined": ""}, "OT"),
    ],
)
def test_what_is_no_chest_film_is_refused(tags, detail):
    with pytest.raises(Rejected, match=detail) as caught:
        read_dicom(dicom(RAMP, **tags))
    assert caught.value.reason == "not_chest"


@pytest.mark.parametrize(
    "tags",
    [{"BodyPartExamined": ""}, {"Modality": "SC"}, {"Modality": "CR", "BodyPartExamined": "THORAX PA"}],
)
def test_a_chest_film_with_odd_tags_is_taken(tags):
    assert decode_dicom(read_dicom(dicom(RAMP, **tags))).shape == (64, 64)


def test_broken_files_are_unreadable_without_naming_a_patient():
    whole = dicom(RAMP, PatientName="Doe^Jane")
    for data in (b"", b"DICM", whole[:200], whole[:-2000]):
        with pytest.raises(Rejected) as caught:
            decode_dicom(read_dicom(data))
        assert caught.value.reason == "unreadable"
        assert "Doe" not in str(caught.value)


def test_a_real_15_bit_jpeg2000_monochrome1_file(real_data):
    """RG1 is windowed and inverted: air around the patient must be dark, the spine bright."""
    folder = real_data / "dicom_cxr"
    values = decode_any((folder / "dicom" / "RG1_J2KI.dcm").read_bytes())
    assert values.shape == (1955, 1841)
    preview = np.asarray(Image.open(folder / "images" / "RG1_J2KI.png").convert("L")).astype(float)
    ours = resize(values, geometry(*values.shape, 64, "crop")).astype(float)
    theirs = resize((preview / 255).astype(np.float32), geometry(*preview.shape, 64, "crop")).astype(float)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.98


def test_a_real_file_and_its_copy_tagged_monochrome1_are_negatives(real_data):
    folder = real_data / "dicom_cxr" / "dicom"
    original = next(folder.glob("rsna_*.dcm"))
    inverted = folder / "Fake_MONOCHROME1.dcm"
    total = decode_any(original.read_bytes()) + decode_any(inverted.read_bytes())
    assert np.allclose(total, 1, atol=1e-6)


def test_the_real_lower_leg_is_no_chest(real_data):
    with pytest.raises(Rejected) as caught:
        read_dicom((real_data / "dicom_cxr" / "dicom" / "RG3_J2KI.dcm").read_bytes())
    assert caught.value.reason == "not_chest"
