"""Decoding, validation and geometry of image files, against values worked out by hand."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin

from counterray.data import pixels
from counterray.data.pixels import (
    Geometry,
    Rejected,
    decode,
    decode_grey,
    encode,
    geometry,
    resize,
    resize_mask,
)
from tests.radiographs import image_bytes, radiograph


def tiff(values: np.ndarray) -> bytes:
    return image_bytes(values, "TIFF")


def reason_of(data: bytes) -> str:
    with pytest.raises(Rejected) as caught:
        decode(data)
    return caught.value.reason


def test_letterbox_by_hand():
    """100 x 50 into 64: scaled by 0.64 to 64 x 32, with 16 black columns at either side."""
    place = geometry(100, 50, 64, "letterbox")
    assert place == Geometry(size=64, scaled_height=64, scaled_width=32, top=0, left=16, scale=0.64)
    square = resize(np.ones((100, 50), np.float32), place)
    assert (square[:, :16] == 0).all()
    assert (square[:, 16:48] == 255).all()
    assert (square[:, 48:] == 0).all()


def test_crop_by_hand():
    """100 x 50 into 64: scaled by 1.28 to 128 x 64, with 32 rows cut off at either end."""
    place = geometry(100, 50, 64, "crop")
    assert place == Geometry(size=64, scaled_height=128, scaled_width=64, top=-32, left=0, scale=1.28)
    thirds = np.repeat(np.array([0.0, 1.0, 0.0], np.float32), [25, 50, 25])[:, None].repeat(50, axis=1)
    square = resize(thirds, place)
    assert (square[4:-4] > 250).all(), (
        "only the middle half is left, but for the filter's ringing at its ends"
    )


@given(
    st.integers(32, 400),
    st.integers(32, 400),
    st.sampled_from([32, 64, 100]),
    st.sampled_from(["letterbox", "crop"]),
)
def test_the_result_is_always_the_square(height, width, size, fit):
    square = resize(np.full((height, width), 0.5, np.float32), geometry(height, width, size, fit))
    assert square.shape == (size, size)
    if fit == "crop":
        assert (square == 128).all(), "a crop has no padding"


def test_an_image_of_the_right_size_passes_bit_for_bit():
    values = radiograph(1)
    assert (resize(decode(image_bytes(values)), geometry(64, 64, 64, "letterbox")) == values).all()


def test_resizing_does_not_alias():
    """Stripes of one pixel become their mean; without a filter every kept pixel would be 0 or 1."""
    stripes = np.tile(np.array([0.0, 1.0], np.float32), (256, 128))
    inner = resize(stripes, geometry(256, 256, 32, "letterbox"))[4:-4, 4:-4]
    assert np.abs(inner.astype(int) - 127).max() <= 2


def test_a_mask_follows_its_image():
    place = geometry(100, 50, 64, "letterbox")
    mask = np.zeros((100, 50), bool)
    mask[50:] = True
    placed = resize_mask(mask, place)
    assert placed.sum() == 32 * 32
    assert placed[32:, 16:48].all()


def test_the_8_bit_png_carries_no_metadata():
    info = PngImagePlugin.PngInfo()
    info.add_text("PatientName", "Doe^Jane")
    buffer = io.BytesIO()
    Image.fromarray(radiograph(2)).save(buffer, format="PNG", pnginfo=info)
    again = encode(resize(decode(buffer.getvalue()), geometry(64, 64, 64, "letterbox")))
    assert b"Doe" not in again
    assert (decode_grey(again) == radiograph(2)).all()


def test_masks_are_stored_with_one_bit():
    mask = radiograph(3) > 127
    png = encode(mask)
    assert Image.open(io.BytesIO(png)).mode == "1"
    assert (decode_grey(png).astype(bool) == mask).all()
    assert (pixels.decode_mask(png) == mask).all()
    assert (pixels.decode_mask(image_bytes(mask.astype(np.uint8) * 255)) == mask).all()


def test_colour_becomes_grey():
    grey = radiograph(4)
    assert (decode(image_bytes(np.stack([grey] * 3, axis=2))) == decode(image_bytes(grey))).all()
    red = np.zeros((64, 64, 3), np.uint8)
    red[32:, :, 0] = 255
    assert decode(image_bytes(red)).max() == pytest.approx(0.299, abs=0.003), "the weight of red in luma"


def test_16_bits_are_scaled_by_their_full_range():
    values = np.full((64, 64), 1000, np.uint16)
    values[0, 0] = 65535
    decoded = decode(image_bytes(values))
    assert decoded[0, 0] == 1
    assert decoded[1, 1] == pytest.approx(1000 / 65535)


def test_jpeg_is_read():
    values = radiograph(5)
    decoded = decode(image_bytes(values, "JPEG"))
    assert np.abs(decoded * 255 - values).mean() < 3


def test_floating_point_is_kept_or_stretched():
    ramp = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    assert (decode(tiff(ramp)) == ramp).all()
    assert np.allclose(decode(tiff(ramp * 4000 - 1000)), ramp, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pixel_that_is_no_number_is_refused(value):
    values = radiograph(6).astype(np.float32) / 255
    values[3, 4] = value
    assert reason_of(tiff(values)) == "not_finite"


@pytest.mark.parametrize(
    "data", [b"", b"no image", image_bytes(radiograph(7))[:-400], image_bytes(radiograph(7))[:20]]
)
def test_broken_files_are_unreadable(data):
    assert reason_of(data) == "unreadable"


def test_constant_and_nearly_constant_images_are_refused():
    flat = np.full((64, 64), 77, np.uint8)
    assert reason_of(image_bytes(flat)) == "constant"
    faint = np.full((64, 64), 30000, np.uint16)
    faint[0, 0] = 30010
    assert reason_of(image_bytes(faint)) == "constant"


def test_small_images_are_refused():
    assert reason_of(image_bytes(radiograph(8, 31, 200))) == "too_small"
    assert decode(image_bytes(radiograph(8, 32, 200))).shape == (32, 200)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(monkeypatch):
    large = image_bytes(np.zeros((9000, 9000), np.uint8))
    larger = image_bytes(np.zeros((9500, 9500), np.uint8))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("the pixels were unpacked"))
    assert [reason_of(large), reason_of(larger)] == ["too_large", "too_large"]


def test_a_rejection_survives_the_way_from_a_worker():
    again = pickle.loads(pickle.dumps(Rejected("constant", "flat")))
    assert (again.reason, again.detail) == ("constant", "flat")
