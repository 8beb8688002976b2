"""From the bytes of an image file to uint8 pixels of one shape: upright, on white, cropped, antialiased.

Pillow decodes the formats of `image_formats`; `modes` converts the result to grey or RGB. The first frame of an animation is
used. Colour profiles are ignored, as data sets and their published statistics ignore them. JPEGs are decoded at full size, since
a reduced decode would give other pixels.
Nothing here imports torch: the workers of prep-data start fast.
"""

import io
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from diffcli.config import ImageShape, UserError
from diffcli.data.faults import is_momentary
from diffcli.data.image_formats import FORMATS, open_encoded, without_texts
from diffcli.data.modes import Range, flatten
from diffcli.digest import LOOK, stand_in

MAX_PIXELS = 178_956_970  # of one image, 512 MiB in RGB; more is a decompression bomb, not a photograph
PNG_DEPTH = 24  # the byte of a PNG that holds its bits a channel
EIGHT_BITS = 8
TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that exchange height and width
ROUNDING = 1e-6  # pixels
PLACES = 1 << 15  # that a random crop can have along an axis
AT_ONCE = 1 << 24  # numbers of an array that are resized in one call
PROBE = 40  # images whose resizing shows how Pillow goes about it

NEAREST = Image.Resampling.NEAREST

Place = tuple[float, float]
"""The place of a crop, down and across, in [0, 1) of the free whole pixels."""

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # no warning before an error


class BrokenImage(UserError):
    """An image file that cannot be decoded; `reason` says why, `name` which."""

    what = "image"
    remedy = "delete or replace that file, or let `diffcli prep-data` make a set that skips and lists broken files"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{self.what} {name} cannot be read: {reason}", self.remedy)
        self.name, self.reason = name, reason


def open_image(data: bytes, name: str, flat: Callable[[Image.Image], Image.Image] | None = None) -> Image.Image:
    """The decoded image, mode L where the file is grey and RGB otherwise, EXIF orientation applied, alpha on white.

    name: of the file, for the error. flat: converts to mode L or RGB; by default `flatten`.
    Raises BrokenImage for anything that is not a complete image.
    """
    try:
        image = _loaded(data)
        with suppress(Exception):  # garbled EXIF is common in photographs whose pixels are whole
            ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise nearly anything on garbled files
        raise _broken(name, error, data[:LOOK]) from error
    try:
        return (flat or flatten)(image)
    except (ValueError, OSError) as error:  # any other is a fault of ours
        raise _broken(name, error, data[:LOOK]) from error


def read_size(file: IO[bytes], name: str) -> tuple[int, int]:
    """(height, width) of an image as `open_image` gives it, from its header alone. Raises BrokenImage."""
    head = file.read(LOOK)
    try:
        file.seek(0)
        with open_encoded(file) as image:
            _check_pixels(image)
            turned = _orientation(image) in TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except MemoryError:
        raise
    except OSError as error:
        if is_momentary(error):
            raise
        raise _broken(name, error, head) from error
    except Exception as error:  # as in open_image
        raise _broken(name, error, head) from error


def _loaded(data: bytes) -> Image.Image:
    """An image with its pixels. A PNG with texts that are larger than Pillow admits is read without them."""
    try:
        image = open_encoded(io.BytesIO(data))
        _check_pixels(image)
        image.load()
    except ValueError:
        plain = without_texts(data)
        if plain is None:
            raise
        return _loaded(plain)
    _scale_transparency(image, data)
    return image


def _scale_transparency(image: Image.Image, data: bytes) -> None:
    """The transparent colour of a PNG in the levels of the pixels: the file has it in its own depth, 2 to 16 bits."""
    transparent = image.info.get("transparency")
    if image.format != "PNG" or transparent is None:
        return
    depth = data[PNG_DEPTH]
    if isinstance(transparent, int) and image.mode == "L" and depth < EIGHT_BITS:
        image.info["transparency"] = transparent * 255 // ((1 << depth) - 1)
    elif isinstance(transparent, tuple) and depth > EIGHT_BITS:
        image.info["transparency"] = tuple(level >> EIGHT_BITS for level in transparent)


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError


def _orientation(image: Image.Image) -> int:
    """The orientation of the camera, 1 (upright) to 8."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as in open_image
        return 1


def _broken(name: str, error: Exception, head: bytes) -> BrokenImage:
    """head: the first bytes of the file."""
    if found := stand_in(head):
        return BrokenImage(name, found)
    match error:
        case UnidentifiedImageError():  # its own text holds a memory address
            return BrokenImage(name, f"it is none of {', '.join(FORMATS)}")
        case Image.DecompressionBombError():
            return BrokenImage(name, f"it has more than {MAX_PIXELS:,} pixels, a decompression bomb")
        case _:
            return BrokenImage(name, str(error).removesuffix(".") or type(error).__name__)


def place(draw: int) -> Place:
    """The place of a random crop from bits 33 to 62 of a sample's draw, which no other choice uses."""
    return (draw >> 33) % PLACES / PLACES, (draw >> 48) % PLACES / PLACES


def fit(
    image: Image.Image,
    shape: ImageShape,
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
    at: Place | None = None,
) -> np.ndarray:
    """uint8 (C, H, W): shorter side resized, cropped there, in one antialiased resampling; converted between grey and RGB.

    at: None is the centre. Resampling straight from the crop's box avoids rounding the intermediate size to whole pixels.
    Anywhere but at the centre the box begins at a whole pixel, so that cropping alone blurs nothing.
    """
    mode = "L" if shape.channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)  # converting to the same mode would copy
    if image.size != (shape.width, shape.height):
        image = image.resize((shape.width, shape.height), resampling, box=_box(image.width, image.height, shape, at))
    return channels_first(image)


def _box(width: int, height: int, shape: ImageShape, at: Place | None) -> tuple[float, float, float, float]:
    """What of an image is looked at: left, top, right and bottom of the largest box as wide and high as the shape."""
    scale = min(width / shape.width, height / shape.height)  # source pixels for one of ours
    wide, high = min(shape.width * scale, width), min(shape.height * scale, height)
    rooms = height - high, width - wide
    top, left = (rooms[0] / 2, rooms[1] / 2) if at is None else map(_whole, rooms, at)
    return left, top, min(left + wide, width), min(top + high, height)


def _whole(room: float, share: float) -> int:
    """One of the whole pixels 0 to `room`, equally likely where share is uniform on [0, 1)."""
    return int(share * (int(room + ROUNDING) + 1))


def channels_first(image: Image.Image) -> np.ndarray:
    """uint8 (C, H, W) of a mode L or RGB image."""
    if image.mode == "L":
        return np.array(image)[None]
    return np.array(np.asarray(image).transpose(2, 0, 1), order="C")  # a copy, which may be written to


def to_image(pixels: np.ndarray) -> Image.Image:
    """The inverse of channels_first: uint8 (C, H, W), C 1 or 3."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def is_plain_jpeg(data: bytes) -> bool:
    """Whether a file that decodes is a JPEG whose pixels need no change: grey or RGB, and stored upright."""
    with open_encoded(io.BytesIO(data)) as image:
        return image.format == "JPEG" and image.mode in ("L", "RGB") and _orientation(image) == 1


def to_png(image: Image.Image) -> bytes:
    """A PNG of the pixels alone: no profile, no comments of the file that they came from."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(
        file, "PNG", compress_level=3
    )  # no larger than level 6 for small images, a third faster
    return file.getvalue()


def decode(
    data: bytes,
    name: str,
    shape: ImageShape,
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
    at: Place | None = None,
    levels: Range | None = None,
) -> np.ndarray:
    """uint8 (C, H, W) of an encoded image file in this shape. levels: see `modes.flatten`. Raises BrokenImage."""
    return fit(open_image(data, name, partial(flatten, levels=levels)), shape, resampling, at)


def fit_all(images: np.ndarray, shape: ImageShape) -> np.ndarray:
    """uint8 (N, C, H, W) resized and converted to `shape`; the very array where it has that shape already.

    Each becomes to the bit what `fit` makes of it alone. Of many images Pillow resamples all rows in one call, as those of one
    high image, and then all columns, or the other way round.
    """
    if images.shape[1:] == tuple(shape):
        return images
    order = _order(images.shape[1:], shape) if len(images) > PROBE else None
    if order is None:
        return np.stack([fit(to_image(image), shape) for image in images])
    some = max(1, AT_ONCE // images[0].size)
    return np.concatenate([_fit_alike(images[i : i + some], shape, order) for i in range(0, len(images), some)])


@lru_cache
def _order(source: tuple[int, ...], shape: ImageShape) -> tuple[int, int] | None:
    """Which axis of (N, C, H, W) Pillow resamples first: it rounds to bytes between, and its versions decide by other rules.

    Found by what it makes of noise. None: neither order gives that.
    """
    noise = np.random.default_rng(0).integers(0, 256, (PROBE, *source), np.uint8)
    expected = np.stack([fit(to_image(image), shape) for image in noise])
    return next(
        (order for order in ((3, 2), (2, 3)) if np.array_equal(_fit_alike(noise, shape, order), expected)), None
    )


def _fit_alike(images: np.ndarray, shape: ImageShape, order: tuple[int, int]) -> np.ndarray:
    height, width = images.shape[2:]
    left, top, right, bottom = _box(width, height, shape, None)
    for axis in order:
        if axis == 3:
            images = _across(images, shape.channels, shape.width, left, right)
        else:
            images = _across(images.swapaxes(2, 3), shape.channels, shape.height, top, bottom).swapaxes(2, 3)
    return np.ascontiguousarray(images)


def _across(images: np.ndarray, channels: int, width: int, left: float, right: float) -> np.ndarray:
    """(N, channels, H, width) of images (N, C, H, W), each row resampled between `left` and `right`."""
    count, depth, height, before = images.shape
    mode = "L" if channels == 1 else "RGB"
    high = to_image(images.transpose(1, 0, 2, 3).reshape(depth, count * height, before)).convert(mode)
    high = high.resize((width, high.height), Image.Resampling.BICUBIC, box=(left, 0, right, high.height))
    return channels_first(high).reshape(channels, count, height, width).transpose(1, 0, 2, 3)
