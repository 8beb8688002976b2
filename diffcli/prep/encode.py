"""Encodes pictures: images as JPEG or PNG, antialiased when they shrink; masks with unchanged values."""

from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffcli.config import ImageShape
from diffcli.data.field_notes import is_mask
from diffcli.data.files import Location, read_location
from diffcli.data.modes import Range, class_values, flatten
from diffcli.data.pixels import fit, fit_all, is_plain_jpeg, open_image, to_image, to_png


class Picture(NamedTuple):
    """An encoded image: file extension, bytes, channels, (height, width), and those it had before it was resized.

    values: those that occur in a mask, rising; None for other pictures.
    """

    extension: str
    data: bytes
    channels: int
    size: tuple[int, int]
    original: tuple[int, int]
    values: tuple[int, ...] | None = None


def encode(name: str, source: Location | np.ndarray, size: int | None, levels: Range | None = None) -> Picture:
    """The image as it is stored: a JPEG that needs no change keeps its bytes, anything else becomes a PNG.

    levels: see `modes.flatten`.

    Raises BrokenImage where it cannot be decoded; OSError or one of ARCHIVE_ERRORS where it cannot be read.
    """
    if isinstance(source, np.ndarray):
        native = ImageShape(*source.shape)
        shape = native if size is None else ImageShape(native.channels, size, size)
        return _png(to_image(fit_all(source[None], shape)[0]), native[1:])
    data = read_location(source)
    image = open_image(data, name, partial(flatten, levels=levels))
    original = image.height, image.width
    if (size is None or image.size == (size, size)) and is_plain_jpeg(data):
        return Picture("jpg", data, _channels(image), original, original)
    return _png(_fitted(image, size, Image.Resampling.BICUBIC), original)


def encode_over(name: str, field: str, source: Location | np.ndarray, size: int | None) -> Picture:
    """A picture that belongs to an image, as a grey PNG. The values of a mask are classes, which resizing never mixes.

    Raises as `encode` does, also for a mask whose values are not bytes.
    """
    flat = class_values if is_mask(field) else flatten
    resampling = Image.Resampling.NEAREST if is_mask(field) else Image.Resampling.BICUBIC
    image = to_image(source) if isinstance(source, np.ndarray) else open_image(read_location(source), name, flat)
    fitted = _fitted(image.convert("L"), size, resampling)
    values = tuple(np.unique(np.asarray(fitted)).tolist()) if is_mask(field) else None
    return _png(fitted, (image.height, image.width))._replace(values=values)


def _fitted(image: Image.Image, size: int | None, resampling: Image.Resampling) -> Image.Image:
    if size is None or image.size == (size, size):
        return image
    return to_image(fit(image, ImageShape(_channels(image), size, size), resampling))


def _png(image: Image.Image, original: tuple[int, int]) -> Picture:
    return Picture("png", to_png(image), _channels(image), (image.height, image.width), original)


def _channels(image: Image.Image) -> int:
    return 1 if image.mode == "L" else 3
