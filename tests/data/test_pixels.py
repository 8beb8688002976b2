"""Decoding: every mode becomes 8-bit grey or RGB, upright, on white; resizing is antialiased and centred."""

import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffcli.config import ImageShape
from diffcli.data.pixels import BrokenImage, decode, fit, fit_all, is_plain_jpeg, open_image, to_image, to_png
from tests.data.making import encoded, pixels, png

RGB = ImageShape(3, 4, 4)


def colour(data: bytes, shape: ImageShape = RGB) -> list[int]:
    """The one colour of an image."""
    array = decode(data, "x", shape)
    assert (array == array[:, :1, :1]).all()
    return array[:, 0, 0].tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_of_the_right_size_come_back_exactly(channels: int):
    image = pixels(1, channels, 5, 7)[0]
    assert np.array_equal(decode(png(image), "x", ImageShape(channels, 5, 7)), image)


def test_grey_is_repeated_and_colour_becomes_luminance():
    grey = pixels(1, 1, 4, 4)[0]
    assert np.array_equal(decode(png(grey), "x", RGB), np.repeat(grey, 3, 0))
    assert np.array_equal(decode(png(np.repeat(grey, 3, 0)), "x", ImageShape(1, 4, 4)), grey)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), [255, 255, 255]),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 255)), [10, 20, 30]),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), [204, 204, 204]),
        (Image.new("LA", (4, 4), (0, 0)), [255, 255, 255]),
        (Image.new("1", (4, 4), 1), [255, 255, 255]),
        (Image.new("I;16", (4, 4), 65535), [255, 255, 255]),
        (Image.new("I;16", (4, 4), 257 * 100), [100, 100, 100]),
        (Image.new("I;16", (4, 4), 257 * 100 + 129), [101, 101, 101]),
        (Image.new("P", (4, 4)), [0, 0, 0]),
    ],
    ids=["clear", "opaque", "fifth", "grey-clear", "bit", "16-bit-white", "16-bit", "16-bit-rounded", "palette"],
)
def test_every_mode_becomes_eight_bits_on_white(image: Image.Image, expected: list[int]):
    assert colour(encoded(image, "PNG")) == expected


def test_the_transparent_entry_of_a_palette_is_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    assert colour(encoded(image, "PNG", transparency=1)) == [255, 255, 255]
    assert colour(encoded(image, "GIF")) == [200, 0, 0]


def test_cmyk_becomes_rgb():
    assert colour(encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 255)), "JPEG")) == [0, 0, 0]


def test_a_photograph_is_turned_upright():
    image = Image.fromarray(pixels(1, 3, 2, 4)[0].transpose(1, 2, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held a quarter turn: rotate clockwise to show it
    upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).transpose(2, 0, 1)
    assert np.array_equal(decode(encoded(image, "PNG", exif=exif), "x", ImageShape(3, 4, 2)), upright)


def test_the_centre_is_cropped():
    bands = Image.new("RGB", (12, 4), "red")
    bands.paste("green", (4, 0, 8, 4))
    assert (fit(bands, RGB) == np.array([0, 128, 0], np.uint8)[:, None, None]).all()
    assert (fit(bands.rotate(90, expand=True), RGB) == np.array([0, 128, 0], np.uint8)[:, None, None]).all()


def test_shrinking_is_antialiased():
    """A one-pixel checkerboard has no detail left at a quarter of its size: it is mid-grey everywhere."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[None]
    small = fit_all(board[None], ImageShape(1, 16, 16))[0]
    assert abs(small.astype(int) - 127.5).max() < 8


SIDE = st.integers(1, 30)
CHANNELS = st.sampled_from([1, 3])


@given(CHANNELS, SIDE, SIDE, CHANNELS, SIDE, SIDE)
@settings(max_examples=30, deadline=None)
def test_images_of_an_array_become_to_the_bit_what_each_alone_becomes(
    channels: int, height: int, width: int, ours: int, target_height: int, target_width: int
):
    images, shape = pixels(99, channels, height, width), ImageShape(ours, target_height, target_width)
    assert np.array_equal(fit_all(images, shape), np.stack([fit(to_image(image), shape) for image in images]))


def test_an_array_of_any_length_is_resized_in_parts_of_limited_size(monkeypatch: pytest.MonkeyPatch):
    images, shape = pixels(99, 3, 8, 8), ImageShape(3, 5, 5)
    whole = fit_all(images, shape)
    for limit in (1, 4000):
        monkeypatch.setattr("diffcli.data.pixels.AT_ONCE", limit)
        assert np.array_equal(fit_all(images, shape), whole)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_any_size_fits_any_shape(width: int, height: int, target_height: int, target_width: int):
    image = fit(Image.new("RGB", (width, height), (9, 99, 199)), ImageShape(3, target_height, target_width))
    assert image.shape == (3, target_height, target_width)
    assert (image == np.array([9, 99, 199], np.uint8)[:, None, None]).all()


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\0", b"BM"]),
)
@settings(max_examples=300, deadline=None)
def test_garbage_is_a_broken_image(data: bytes, start: bytes):
    with pytest.raises(BrokenImage, match=r"photo\.png") as caught:
        decode(start + data, "photo.png", RGB)
    assert " at 0x" not in caught.value.problem  # an address would differ from run to run


@given(st.integers(0, 2**32 - 1), st.integers(1, 255), st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF"]))
@settings(max_examples=200, deadline=None)
def test_a_flipped_byte_is_a_broken_image_or_another_image(position: int, change: int, kind: str):
    data = bytearray(encoded(Image.fromarray(pixels(1, 3, 8, 8)[0].transpose(1, 2, 0)), kind))
    data[position % len(data)] ^= change
    with suppress(BrokenImage):
        assert decode(bytes(data), "x", RGB).shape == RGB


def test_a_truncated_image_is_broken():
    data = png(pixels(1, 3, 16, 16)[0])
    with pytest.raises(BrokenImage, match=r"photo\.png cannot be read"):
        decode(data[: len(data) // 2], "photo.png", RGB)


def test_a_decompression_bomb_is_broken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(BrokenImage, match="bomb"):
        decode(png(pixels(1, 1, 8, 8)[0]), "x", RGB)


def test_postscript_is_not_interpreted():
    with pytest.raises(BrokenImage, match="none of PNG"):
        decode(encoded(Image.new("RGB", (4, 4)), "EPS"), "x", RGB)


def test_floating_point_pixels_are_refused():
    with pytest.raises(BrokenImage, match="floating-point"):
        decode(encoded(Image.new("F", (4, 4)), "TIFF"), "x", RGB)


def test_only_upright_grey_or_rgb_jpegs_may_keep_their_bytes():
    image, exif = Image.new("RGB", (4, 4)), Image.Exif()
    exif[0x0112] = 3
    assert is_plain_jpeg(encoded(image, "JPEG"))
    assert is_plain_jpeg(encoded(image.convert("L"), "JPEG"))
    assert not is_plain_jpeg(encoded(image, "JPEG", exif=exif))
    assert not is_plain_jpeg(encoded(image.convert("CMYK"), "JPEG"))
    assert not is_plain_jpeg(encoded(image, "PNG"))


def test_a_stored_png_holds_pixels_only():
    source = encoded(Image.new("RGB", (4, 4)), "PNG", icc_profile=b"profile", dpi=(72, 72))
    assert set(Image.open(io.BytesIO(to_png(open_image(source, "x")))).info) == set()
