"""Grey values of DICOM files, and whether they show a chest."""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array

from counterray.data.pixels import Rejected, check_size, decode, validated

CHEST_MODALITIES = {"CR", "DX", "DR", "RG"}
"""Projection radiography (DICOM PS3.3, C.7.3.1.1.1)."""

GENERIC_MODALITIES = {"", "OT", "SC"}
"""Modalities that say nothing; the body part must then be stated."""

# What a reason may name: a header's own text may be anything, a patient's name too.
_KNOWN_MODALITIES = {*CHEST_MODALITIES, "CT", "MG", "MR", "NM", "OT", "PT", "PX", "RF", "SC", "US", "XA"}

CHEST_BODY_PARTS = ("CHEST", "THORAX", "LUNG")
"""Words in ``BodyPartExamined`` that mean a chest image."""


def decode_any(data: bytes) -> npt.NDArray[np.float32]:
    """Decodes a DICOM file, or any other as `decode` does.

    Returns:
        ``[H, W]`` in [0, 1].

    Raises:
        Rejected: As `decode`, `read_dicom` and `decode_dicom`.
    """
    return decode_dicom(read_dicom(data)) if data[128:132] == b"DICM" else decode(data)


def read_dicom(data: bytes) -> pydicom.Dataset:
    """Reads a DICOM file and checks that it is a radiograph of a chest.

    Raises:
        Rejected: If it is no DICOM file, holds no pixels, or shows something else.
    """
    try:
        with warnings.catch_warnings():
            # pydicom warns of values that break the standard; many sites' do, and most are never looked at.
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data))
    except Exception as error:  # pydicom raises errors of many kinds on broken files.
        raise Rejected("unreadable", f"{len(data)} bytes, {type(error).__name__}") from error
    if "PixelData" not in dataset:
        raise Rejected("unreadable", "the file holds no pixels")
    modality = str(dataset.get("Modality") or "").strip().upper()
    body_part = str(dataset.get("BodyPartExamined") or "").strip().upper()
    is_chest = any(word in body_part for word in CHEST_BODY_PARTS)
    if body_part and not is_chest:
        raise Rejected("not_chest", "BodyPartExamined is not a chest")
    if modality not in CHEST_MODALITIES and not (modality in GENERIC_MODALITIES and is_chest):
        stated = modality if modality in _KNOWN_MODALITIES else "unknown"
        raise Rejected(
            "not_chest", f"Modality is {stated}, BodyPartExamined is {'a chest' if is_chest else 'empty'}"
        )
    return dataset


def decode_dicom(dataset: pydicom.Dataset) -> npt.NDArray[np.float32]:
    """Grey values of a DICOM file as a viewer shows them: rescaled, windowed, dark air.

    The modality LUT (rescale slope and intercept) comes first, then the file's first window or VOI LUT
    (DICOM PS3.3, C.11.1 and C.11.2); without a window the range of the stored bits is shown. MONOCHROME1
    (0 is white) is inverted.

    Returns:
        ``[H, W]`` in [0, 1].

    Raises:
        Rejected: If the pixels cannot be decoded, or are too large, not finite, constant or too small.
    """
    check_size(int(dataset.Rows), int(dataset.Columns))
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip().upper()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = pixel_array(dataset)
            is_grey = photometric in ("MONOCHROME1", "MONOCHROME2")
            if stored.ndim == 3 and not is_grey:
                return decode(_png_of_colour(stored))
            if stored.ndim != 2 or not is_grey:
                colours = "grey" if is_grey else "other"
                raise Rejected("unreadable", f"{stored.ndim}-dimensional pixels, {colours} colours")
            values = _displayed(dataset, stored)
    except Rejected:
        raise
    except Exception as error:  # Codecs and LUTs raise errors of many kinds on broken files.
        raise Rejected("unreadable", f"pixels: {type(error).__name__}") from error
    return validated(1 - values if photometric == "MONOCHROME1" else values)


def _displayed(dataset: pydicom.Dataset, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    bits = int(dataset.BitsStored)
    signed = int(dataset.get("PixelRepresentation", 0)) == 1
    bounds = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
    lowest, highest = sorted(apply_modality_lut(bounds, dataset).tolist())
    if dataset.get("ModalityLUTSequence"):
        lowest, highest = 0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence") or dataset.get("WindowWidth") is not None:
        values = apply_voi_lut(values, dataset)
        if dataset.get("VOILUTSequence"):
            lowest, highest = 0, 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        elif float(dataset.get("RescaleSlope") or 1) < 0:
            # pydicom maps the window's lower end to the rescaled lowest stored value, here the highest.
            values = lowest + highest - values
    scaled = (values.astype(np.float64) - lowest) / max(highest - lowest, 1e-12)
    return np.asarray(scaled.clip(0, 1), dtype=np.float32)


def _png_of_colour(stored: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(stored.astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()
