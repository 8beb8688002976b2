"""What deep, transparent and printed images become: each value by its definition."""

import struct

import numpy as np
import pytest
from PIL import Image

from diffcli.config import ImageShape
from diffcli.data.modes import Range, extremes, flatten
from diffcli.data.pixels import BrokenImage, decode, open_image
from tests.data.making import encoded
from tests.data.png_chunks import png_of


def grey(data: bytes) -> list[int]:
    """The levels of the one row of an image, as grey."""
    image = open_image(data, "x")
    return decode(data, "x", ImageShape(1, image.height, image.width))[0, 0].tolist()


@pytest.mark.parametrize(
    ("depth", "samples", "transparent"), [(2, 0b01_11_01_01, 1), (4, 0x5F, 5), (8, 0x07, 7), (16, 1000, 1000)]
)
def test_the_transparent_level_of_a_grey_png_is_white_at_every_depth(depth: int, samples: int, transparent: int):
    row = samples.to_bytes(2 if depth == 16 else 1, "big")
    assert grey(png_of(row, kind=0, depth=depth, transparent=struct.pack(">H", transparent)))[0] == 255
    other = struct.pack(">H", transparent + 1)
    assert grey(png_of(row, kind=0, depth=depth, transparent=other))[0] < 128


def test_the_transparent_colour_of_a_png_of_sixteen_bits_is_white():
    colour = struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC)
    assert np.asarray(open_image(png_of(colour, kind=2, depth=16, transparent=colour), "x")).tolist() == [[[255] * 3]]
    assert np.asarray(open_image(png_of(colour, kind=2, depth=16), "x")).tolist() == [[[0x12, 0x56, 0x9A]]]


def test_a_printers_jpeg_without_adobes_mark_is_not_inverted():
    marked = encoded(
        Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100
    )  # stored inverted: 0, 255, 255, 255
    start = marked.index(b"\xff\xee")
    (length,) = struct.unpack_from(">H", marked, start + 2)
    plain = marked[:start] + marked[start + 2 + length :]
    assert np.asarray(open_image(marked, "x"))[0, 0].tolist() == [0, 255, 255]
    assert np.asarray(open_image(plain, "x"))[0, 0].tolist() == [0, 0, 0]  # 0, 255, 255, 255 of ink is black


def bmp_with_alpha(alpha: int) -> bytes:
    """A BMP of one pixel (10, 20, 30) whose header declares an alpha channel."""
    pixel = bytes([30, 20, 10, alpha])
    masks = struct.pack("<IIII", 0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 1, 1, 1, 32, 3, 4, 2835, 2835, 0, 0) + masks + bytes(52)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + 4, 0, 0, 14 + len(header)) + header + pixel


def test_an_alpha_of_0_everywhere_is_no_alpha_in_formats_whose_writers_leave_it_unset():
    assert np.asarray(open_image(bmp_with_alpha(0), "x")).tolist() == [[[10, 20, 30]]]
    assert np.asarray(open_image(bmp_with_alpha(255), "x")).tolist() == [[[10, 20, 30]]]
    assert np.asarray(open_image(encoded(Image.new("RGBA", (1, 1), (10, 20, 30, 0)), "TGA"), "x")).tolist() == [
        [[10, 20, 30]]
    ]
    half = encoded(Image.fromarray(np.array([[[0, 0, 0, 0], [10, 20, 30, 255]]], np.uint8)), "TGA")
    assert np.asarray(open_image(half, "x")).tolist() == [[[255] * 3, [10, 20, 30]]]


def tiff(values: np.ndarray, **options: object) -> bytes:
    return encoded(Image.fromarray(values), "TIFF", **options)


def test_a_range_says_what_is_black_and_white():
    twelve = Image.fromarray(np.array([[0, 2048, 4095, 65535]], np.uint16))
    assert np.asarray(flatten(twelve, Range(0, 4095))).tolist() == [[0, 128, 255, 255]]
    assert np.asarray(flatten(twelve)).tolist() == [[0, 8, 16, 255]]
    assert np.array_equal(np.asarray(flatten(twelve, Range(0, 65535))), np.asarray(flatten(twelve)))
    signed = tiff(np.array([[-1024, 1024, 3071]], np.int32))
    assert decode(signed, "x", ImageShape(1, 1, 3), levels=Range(-1024, 3071)).tolist() == [[[0, 128, 255]]]
    floats = tiff(np.array([[0.0, 0.5, 1.0, np.nan, np.inf]], np.float32))
    assert decode(floats, "x", ImageShape(1, 1, 5), levels=Range(0, 1)).tolist() == [[[0, 128, 255, 0, 255]]]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.array([[-1024, 3071]], np.int16), "-1024,3071"),
        (np.array([[0, 70000]], np.int32), "0,70000"),
        (np.array([[0.25, 1.5, np.nan]], np.float32), "0.25,1.5"),
    ],
)
def test_values_without_a_usual_meaning_are_refused_with_the_range_to_type(values: np.ndarray, told: str):
    data = signed_tiff(values) if values.dtype == np.int16 else tiff(values)
    with pytest.raises(BrokenImage) as error:
        decode(data, "scan.tif", ImageShape(1, 1, values.shape[1]))
    assert f"--range {told} " in error.value.problem
    assert f"data.range=[{told}]" in error.value.problem
    low, high = map(float, told.split(","))
    assert decode(data, "x", ImageShape(1, 1, values.shape[1]), levels=Range(low, high))[0, 0, :2].tolist() == [0, 255]


def signed_tiff(values: np.ndarray) -> bytes:
    """A TIFF whose samples are declared as signed numbers of 16 bits."""
    return encoded(Image.fromarray(values.view(np.uint16)), "TIFF", tiffinfo={339: 2})


def test_white_may_be_the_least_value_of_a_tiff():
    values = np.array([[0, 257 * 55, 65535]], np.uint16)
    assert grey(tiff(values, tiffinfo={262: 0})) == [255, 200, 0]


def test_the_extremes_of_an_image_are_those_of_its_finite_values():
    assert extremes(Image.fromarray(np.array([[1.5, np.nan, -np.inf, 3]], np.float32))) == (1.5, 3)
