"""A safetensors file read once, from its first byte to its last: its tensors, its metadata and its digest from one pass.

The file is 8 bytes with the length N of a JSON header (little-endian), the header, and the values. The header maps each name to
{dtype, shape, data_offsets: [begin, end]}, counted from the end of the header; the values lie without gaps. `__metadata__` maps
strings to strings. Each tensor has memory of its own, so reading takes the memory of the tensors and nothing else.
Source: https://github.com/huggingface/safetensors, "Format".
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

METADATA = "__metadata__"
LONGEST_HEADER = 100_000_000  # bytes, as safetensors itself
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class FileContents(NamedTuple):
    """The content of a file."""

    tensors: dict[str, Tensor]  # on the CPU
    sha256: str  # hexadecimal, of all its bytes


class TensorEntry(NamedTuple):
    """A tensor as the header describes it; begin and end count bytes from the end of the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read(path: Path) -> FileContents:
    """Reads every byte of a file once. Raises OSError if it cannot be read, ValueError if it is damaged or of another format."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = path.stat().st_size
        start, text = _header(file, size)
        digest.update(start + text)
        tensors = {}
        for entry in _entries(text, size - 8 - len(text)):
            values = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
            view = memoryview(values.numpy())  # type: ignore[arg-type]
            _fill(file, view)
            digest.update(view)
            tensors[entry.name] = values.view(entry.dtype).view(entry.shape)
    return FileContents(tensors, digest.hexdigest())


def entries(path: Path) -> list[TensorEntry]:
    """The tensors of a file, of which the header alone is read. Raises OSError and ValueError as `read` does."""
    return _headed(path)[0]


def metadata(path: Path) -> dict[str, str]:
    """The strings in the header of a file, which alone is read. Raises OSError and ValueError as `read` does."""
    found = _headed(path)[1].get(METADATA, {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"its header says {METADATA}: {found!r:.40}")
    return found


def _headed(path: Path) -> tuple[list[TensorEntry], dict[str, Any]]:
    """The tensors that the header of a file describes, and the header itself."""
    with path.open("rb", buffering=0) as file:
        size = path.stat().st_size
        _, text = _header(file, size)
    return _entries(text, size - 8 - len(text)), _object(text)


def _header(file: BinaryIO, size: int) -> tuple[bytes, bytes]:
    """The 8 bytes of the length, and the JSON that they announce."""
    if size < 8:
        raise ValueError(f"it has {size} bytes, too few for a safetensors file")
    start = bytearray(8)
    _fill(file, memoryview(start))
    length = int.from_bytes(start, "little")
    if length > min(size - 8, LONGEST_HEADER):
        raise ValueError(f"it announces a header of {length} bytes, but has {size} in all")
    text = bytearray(length)
    _fill(file, memoryview(text))
    return bytes(start), bytes(text)


def _object(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("its header is no JSON") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header


def _entries(text: bytes, size: int) -> list[TensorEntry]:
    """The tensors in the order of their values, which fill `size` bytes without a gap."""
    header = _object(text)
    entries = sorted(
        (_entry(name, described) for name, described in header.items() if name != METADATA), key=lambda e: e[3:]
    )
    end = 0
    for entry in entries:
        if entry.begin != end:
            raise ValueError(f"the values of {entry.name!r} begin at byte {entry.begin}, not {end}")
        end = entry.end
    if end != size:
        raise ValueError(f"its header describes {end} bytes of values, but {size} follow")
    return entries


def _entry(name: str, described: Any) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = DTYPES[described["dtype"]], tuple(described["shape"]), described["data_offsets"]
        whole = all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its header describes {name!r} as {described!r:.80}") from error
    if not whole or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"its header describes {name!r} as {described!r:.80}")
    return TensorEntry(name, dtype, shape, begin, end)


def _fill(file: BinaryIO, view: memoryview) -> None:
    """Reads as many bytes as `view` has room for: a single read of an unbuffered file may give fewer."""
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]  # of every unbuffered file
        if not count:
            raise ValueError("it ends too early")
        done += count
