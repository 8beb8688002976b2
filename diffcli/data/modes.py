"""From the modes in which Pillow decodes images to 8-bit grey or RGB on white, and to the class numbers of masks."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops

WITH_ALPHA = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
GREY = frozenset({"1", "L", "LA", "La"})
UNUSED_ALPHA = frozenset({"BMP", "DIB", "TGA"})  # many programs leave 0 there, and all others ignore it then
WHITE = 255
MIN_IS_WHITE = 0  # of a TIFF's photometric interpretation
PHOTOMETRIC = 262


class Range(NamedTuple):
    """The values of deep pixels that become black and white; values outside are clipped."""

    low: float
    high: float


SIXTEEN_BITS = Range(0, 65535)


def is_deep(image: Image.Image) -> bool:
    """Whether an image has one channel of more than 8 bits or of floating-point numbers."""
    return image.mode == "F" or image.mode.startswith("I")


def extremes(image: Image.Image) -> Range:
    """The lowest and the highest finite value of a deep image."""
    values = np.asarray(image)
    finite = values[np.isfinite(values)] if image.mode == "F" else values
    return Range(finite.min().item(), finite.max().item()) if finite.size else Range(0, 0)


def flatten(image: Image.Image, levels: Range | None = None) -> Image.Image:
    """Mode L (grey) or RGB from any mode: deep pixels scaled to 8 bits and rounded, transparent pixels on white.

    levels: the values of deep pixels that are black and white; None is 0 to 65535. Raises ValueError for deep pixels beyond that,
    and for floating-point ones, unless levels are given.
    """
    if is_deep(image):
        return _of_deep(image, levels)
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Adobe stores inverted ink, which Pillow expects of all
    mode = "L" if image.mode in GREY else "RGB"
    if image.mode == "RGBA" and image.format in UNUSED_ALPHA and image.getchannel("A").getextrema() == (0, 0):
        return image.convert(mode)
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image if image.mode == mode else image.convert(mode)


def _of_deep(image: Image.Image, levels: Range | None) -> Image.Image:
    values = np.asarray(image)
    low, high = levels or SIXTEEN_BITS
    if levels is None:
        found = extremes(image)
        if image.mode == "F" or found.low < low or found.high > high:
            what = "floating-point numbers" if image.mode == "F" else "values"
            ends = f"{found.low:g},{found.low + 1 if found.low == found.high else found.high:g}"
            raise ValueError(
                f"its pixels are {what} from {found.low:g} to {found.high:g}; give the values of black and white by"
                f" --range {ends} of prep-data, or data.range=[{ends}]"
            )
    if levels is None:
        wide = values.astype(np.uint32) * np.uint32(WHITE)  # fits, and half the memory of int64
        grey = ((wide + np.uint32(high // 2)) // np.uint32(high)).astype(np.uint8)
    else:
        share = (np.nan_to_num(values.astype(np.float64), nan=low) - low) / (high - low)
        grey = np.floor(share.clip(0, 1) * WHITE + 0.5).astype(np.uint8)
    if _white_is_least(image):
        grey = WHITE - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(WHITE), grey)
    return Image.fromarray(grey)


def _white_is_least(image: Image.Image) -> bool:
    """Whether a TIFF counts from white to black, which Pillow handles for 8 bits alone."""
    tags = getattr(image, "tag_v2", {})
    return image.format == "TIFF" and tags.get(PHOTOMETRIC) == MIN_IS_WHITE


def class_values(image: Image.Image) -> Image.Image:
    """Mode L, the values of a mask: of a coloured palette its indices, of anything grey the grey values."""
    if image.mode == "P" and not _is_grey(image.convert("RGB")):
        return Image.fromarray(np.asarray(image))
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if set(np.unique(values)) <= {0, 65535}:  # black and white in 16 bits
            values = values // 257
        if values.min() < 0 or values.max() > WHITE:
            raise ValueError("a mask with values beyond 0 to 255")
        return Image.fromarray(values.astype(np.uint8))
    if image.mode in ("1", "L"):
        return image.convert("L")
    colours = image.convert("RGB")
    if not _is_grey(colours):
        raise ValueError("a mask in colour; store its classes as grey values or as a palette")
    return colours.getchannel("R")


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = (np.asarray(image.getchannel(channel)) for channel in "RGB")
    return bool((red == green).all() and (green == blue).all())
