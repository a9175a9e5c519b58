"""No identifier of a DICOM file reaches anything that an ingest writes or says."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from counterray.config import validate
from counterray.data.ingest import IngestConfig, ingest

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

SECRETS = {
    "PatientID": "MRN-4711-0815",
    "PatientName": "Doe^Jonathan",
    "PatientBirthDate": "19500229",
    "InstitutionName": "Saint Nowhere Infirmary",
    "AccessionNumber": "ACC99887766",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.111",
    "ReferringPhysicianName": "House^Gregory",
    "StudyDescription": "follow-up of Jonathan Doe",
    "StudyDate": "20190405",
}
SALT = "a long secret of this site"


def write(path: Path, seed: int, **tags: str) -> None:
    pixels = np.random.default_rng(seed).integers(0, 4096, (64, 64), dtype=np.uint16)
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = path.stem
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "PA"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = pixels.tobytes()
    for name, value in {**SECRETS, **tags}.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    path.write_bytes(buffer.getvalue())


def everything_in(folder: Path) -> str:
    """All text of an ingest's output; Parquet read back, since its pages are compressed."""
    texts = []
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            texts.append(str(pq.read_table(path).to_pylist()) + str(pq.read_schema(path)))
        elif path.is_file():
            texts.append(path.read_bytes().decode("utf-8", errors="replace"))
        texts.append(str(path.relative_to(folder)))
    return "\n".join(texts)


def test_no_identifier_is_written_or_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    names = [f"1.2.826.0.1.3680043.8.498.{number}" for number in (2221, 2222, 2223)]
    for seed, name in enumerate(names[:2]):
        write(source / f"{name}.dcm", seed)
    write(source / f"{names[2]}.dcm", 2, BodyPartExamined="LEG OF JON DOE")
    config = validate(
        IngestConfig,
        {
            "source": {"name": "dicom_folder", "salt": SALT},
            "image_size": 32,
            "max_quarantined_fraction": 0.5,
        },
    )
    with caplog.at_level(logging.DEBUG, logger="counterray"):
        manifest = ingest(config, str(source), str(out))
    assert sum(split["studies"] for split in manifest.counts.values()) == 2
    assert manifest.quarantined == {"not_chest": 1}
    written = everything_in(out) + caplog.text
    for secret in (*SECRETS.values(), *names, "LEG OF", "JON DOE", SALT):
        assert secret not in written, "an identifier came through"
