"""Synthetic images as DICOM files that no reader can take for an examination.

Reference: DICOM PS3.3, A.8.1 (Secondary Capture Image IOD), C.8.6.1 (Conversion Type), C.12.1 (Synthetic
Data), https://dicom.nema.org/medical/dicom/current/
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

CODING_SCHEME = "99COUNTERRAY"
"""Of our derivation code: the standard's context group 7203 has no term for a generated image, and a scheme
whose name begins with 99 is private (PS3.3, 8.2)."""

MOST_DESCRIPTION = 1024
"""Characters that a DICOM short text holds (PS3.5, 6.2)."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a synthetic image comes from, without anything that identifies a patient.

    Attributes:
        request: Checksum of the request that made it; with the names below it fixes every identifier.
        patient: Pseudonym of the source's patient; only its hash is written.
        image: Name of the image, unique in its request.
        number: Number of the image in its request, from 1.
        description: What was asked of which model, for ``DerivationDescription``.
        software: Version of counterray.
    """

    request: str
    patient: str
    image: str
    number: int
    description: str
    software: str


def encode_secondary_capture(
    values: npt.NDArray[np.unsignedinteger], origin: Origin, *, bits: int, pixel_spacing: float | None = None
) -> bytes:
    """A DICOM Secondary Capture file of a synthetic image; equal arguments give equal bytes.

    It says in eight attributes that no examination is behind it, and holds no date, no time and no number
    of a real patient: patient, study, series and instance are named by hashes, so that a file that gets into
    an archive cannot be filed under a patient.

    Args:
        values: ``[H, W]`` grey values from 0 (black) to ``2**bits - 1``.
        origin: Where the image comes from.
        bits: Bits of a grey value, 8 to 16.
        pixel_spacing: Edge of a pixel [mm], where known.

    Raises:
        ValueError: If the values are no plane, do not fit into ``bits``, or the description is too long.
    """
    _check(values, origin, bits)
    dataset = pydicom.Dataset()
    dataset.file_meta = _file_meta(_uid(origin.request, "instance", origin.image))
    _identify(dataset, origin)
    _mark_synthetic(dataset, origin)
    _set_pixels(dataset, values, bits)
    if pixel_spacing is not None:
        dataset.PixelSpacing = [f"{pixel_spacing:.6g}"] * 2
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _check(values: npt.NDArray[np.unsignedinteger], origin: Origin, bits: int) -> None:
    if not 8 <= bits <= 16:
        raise ValueError(f"bits = {bits}: a grey value has 8 to 16 bits.")
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.unsignedinteger):
        raise ValueError(
            f"A DICOM image is made of unsigned grey values [H, W]; these are {values.dtype} of shape "
            f"{values.shape}."
        )
    if int(values.max(initial=0)) >= 2**bits:
        raise ValueError(f"The grey value {int(values.max())} does not fit into {bits} bits.")
    if len(origin.description) > MOST_DESCRIPTION:
        raise ValueError(
            f"The description has {len(origin.description)} characters; DerivationDescription holds "
            f"{MOST_DESCRIPTION}."
        )


def _file_meta(instance: UID) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # Ours, not pydicom's: with another pydicom the same image stays the same file.
    meta.ImplementationClassUID = _uid("counterray", "implementation")
    meta.ImplementationVersionName = "COUNTERRAY"
    return meta


def _identify(dataset: pydicom.Dataset, origin: Origin) -> None:
    """Patient, study, series and instance; what the standard wants but nobody has is left empty."""
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = _uid(origin.request, "study", origin.patient)
    dataset.SeriesInstanceUID = _uid(origin.request, "series", origin.patient)
    pseudonym = hashlib.sha256(f"{origin.request}\0{origin.patient}".encode()).hexdigest()[:24]
    dataset.PatientName = "SYNTHETIC"
    dataset.PatientID = f"SYNTHETIC-{pseudonym}"
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "Synthetic image; no identifier was carried over"
    for keyword in (
        *("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID"),
        *("ReferringPhysicianName", "PatientOrientation"),
    ):
        setattr(dataset, keyword, "")
    dataset.Modality = "OT"
    dataset.BodyPartExamined = "CHEST"
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = origin.number


def _mark_synthetic(dataset: pydicom.Dataset, origin: Origin) -> None:
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.ConversionType = "SYN"
    dataset.SyntheticData = "YES"
    dataset.BurnedInAnnotation = "NO"
    dataset.ContentQualification = "RESEARCH"
    dataset.StudyDescription = dataset.SeriesDescription = "SYNTHETIC counterfactual, not an examination"
    dataset.DerivationDescription = origin.description
    code = pydicom.Dataset()
    code.CodeValue = "COUNTERFACTUAL"
    code.CodingSchemeDesignator = CODING_SCHEME
    code.CodeMeaning = "Counterfactual image by a generative model"
    dataset.DerivationCodeSequence = [code]
    dataset.Manufacturer = dataset.SecondaryCaptureDeviceManufacturer = "counterray"
    dataset.SoftwareVersions = dataset.SecondaryCaptureDeviceSoftwareVersions = origin.software


def _set_pixels(dataset: pydicom.Dataset, values: npt.NDArray[np.unsignedinteger], bits: int) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated = 8 if bits == 8 else 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
    # The whole range: else viewers stretch every image by its own contents, and two cannot be compared.
    dataset.WindowCenter, dataset.WindowWidth = str(2 ** (bits - 1)), str(2**bits)
    data = values.astype("<u1" if bits == 8 else "<u2").tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"


def _uid(*names: str) -> UID:
    """A UID of a name-based UUID (PS3.5, B.2; RFC 9562, version 8 with SHA-256)."""
    digest = bytearray(hashlib.sha256("\0".join(names).encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return UID(f"2.25.{int.from_bytes(digest, 'big')}")
