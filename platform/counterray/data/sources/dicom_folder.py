"""Any tree of DICOM files: what the headers say, without what identifies a patient.

Reference: DICOM PS3.15, Annex E (attribute confidentiality), https://dicom.nema.org/medical/dicom/current/
"""

from __future__ import annotations

import hashlib
import math
import posixpath
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pydicom
from pydantic import SecretStr

from counterray.data.dicom import decode_dicom, read_dicom
from counterray.data.pixels import Fit
from counterray.data.sources.base import UNASSIGNED, Listing, Source, assemble, record_table
from counterray.data.sources.files import SourceError, list_files, read_file
from counterray.data.sources.values import or_none, parse_age, parse_positive, parse_sex
from counterray.data.study import Study
from counterray.storage import Location

_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")


class DicomFolder(Source):
    """Every DICOM file below the root: by its suffix, or any file without one.

    Kept are sex, age, view, pixel spacing, and the scanner's maker and model. Patient, institution and file
    name are replaced by salted hashes; everything else is dropped: names, dates, UIDs and free text, which
    may hold any of them. What is no chest radiograph is set aside.
    """

    name: Literal["dicom_folder"] = "dicom_folder"
    """The source's name."""
    salt: SecretStr = SecretStr("")
    """Salt of the hashes, a secret of your own: with a known one, every patient number can be tried. It is
    needed and is never written. Another salt gives other identifiers and other splits."""

    vocabulary: ClassVar[Mapping[str, tuple[str, ...]]] = {"sex": ("female", "male"), "view": ("PA", "AP")}

    def listing(self, root: Location) -> Listing:
        """Lists the files, unread: whose they are is found by the workers; see `Source.listing`."""
        # A config that an ingest has written shows stars in the secret's place.
        if not self.salt.get_secret_value().strip(" *"):
            raise SourceError(
                "source.salt is not set: set source.salt to a secret of your own, a long random text; "
                "it is never written."
            )
        files = {
            path: size
            for path, size in list_files(root).items()
            if path.lower().endswith(_SUFFIXES)
            or ("." not in posixpath.basename(path) and posixpath.basename(path) != "DICOMDIR")
        }
        if not files:
            raise SourceError(
                f"There is no DICOM file below {root.uri}: "
                f"none ends in {', '.join(_SUFFIXES)} or has no suffix."
            )
        records = record_table(
            {
                "image_id": map(self._hash, files),
                "patient_id": [UNASSIGNED] * len(files),
                "path": files,
                "bytes": files.values(),
            }
        )
        return Listing(records=records)

    def study(self, root: Location, record: Mapping[str, Any], *, size: int, fit: Fit) -> Study:
        """Reads one file's pixels and header; see `Source.study`."""
        dataset = read_dicom(read_file(root, record["path"]))
        values = decode_dicom(dataset)
        return assemble(
            self.name, root, {**record, **self._said(record, dataset)}, values, size=size, fit=fit
        )

    def _said(self, record: Mapping[str, Any], dataset: pydicom.Dataset) -> dict[str, Any]:
        def text(keyword: str) -> str | None:
            return or_none(str(dataset.get(keyword) or ""))

        age = parse_age(text("PatientAge"))
        patient, institution = text("PatientID"), text("InstitutionName")
        device = [part for part in (text("Manufacturer"), text("ManufacturerModelName")) if part]
        return {
            # Files without a patient's number cannot be told to be of one patient; each stands for itself.
            "patient_id": record["image_id"] if patient is None else self._hash(patient),
            "sex": parse_sex(text("PatientSex")),
            "age": None if age is None or math.isnan(age) else age,
            "view": text("ViewPosition"),
            "site": None if institution is None else self._hash(institution),
            "scanner": " ".join(device) or None,
            "pixel_spacing": _spacing(dataset),
        }

    def _hash(self, text: str) -> str:
        return hashlib.sha256(f"{self.salt.get_secret_value()}\0{text}".encode()).hexdigest()[:24]


def _spacing(dataset: pydicom.Dataset) -> float | None:
    """Distance between rows [mm]; zero, which some files state, means that it is unknown."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        values = dataset.get(keyword)
        if values:
            return parse_positive(str(values[0]))
    return None
