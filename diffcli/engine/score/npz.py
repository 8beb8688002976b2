"""`.npz` samples as a side: `arr_0` uint8 (N, H, W, C) and maybe `arr_1`, N integer labels, read batch by batch.

Clips are uint8 (N, T, H, W, C).

The arrays are never held whole, and no pickle is ever read. Where several processes share a file, each reads its own rows, by
their offset where the file is not compressed; the one with the first row also checks the file's checksum.
"""

import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from diffcli.config import UserError
from diffcli.fields import Batch, FieldKind

ZIP_ERRORS = (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error, struct.error)
HINT = (
    "give an .npz with arr_0, uint8 (N, H, W, C) with 1 or 3 channels, of clips (N, T, H, W, C), "
    "and at most arr_1, N integer labels"
)
AXES: dict[int, FieldKind] = {4: "image", 5: "clip"}  # the field that an array of so many axes holds
LOCAL_HEADER = 30  # bytes in front of the name of a member; its last four say how long name and extra field are
SUM_CHUNK = 1 << 20  # bytes


class Header(NamedTuple):
    """The header of an array in an .npz; size: of the header in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    size: int

    @property
    def row(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * int(np.prod(self.shape[1:]))


def members(path: Path) -> set[str]:
    """The names of the arrays in a file. Raises UserError where it is no .npz."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except ZIP_ERRORS as error:
        raise UserError(f"{path} is not an .npz file ({error})", HINT) from error


def samples_shape(path: Path, labelled: bool) -> tuple[int, ...]:
    """(N, H, W, C) of images, (N, T, H, W, C) of clips. Raises UserError where arr_0 or arr_1 cannot be what they must be."""
    try:
        with zipfile.ZipFile(path) as archive:
            _, images = _opened(archive, path, "arr_0")
            labels = _opened(archive, path, "arr_1")[1] if labelled else None
    except ZIP_ERRORS as error:
        raise UserError(f"{path} cannot be read as samples ({error})", HINT) from error
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) not in AXES or shape[-1] not in (1, 3):
        raise UserError(f"{path}: arr_0 is {images.dtype} {shape}", HINT)
    if labels and (labels.dtype.kind not in "iu" or labels.shape != shape[:1]):
        raise UserError(f"{path}: arr_1 is {labels.dtype} {labels.shape} beside {shape[0]} images", HINT)
    return shape


def read_samples(path: Path, spans: Sequence[range], fields: Collection[str]) -> Iterator[Batch]:
    """The rows of each span, ascending and apart: image uint8 (B, C, H, W) or clip (B, C, T, H, W), and label int64 (B,),
    whichever `fields` names."""
    if not spans:
        return
    try:
        with zipfile.ZipFile(path) as archive, ExitStack() as open_files:
            shape = _opened(archive, path, "arr_0")[1].shape
            count, pictures = shape[0], AXES[len(shape)]
            ends = [range(0), *spans, range(count, count)]
            shared = any(one.stop != other.start for one, other in pairwise(ends))
            if shared and spans[0].start == 0:  # true of one process alone; one that reads all checks on the way
                _check_sum(archive, "arr_0")
            wanted = [name for name, field in (("arr_0", pictures), ("arr_1", "label")) if field in fields]
            arrays = {name: _Rows(archive, path, name, shared, open_files) for name in wanted}
            for span in spans:
                found: dict[str, Any] = {}
                if "arr_0" in arrays:
                    found[pictures] = torch.from_numpy(arrays["arr_0"].take(span)).movedim(-1, 1)
                if "arr_1" in arrays:
                    found["label"] = torch.from_numpy(arrays["arr_1"].take(span).astype(np.int64))
                yield found
    except ZIP_ERRORS as error:
        raise UserError(f"{path} is damaged: {error}", "write the samples again, or copy the file again") from error


class _Rows:
    """An array of an .npz by rows, in ascending order.

    shared: rows are left out, so those of a stored array are read by their offset; a compressed one is unpacked up to them.
    """

    def __init__(self, archive: zipfile.ZipFile, path: Path, name: str, shared: bool, open_files: ExitStack) -> None:
        self.file, self.header = _opened(archive, path, name)
        self.first, self.next = self.header.size, 0
        info = archive.getinfo(f"{name}.npy")
        if shared and info.compress_type == zipfile.ZIP_STORED:
            self.file = path.open("rb")
            self.first += _offset(self.file, info)
            self.next = -1  # nowhere yet
        open_files.enter_context(self.file)

    def take(self, span: range) -> np.ndarray:
        """The rows of a span."""
        if span.start != self.next:
            self.file.seek(self.first + span.start * self.header.row)
        self.next = span.stop
        return take(self.file, self.header.dtype, (len(span), *self.header.shape[1:]))


def take(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array of this shape from the next bytes of a file, writable. Raises EOFError where the file ends early."""
    wanted = dtype.itemsize * int(np.prod(shape))
    raw = bytearray(wanted)
    view = memoryview(raw)
    done = 0
    while done < wanted:
        got = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError(f"it ends {wanted - done} bytes early")
        done += got
    return np.frombuffer(raw, dtype).reshape(shape)


def _opened(archive: zipfile.ZipFile, path: Path, name: str) -> tuple[IO[bytes], Header]:
    """An array, opened behind its header. Objects are refused."""
    file = archive.open(f"{name}.npy")
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise UserError(f"{path}: {name} holds Python objects, which are never unpickled", HINT)
    if fortran and len(shape) > 1:
        raise UserError(f"{path}: {name} is stored in Fortran order", "save numpy.ascontiguousarray(images)")
    return file, Header(shape, dtype, file.tell())


def _offset(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """The offset of the bytes of a stored member."""
    file.seek(info.header_offset)
    name, extra = struct.unpack("<HH", file.read(LOCAL_HEADER)[-4:])
    return info.header_offset + LOCAL_HEADER + name + extra


def _check_sum(archive: zipfile.ZipFile, name: str) -> None:
    """Reads a member through. Raises BadZipFile where its checksum does not fit."""
    with archive.open(f"{name}.npy") as file:
        while file.read(SUM_CHUNK):
            pass
