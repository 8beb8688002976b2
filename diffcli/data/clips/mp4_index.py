"""The index of an MP4 file: how many frames its pictures have, where the length of the file counts its sound too.

Source: ISO/IEC 14496-12: 4.2 (boxes), 8.4.3 (hdlr), 8.7.3.2 (stsz).
"""

from collections.abc import Iterator

PICTURES = b"vide"  # handler of a track


def counted_frames(data: bytes) -> int | None:
    """The frames of the first track of pictures by its index; None where there is none, or where fragments hold them."""
    for track in inner(data, range(len(data)), b"moov", b"trak"):
        handler = next(inner(data, track, b"mdia", b"hdlr"), range(0))
        sizes = next(inner(data, track, b"mdia", b"minf", b"stbl", b"stsz"), range(0))
        if data[handler.start + 8 : handler.start + 12] == PICTURES:
            return int.from_bytes(data[sizes.start + 8 : min(sizes.start + 12, sizes.stop)], "big") or None
    return None


def inner(data: bytes, span: range, name: bytes, *names: bytes) -> Iterator[range]:
    """The contents of the boxes of a name in a span of the data, or of those of further names within these."""
    place = span.start
    while place + 8 <= span.stop:
        size, begin = int.from_bytes(data[place : place + 4], "big"), place + 8
        if size == 1:
            size, begin = int.from_bytes(data[begin : begin + 8], "big"), place + 16
        end = min(place + max(size, 8), span.stop) if size else span.stop
        if data[place + 4 : place + 8] == name:
            content = range(begin, end)
            yield from inner(data, content, *names) if names else (content,)
        place = end
