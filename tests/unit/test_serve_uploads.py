"""Image files from strangers: what is hostile is refused, in bounded time and memory."""

import asyncio
import base64
import io
import os
import re
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib

import numpy as np
import psutil
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from counterray.data.pixels import Rejected
from serve.decoding import read_base64, read_image, to_model_size
from serve.problems import ProblemError
from serve.settings import UploadSettings
from serve.uploads import Decoders
from tests.serve_world import crowded_dicom, file_of, radiograph

MOST_PIXELS = 1_000_000
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
    with pytest.raises(Rejected) as error:
        read_image(HOSTILE[name], MOST_PIXELS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.value.reason in ("unreadable", "too_large", "too_small", "constant", "not_chest")
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
    values = read_image(data, MOST_PIXELS)
    assert values.shape == (64, 64)
    assert np.abs(values * 255 - GREY).max() <= 1.01
    assert np.array_equal(to_model_size(GREY.astype(np.float32) / 255, 64), GREY)


def test_a_jpeg_is_read_nearly_as_it_is():
    assert np.abs(read_image(GOOD_JPEG, MOST_PIXELS) * 255 - GREY).max() < 12


def test_another_shape_is_padded_with_black():
    made = to_model_size(np.ones((64, 32), np.float32), 32)
    assert made.shape == (32, 32)
    assert made[:, :8].max() == 0
    assert made[:, 8:24].min() > 250


def test_base64_comes_with_and_without_the_head_of_a_data_uri():
    text = base64.b64encode(GOOD_PNG).decode()
    assert read_base64(text) == GOOD_PNG
    assert read_base64(f"data:image/png;base64,{text}") == GOOD_PNG
    with pytest.raises(Rejected):
        read_base64("no base64!")


# Files that are cheap to send and dear to decode.


def scans_jpeg(count=5000, edge=4900):
    """A progressive JPEG with scans that say nothing, of which each is a pass over all pixels."""
    picture = np.tile(radiograph(100), (edge // 100, edge // 100))
    whole = file_of(picture, "JPEG", progressive=True, quality=10)
    empty = struct.pack(">BBHBBBBBB", 0xFF, 0xDA, 8, 1, 1, 0, 1, 63, 0)
    return whole[:-2] + empty * count + whole[-2:]


def flooded_dicom(items=1_000_000):
    """A sequence of empty items."""
    flood = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * items
    head = struct.pack("<HH", 0x0040, 0xA730) + b"SQ\0\0" + struct.pack("<I", 0xFFFFFFFF)
    return with_elements(head + flood + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))


def with_elements(elements):
    """The good DICOM file with more before its pixels."""
    at = GOOD_DICOM.index(struct.pack("<HH", 0x7FE0, 0x0010))
    return GOOD_DICOM[:at] + elements + GOOD_DICOM[at:]


def lying_frame(syntax, form, edge=900):
    """A DICOM file whose compressed image is larger than its header says."""
    frame = file_of(radiograph(edge), form)
    return dicom(syntax, pixels=encapsulate([frame + b"\0" * (len(frame) % 2)]))


LYING = {
    "jpeg": lying_frame(JPEGBaseline8Bit, "JPEG"),
    "jpeg 2000": lying_frame(JPEG2000Lossless, "JPEG2000"),
}


@pytest.mark.parametrize("name", LYING)
def test_a_frame_of_another_size_than_its_header_is_refused(name):
    with pytest.raises(Rejected, match="900 x 900 pixels, its header 64 x 64"):
        read_image(LYING[name], MOST_PIXELS)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless])
def test_a_frame_of_its_headers_size_is_read(syntax):
    data = lying_frame(syntax, "JPEG" if syntax == JPEGBaseline8Bit else "JPEG2000", edge=64)
    assert np.abs(read_image(data, MOST_PIXELS) * 255 - GREY).max() < 12


def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded():
    with pytest.raises(Rejected, match="scans; the limit is 100"):
        read_image(scans_jpeg(count=101, edge=100), MOST_PIXELS)


SECONDS, STARTED = 1.0, 5.0
"""The limit of a decode, and what a new process, on a machine that does more, may take to start [s]."""

CROWDED = crowded_dicom()


@pytest.fixture(scope="module")
def decoders():
    """One process, so that whatever holds it holds all."""
    found = Decoders(UploadSettings(workers=1, decode_seconds=SECONDS))
    yield found
    found.close()


def refused(decoders, data):
    with pytest.raises(ProblemError) as error:
        asyncio.run(decoders.decode(data, 64))
    assert 400 <= error.value.status < 500
    return error.value


def reads_the_good(decoders):
    started = time.perf_counter()
    assert np.array_equal(asyncio.run(decoders.decode(GOOD_PNG, 64)), GREY)
    assert time.perf_counter() - started < STARTED


ATTACKS = {
    "jpeg of 5000 scans": (scans_jpeg, "unreadable-image", "5010 scans|scans; the limit is 100"),
    "dicom of a million items": (flooded_dicom, "unreadable-image", "1000000 items; the limit is 1000"),
    "dicom of a million elements": (lambda: CROWDED, "too-large", "decode_seconds = 1"),
    "png of 400 million pixels": (lambda: png(20_000, 20_000), "too-large", "the limit, 25000000"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_ends_within_the_limit_and_the_next_image_is_read(name, decoders):
    make, kind, said = ATTACKS[name]
    data = make()
    reads_the_good(decoders)
    started = time.perf_counter()
    problem = refused(decoders, data)
    assert time.perf_counter() - started < SECONDS + 2
    assert problem.kind == kind
    assert re.search(said, problem.detail)
    reads_the_good(decoders)


def test_memory_is_bounded_and_its_process_lives_on():
    decoders = Decoders(UploadSettings(workers=1, decode_seconds=60, decode_memory=200 << 20))
    try:
        others = worker_ids()
        reads_the_good(decoders)
        [before] = worker_ids() - others
        idle = psutil.Process(before).memory_info().rss
        problem = refused(decoders, CROWDED)
        assert (problem.kind, "uploads.decode_memory" in problem.detail) == ("too-large", True)
        reads_the_good(decoders)
        assert before in worker_ids()
        assert psutil.Process(before).memory_info().rss - idle < 250 << 20
    finally:
        decoders.close()
    assert before not in worker_ids()


def worker_ids(parent=None):
    """Processes that decode for a process, this one by default."""
    children = psutil.Process(parent).children()
    return {child.pid for child in children if "spawn_main" in " ".join(child.cmdline())}


async def while_it_decodes(decoders, done):
    """Starts a long decode, and does something to it."""
    task = asyncio.create_task(decoders.decode(CROWDED, 64))
    await asyncio.sleep(0.5)
    done(task)
    return await asyncio.gather(task, return_exceptions=True)


def test_a_decoder_that_dies_is_the_files_fault_and_another_takes_its_place(decoders):
    reads_the_good(decoders)
    [there] = worker_ids()
    [problem] = asyncio.run(while_it_decodes(decoders, lambda task: os.kill(there, signal.SIGKILL)))
    assert (problem.kind, problem.status) == ("unreadable-image", 422)
    reads_the_good(decoders)


def test_a_request_that_ends_takes_its_decoder_along(decoders):
    reads_the_good(decoders)
    before = worker_ids()
    [ended] = asyncio.run(while_it_decodes(decoders, lambda task: task.cancel()))
    assert isinstance(ended, asyncio.CancelledError)
    reads_the_good(decoders)
    assert not before & worker_ids()


def test_a_decoder_holds_neither_torch_nor_ray(decoders):
    heavy = "[name for name in ('torch', 'ray', 'pytest') if name in __import__('sys').modules]"
    assert decoders.start().schedule(eval, (heavy,)).result(STARTED) == []


GATEWAY = """
import asyncio, sys
from serve.settings import UploadSettings
from serve.uploads import Decoders

decoders = Decoders(UploadSettings(workers=2, decode_seconds=2))
decoders.start().schedule(len, ("",)).result()
print("ready", flush=True)
asyncio.run(decoders.decode(sys.stdin.buffer.read(), 64))
"""


def test_no_decoder_outlives_a_gateway_that_is_killed():
    gateway = subprocess.Popen(
        [sys.executable, "-c", GATEWAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    )
    with gateway:
        assert gateway.stdout.readline() == b"ready\n"
        left = [psutil.Process(one) for one in worker_ids(gateway.pid)]
        assert len(left) == 2
        gateway.stdin.write(CROWDED)
        gateway.stdin.close()
        time.sleep(0.7)
        gateway.kill()
    _, alive = psutil.wait_procs(left, timeout=30)
    assert alive == []


def test_a_file_of_too_many_bytes_goes_to_no_decoder():
    decoders = Decoders(UploadSettings(most_bytes=1000))
    before = worker_ids()
    for data in (bytes(1001), "A" * 1500):
        problem = refused(decoders, data)
        assert (problem.kind, "the limit is 1000 bytes" in problem.detail) == ("too-large", True)
    assert worker_ids() == before
