"""PNG files put together chunk by chunk, for what Pillow does not write."""

import struct
import zlib


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(
    row: bytes, *, kind: int, depth: int, transparent: bytes = b"", more: bytes = b"", last: bytes = b""
) -> bytes:
    """A PNG of one row. kind: 0 grey, 2 RGB; depth: bits a channel; more, last: chunks before and behind the pixels."""
    width = len(row) * 8 // (depth * (3 if kind == 2 else 1))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    clear = chunk(b"tRNS", transparent) if transparent else b""
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + more + clear + pixels + last + chunk(b"IEND", b"")
