"""The range of values of deep images (16 bits, or floating-point numbers), to note sets that use a small part of it."""

import io
from collections.abc import Iterable

from diffcli.data.image_formats import open_encoded
from diffcli.data.modes import SIXTEEN_BITS, Range, extremes, is_deep

DARK = 1 << 14  # with a largest value below this, images have at most a quarter of white
LOOKED_AT = 8  # images of a set


def deep_range(data: bytes) -> Range | None:
    """The lowest and the highest value of a deep image; None for any other and for a broken one."""
    try:
        with open_encoded(io.BytesIO(data)) as image:
            return extremes(image) if is_deep(image) else None
    except Exception:  # Pillow's parsers raise nearly anything on garbled files, which decoding reports
        return None


def range_note(files: Iterable[bytes], flag: str) -> str | None:
    """A note on the first images of a set if they are deep. flag: how to give a range, with {} for its two ends."""
    seen: list[Range] = []
    for data in files:
        found = deep_range(data)
        if found is None:
            break
        seen.append(found)
        if len(seen) == LOOKED_AT:
            break
    if not seen:
        return None
    low, high = min(one.low for one in seen), max(one.high for one in seen)
    text = f"the images have 16 bits, of which the first {len(seen)} hold {low:g} to {high:g}"
    if low < SIXTEEN_BITS.low or high > SIXTEEN_BITS.high:
        return f"{text}; {flag.format(f'{low:g},{high:g}')} makes these black and white"
    if high >= DARK:
        return f"{text}, black being 0 and white 65535"
    full = (1 << max(8, int(high).bit_length())) - 1
    return f"{text}, so that they come out dark: {flag.format(f'0,{full}')} makes {full} white"
