"""Pictures in and out of the browser."""

from __future__ import annotations

import base64
import io

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid


def image_file(grey: np.ndarray, kind: str) -> bytes:
    """Grey values [H, W] of 8 bits as a file of ``kind``: PNG, JPEG or DICOM."""
    if kind == "DICOM":
        return _dicom(grey)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format=kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def _dicom(grey: np.ndarray) -> bytes:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality, dataset.BodyPartExamined = "DX", "CHEST"
    dataset.Rows, dataset.Columns = grey.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = grey.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def grey_of(base64_png: str) -> np.ndarray:
    """Grey values [H, W] of a PNG in base64."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(base64_png))).convert("L"))


def drawn(page, frame: str) -> np.ndarray:
    """What a frame of the viewer shows: [H, W, 3] of 8 bits."""
    address = page.evaluate("name => document.querySelector(`#${name} canvas`).toDataURL()", frame)
    data = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
