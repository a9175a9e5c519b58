"""Image files from strangers: what is hostile is refused, in bounded time and memory."""

import base64
import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from serve.problems import ProblemError
from serve.settings import UploadSettings
from serve.uploads import read_base64, read_image, to_model_size
from tests.serve_world import file_of, radiograph

SETTINGS = UploadSettings(most_bytes=300_000, most_pixels=1_000_000)
GREY = radiograph(64)


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width=64, height=64, *, bits=8, colour=0, data=None, extra=b""):
    """A PNG file with a header that may lie."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = zlib.compress(b"\0" * 100) if data is None else data
    chunks = png_chunk(b"IHDR", head) + extra + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def dicom(syntax=ExplicitVRLittleEndian, pixels=None, **tags):
    """A DICOM file of a chest, with tags that may lie."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.Modality, dataset.BodyPartExamined = "CR", "CHEST"
    dataset.Rows, dataset.Columns = GREY.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = GREY.tobytes() if pixels is None else pixels
    dataset["PixelData"].VR = "OB"
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def animated():
    buffer = io.BytesIO()
    frames = [Image.fromarray(radiograph(64, seed)) for seed in range(3)]
    frames[0].save(buffer, format="PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def cmyk():
    buffer = io.BytesIO()
    Image.fromarray(np.stack([GREY] * 3, axis=2)).convert("CMYK").save(buffer, format="JPEG")
    return buffer.getvalue()


def nested_dicom(depth=3000):
    """Sequences in sequences, deeper than any reader's stack."""
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    opened = struct.pack("<HH", 0x0040, 0xA730) + b"SQ\0\0" + struct.pack("<I", 0xFFFFFFFF) + item
    return dicom()[:-200] + opened * depth


GOOD_PNG, GOOD_JPEG, GOOD_DICOM = file_of(GREY), file_of(GREY, "JPEG", quality=95), dicom()
COLOUR = np.stack([GREY] * 3, axis=2)
BOMB = png(60_000, 60_000, data=zlib.compress(bytes(10_000_000), 9))
TEXT_BOMB = png(extra=png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9)))
PROFILE_BOMB = png(extra=png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(50_000_000), 9)))

HOSTILE = {
    "empty": b"",
    "one byte": b"\x89",
    "text": b"hello " * 50,
    "html": b"<html><script>alert(1)</script></html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "pdf": b"%PDF-1.7\n" + bytes(200),
    "zip": b"PK\x03\x04" + bytes(200),
    "pickle": b"\x80\x04\x95" + bytes(200),
    "gif": file_of(GREY, "GIF"),
    "tiff": file_of(GREY, "TIFF"),
    "bmp": file_of(GREY, "BMP"),
    "webp": file_of(COLOUR, "WEBP"),
    "numpy": b"\x93NUMPY" + bytes(200),
    "random bytes": np.random.default_rng(0).bytes(5000),
    "zeros": bytes(5000),
    "png head alone": GOOD_PNG[:8],
    "png without pixels": GOOD_PNG[:40],
    "png truncated": GOOD_PNG[: len(GOOD_PNG) // 2],
    "png of which the end is there and the middle is not": GOOD_PNG[:200] + GOOD_PNG[-12:],
    "png with a flipped byte": GOOD_PNG[:90] + bytes([GOOD_PNG[90] ^ 255]) + GOOD_PNG[91:],
    "png with html behind it": GOOD_PNG + b"<script>alert(1)</script>",
    "png with a zip behind it": GOOD_PNG + b"PK\x05\x06" + bytes(18),
    "png of no width": png(0, 64),
    "png bomb": BOMB,
    "png of lying size": png(900, 900, data=zlib.compress(bytes(100))),
    "png with a text bomb": TEXT_BOMB,
    "png with a profile bomb": PROFILE_BOMB,
    "png of one pixel": file_of(GREY[:1, :1]),
    "png of one row": file_of(GREY[:1]),
    "png all black": file_of(np.zeros((64, 64), np.uint8)),
    "png of too many pixels": file_of(np.zeros((1100, 1000), np.uint8)),
    "png animated": animated(),
    "jpeg head alone": GOOD_JPEG[:4],
    "jpeg truncated": GOOD_JPEG[: len(GOOD_JPEG) // 2],
    "jpeg of which the end is there and the middle is not": GOOD_JPEG[:300] + GOOD_JPEG[-2:],
    "jpeg with html behind it": GOOD_JPEG + b"<html>",
    "jpeg in print colours": cmyk(),
    "too many bytes": GOOD_PNG + bytes(SETTINGS.most_bytes),
    "dicom head alone": bytes(128) + b"DICM",
    "dicom truncated": GOOD_DICOM[: len(GOOD_DICOM) // 2],
    "dicom of zeros": bytes(128) + b"DICM" + bytes(2000),
    "dicom without pixels": dicom(PixelData=None),
    "dicom without rows": dicom(Rows=None),
    "dicom of no columns": dicom(Columns=0),
    "dicom bomb": dicom(Rows=60_000, Columns=60_000),
    "dicom of lying size": dicom(Rows=900, Columns=900),
    "dicom of many frames": dicom(NumberOfFrames=50_000),
    "dicom deflated": dicom(DeflatedExplicitVRLittleEndian, pixels=bytes(4096)),
    "dicom of a hand": dicom(BodyPartExamined="HAND"),
    "dicom of a CT": dicom(Modality="CT"),
    "dicom of an unknown syntax": dicom().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"),
    "dicom of odd bits": dicom(BitsAllocated=7),
    "dicom of odd samples": dicom(SamplesPerPixel=9),
    "dicom of odd colours": dicom(PhotometricInterpretation="PALETTE COLOR"),
    "dicom of deep sequences": nested_dicom(),
    "dicom that is a png too": GOOD_PNG[:128] + GOOD_DICOM[128:],
}


def test_there_are_fifty_and_more():
    assert len(HOSTILE) >= 50


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_refused_in_bounded_time_and_memory(name):
    started = time.process_time()
    tracemalloc.start()
    with pytest.raises(ProblemError) as error:
        read_image(HOSTILE[name], SETTINGS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.value.kind in ("unreadable-image", "too-large")
    assert 400 <= error.value.status < 500
    assert len(error.value.detail) < 200
    assert time.process_time() - started < 5
    assert peak < 60 << 20


@pytest.mark.parametrize(
    "data",
    [
        GOOD_PNG,
        GOOD_DICOM,
        file_of(GREY.astype(np.uint16) * 257),
        file_of(COLOUR),
        file_of(np.concatenate([COLOUR, np.full((64, 64, 1), 255, np.uint8)], axis=2)),
        dicom(PhotometricInterpretation="MONOCHROME1", pixels=(255 - GREY).tobytes()),
        dicom(PatientName="Doe^Jane"),
    ],
    ids=["png", "dicom", "16 bits", "colour", "transparent", "inverted", "named"],
)
def test_what_is_good_is_read_as_it_is(data):
    values = read_image(data, SETTINGS)
    assert values.shape == (64, 64)
    assert np.abs(values * 255 - GREY).max() <= 1.01
    assert np.array_equal(to_model_size(GREY.astype(np.float32) / 255, 64), GREY)


def test_a_jpeg_is_read_nearly_as_it_is():
    assert np.abs(read_image(GOOD_JPEG, SETTINGS) * 255 - GREY).max() < 12


def test_another_shape_is_padded_with_black():
    made = to_model_size(np.ones((64, 32), np.float32), 32)
    assert made.shape == (32, 32)
    assert made[:, :8].max() == 0
    assert made[:, 8:24].min() > 250


def test_base64_comes_with_and_without_the_head_of_a_data_uri():
    text = base64.b64encode(GOOD_PNG).decode()
    assert read_base64(text, SETTINGS) == GOOD_PNG
    assert read_base64(f"data:image/png;base64,{text}", SETTINGS) == GOOD_PNG
    for wrong, kind in (("no base64!", "unreadable-image"), ("A" * 500_000, "too-large")):
        with pytest.raises(ProblemError) as error:
            read_base64(wrong, SETTINGS)
        assert error.value.kind == kind
