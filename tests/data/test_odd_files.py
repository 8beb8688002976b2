"""Files as the web has them, each with pixels that are known: odd modes, animations, turned photographs, extreme sizes."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from diffcli.config import ImageShape
from diffcli.data.pixels import BrokenImage, decode, fit, open_image, read_size
from tests.data.making import encoded, pixels

FRAMES = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
TURN = Image.Transpose
STORED = (  # how the cameras of the orientations 1 to 8 turn an upright picture
    None, TURN.FLIP_LEFT_RIGHT, TURN.ROTATE_180, TURN.FLIP_TOP_BOTTOM,
    TURN.TRANSPOSE, TURN.ROTATE_90, TURN.TRANSVERSE, TURN.ROTATE_270,
)  # fmt: skip
QUARTERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)  # (2, 2, 3)


def colour(data: bytes) -> list[int]:
    """The one colour of an image of 4x4."""
    array = decode(data, "x", ImageShape(3, 4, 4))
    assert (array == array[:, :1, :1]).all()
    return array[:, 0, 0].tolist()


def deep_png(kind: int, samples: list[int]) -> bytes:
    """A PNG of one 16-bit pixel. kind: 0 grey, 2 RGB, 4 grey and alpha, 6 RGB and alpha."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, kind, 0, 0, 0)
    line = zlib.compress(b"\0" + struct.pack(f">{len(samples)}H", *samples))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", line) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "samples", "expected"),
    [
        (0, [257 * 100], [100, 100, 100]),
        (2, [257 * 10, 257 * 20, 65535], [10, 20, 255]),
        (4, [257 * 100, 0], [255, 255, 255]),
        (6, [257 * 10, 257 * 20, 257 * 30, 65535], [10, 20, 30]),
        (6, [0, 0, 0, 0], [255, 255, 255]),
    ],
    ids=["grey", "rgb", "grey-clear", "rgba", "rgba-clear"],
)
def test_sixteen_bits_a_channel_become_eight(kind: int, samples: list[int], expected: list[int]):
    assert decode(deep_png(kind, samples), "x", ImageShape(3, 1, 1))[:, 0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "TIFF", [0, 255, 255]),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG", [255, 255, 255]),
        (Image.new("LA", (4, 4), (0, 51)), "PNG", [204, 204, 204]),
        (Image.new("1", (4, 4), 0), "TIFF", [0, 0, 0]),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "WEBP", [255, 255, 255]),
        (Image.new("RGB", (4, 4), (1, 2, 3)).quantize(2), "BMP", [1, 2, 3]),
        (Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF", [255, 255, 255]),
    ],
    ids=["cmyk-tiff", "cmyk-jpeg", "grey-alpha", "bit", "clear-webp", "palette-bmp", "lab"],
)
def test_every_mode_has_its_colour(image: Image.Image, kind: str, expected: list[int]):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.allclose(colour(encoded(image, kind, **options)), expected, atol=1)


def test_ycck_of_printers_becomes_rgb():
    """Adobe's four-channel JPEG: marked as YCCK, the same numbers are luminance and two neutral colour differences."""
    data = encoded(
        Image.new("CMYK", (8, 8), (155, 127, 127, 0)), "JPEG", quality=100
    )  # stored inverted: 100, 128, 128, 255
    marker = data.index(b"Adobe")
    ycck = data[: marker + 11] + b"\x02" + data[marker + 12 :]
    found = decode(ycck, "x", ImageShape(3, 8, 8))[:, 0, 0].astype(int)
    assert abs(found - 155).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind: str):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert colour(encoded(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:], **options)) == [255, 0, 0]


@pytest.mark.parametrize(("orientation", "turn"), list(enumerate(STORED, start=1)))
def test_a_photograph_held_any_way_is_upright(orientation: int, turn: Image.Transpose | None):
    upright = Image.fromarray(np.repeat(np.repeat(QUARTERS, 2, 0), 3, 1))  # 4 high, 6 wide
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(upright if turn is None else upright.transpose(turn), "PNG", exif=exif)
    assert np.array_equal(np.asarray(open_image(data, "x")), np.asarray(upright))
    assert read_size(io.BytesIO(data), "x") == (4, 6)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_tiny_and_thin_images_fill_any_shape(size: tuple[int, int]):
    data = encoded(Image.new("RGB", size, (9, 99, 199)), "PNG")
    assert (decode(data, "x", ImageShape(3, 16, 24)) == np.array([9, 99, 199], np.uint8)[:, None, None]).all()


def test_a_colour_profile_changes_no_pixel():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = Image.fromarray(pixels(1, 3, 4, 4)[0].transpose(1, 2, 0))
    assert np.array_equal(np.asarray(open_image(encoded(image, "PNG", icc_profile=profile), "x")), np.asarray(image))


@pytest.mark.parametrize("reader", [open_image, lambda data, name: read_size(io.BytesIO(data), name)])
def test_more_pixels_than_a_photograph_has_are_not_decoded(monkeypatch: pytest.MonkeyPatch, reader):
    header = encoded(Image.new("1", (20_000, 10_000)), "PNG")  # 24 kB that would be 600 MB
    with pytest.raises(BrokenImage, match=r"photo\.png cannot be read: it has more than 178,956,970 pixels"):
        reader(header, "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # whatever another library sets
    with pytest.raises(BrokenImage, match="178,956,970 pixels"):
        reader(header, "photo.png")


def test_a_jpeg_is_decoded_at_full_size():
    """A reduced decode is faster but another filter: pixels would depend on the size that is asked for."""
    image = Image.fromarray(pixels(1, 3, 64, 64)[0].transpose(1, 2, 0))
    data = encoded(image, "JPEG", quality=95)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(decode(data, "x", ImageShape(3, 8, 8)), fit(whole, ImageShape(3, 8, 8)))


def test_a_random_crop_is_a_piece_of_the_image():
    image = Image.fromarray(pixels(1, 3, 5, 9)[0].transpose(1, 2, 0))
    whole, shape = np.asarray(image).transpose(2, 0, 1), ImageShape(3, 5, 5)
    for place, left in ((0.0, 0), (0.39, 1), (0.41, 2), (0.999, 4)):
        assert np.array_equal(fit(image, shape, at=(0.7, place)), whole[:, :, left : left + 5])
        turned = fit(image.transpose(Image.Transpose.TRANSPOSE), shape, at=(place, 0.7))
        assert np.array_equal(turned, whole[:, :, left : left + 5].transpose(0, 2, 1))
    assert np.array_equal(fit(image, shape), whole[:, :, 2:7])
