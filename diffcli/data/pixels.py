"""From the bytes of an image file to uint8 pixels of one shape: upright, on white, centre-cropped, antialiased.

Decoding is Pillow's, limited to formats that are plain images (no PostScript, no interpreter behind it), so files from
strangers are safe to open. Nothing here imports torch: the workers of prep-data start fast.
"""

import io
from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from diffcli.config import ImageShape, UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
WITH_ALPHA = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
GREY = frozenset({"1", "L", "LA", "La"})
SIXTEEN_BITS = 65535


class BrokenImage(UserError):
    """An image file that cannot be decoded; `reason` says why, `name` which."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"image {name} cannot be read: {reason}",
            "delete or replace that file, or let `diffcli prep-data` make a set that skips and lists broken files",
        )
        self.name, self.reason = name, reason


def open_image(data: bytes, name: str) -> Image.Image:
    """The decoded image, mode L where the file is grey and RGB otherwise, EXIF orientation applied, alpha on white.

    name: the file as the user knows it, for the error. Raises BrokenImage for anything that is not a whole image.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
        with suppress(Exception):  # garbled EXIF is common in photographs whose pixels are whole
            ImageOps.exif_transpose(image, in_place=True)
        return flatten(image)
    except UnidentifiedImageError as error:  # its own text holds a memory address
        raise BrokenImage(name, f"it is none of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's parsers raise nearly anything on garbled files, decompression bombs included
        raise BrokenImage(name, str(error).removesuffix(".") or type(error).__name__) from error


def flatten(image: Image.Image) -> Image.Image:
    """Mode L (grey) or RGB of any mode: 16 bits scaled to 8 and rounded, transparency laid on white."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > SIXTEEN_BITS:
            raise ValueError("pixels of more than 16 bits")
        return Image.fromarray(((wide * 255 + SIXTEEN_BITS // 2) // SIXTEEN_BITS).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers")
    mode = "L" if image.mode in GREY else "RGB"
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image if image.mode == mode else image.convert(mode)


def fit(image: Image.Image, shape: ImageShape, resampling: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    """uint8 (C, H, W): shorter side resized, centre cropped, in one antialiased resampling; grey <-> RGB as asked.

    Resampling straight from the crop's box avoids rounding the intermediate size to whole pixels.
    """
    mode = "L" if shape.channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)  # converting to the same mode would copy
    if image.size != (shape.width, shape.height):
        scale = min(image.width / shape.width, image.height / shape.height)  # source pixels for one of ours
        width, height = min(shape.width * scale, image.width), min(shape.height * scale, image.height)
        left, top = (image.width - width) / 2, (image.height - height) / 2
        box = (left, top, min(left + width, image.width), min(top + height, image.height))
        image = image.resize((shape.width, shape.height), resampling, box=box)
    return channels_first(image)


def channels_first(image: Image.Image) -> np.ndarray:
    """uint8 (C, H, W) of a mode L or RGB image."""
    array = np.array(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def to_image(pixels: np.ndarray) -> Image.Image:
    """The inverse of channels_first: uint8 (C, H, W), C 1 or 3."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def is_plain_jpeg(data: bytes) -> bool:
    """Whether a file that decodes is a JPEG whose pixels need no change: grey or RGB, and stored upright."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        try:
            upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        except Exception:  # as in open_image
            upright = False
        return image.format == "JPEG" and image.mode in ("L", "RGB") and upright


def to_png(image: Image.Image) -> bytes:
    """A PNG of the pixels alone: no profile, no comments of the file that they came from."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(
        file, "PNG", compress_level=3
    )  # no larger than level 6 for small images, a third faster
    return file.getvalue()


def decode(data: bytes, name: str, shape: ImageShape) -> np.ndarray:
    """uint8 (C, H, W) of an encoded image file in the shape asked for. Raises BrokenImage."""
    return fit(open_image(data, name), shape)


def fit_all(images: np.ndarray, shape: ImageShape) -> np.ndarray:
    """uint8 (N, C, H, W) resized and converted to `shape`; the very array where it has that shape already."""
    if images.shape[1:] == tuple(shape):
        return images
    return np.stack([fit(to_image(image), shape) for image in images])
