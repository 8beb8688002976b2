"""The IDX files of MNIST: `00 00 TYPE NDIM`, NDIM big-endian 32-bit sizes, then the bytes; plain or gzipped.

Source: LeCun, Cortes and Burges, "The MNIST database", http://yann.lecun.com/exdb/mnist/ (section "FILE FORMATS").
"""

import gzip
import io
import math
import struct
import zlib

import numpy as np

from diffcli.config import UserError

UNSIGNED_BYTE = 0x08
LIMIT = 1 << 31  # bytes; a header that claims more is garbled, not a data set


def read_idx(data: bytes, name: str, ndim: int) -> np.ndarray:
    """The uint8 array of an IDX file with `ndim` dimensions. Raises UserError where the file is not exactly that."""
    try:
        stream = gzip.GzipFile(fileobj=io.BytesIO(data)) if data[:2] == b"\x1f\x8b" else io.BytesIO(data)
        header = stream.read(4 + 4 * ndim)
        shape = _shape(header, name, ndim)
        body = stream.read(math.prod(shape) + 1)  # one more than promised, to see what is too long
    except (OSError, EOFError, zlib.error) as error:
        raise _broken(name, f"is not a whole gzip file ({error})") from error
    if len(body) != math.prod(shape):
        more = "more than " if len(body) > math.prod(shape) else f"{len(body)} of "
        raise _broken(name, f"holds {more}the {math.prod(shape)} bytes that its header promises ({_times(shape)})")
    return np.frombuffer(body, np.uint8).reshape(shape)


def read_pair(images: bytes, labels: bytes, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, 1, H, W) and int64 labels (N,), checked to belong together."""
    pixels, numbers = read_idx(images, names[0], 3), read_idx(labels, names[1], 1)
    if len(pixels) != len(numbers):
        raise _broken(names[1], f"holds {len(numbers)} labels, but {names[0]} holds {len(pixels)} images")
    if not pixels.size:
        raise _broken(names[0], "holds no pixels")
    if numbers.max() > 9:
        raise _broken(names[1], f"holds the label {numbers.max()}; digits are 0 to 9")
    return pixels[:, None], numbers.astype(np.int64)


def _shape(header: bytes, name: str, ndim: int) -> tuple[int, ...]:
    magic = struct.pack(">HBB", 0, UNSIGNED_BYTE, ndim)
    if not magic.startswith(header[:4]):
        start = f"it starts with {header[:4].hex()}, not {magic.hex()}"
        raise _broken(name, f"is not an IDX file of {ndim}-D bytes: {start}")
    if len(header) != 4 + 4 * ndim:
        raise _broken(name, "ends within its header")
    shape = struct.unpack(f">{ndim}I", header[4:])
    if math.prod(shape) > LIMIT:
        raise _broken(name, f"promises {_times(shape)} bytes in its header, which cannot be")
    return shape


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _broken(name: str, what: str) -> UserError:
    return UserError(f"{name} {what}", "take a fresh copy of that file: it is truncated or not MNIST")
