"""The official downsampled ImageNet 64x64: npz batches, inside zips or beside each other, read row by row.

A batch holds `data` uint8 (N, 12288), each row a flattened 3x64x64 image, and `labels` (N,) from 1 to 1000, stored here as
0 to 999. Training batches are 1 to 10, in Imagenet64_train_part1.zip (1 to 5) and part2.zip; the validation set is one more.
Arrays are parsed without pickle. PrepSource: Chrabaszcz, Loshchilov and Hutter 2017, arXiv 1707.08819.
"""

import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from diffcli.config import ImageShape, UserError
from diffcli.data.files import ARCHIVE_ERRORS, FileTree, WriteError, open_location, open_tree
from diffcli.data.files import copy as copy_file
from diffcli.data.listing import Split
from diffcli.prep.items import SOURCE, Item, Items, PrepSource, SourceOptions, fingerprint

SHAPE = ImageShape(3, 64, 64)
ROW = 3 * 64 * 64  # bytes of one image
CLASSES = 1000
TRAIN_BATCHES = 10
ROWS_AT_ONCE = 2048  # 24 MiB
NAMES: dict[Split, re.Pattern[str]] = {
    "train": re.compile(r"(?:^|/)train_data_batch_(\d+)\.npz$"),
    "test": re.compile(r"(?:^|/)val_data()\.npz$"),
}
HINT = "take fresh Imagenet64_train_part1.zip, part2.zip and val.zip from https://image-net.org/download-images"


class ArchivePart(NamedTuple):
    """One npz batch. number: its place among the batches of its split; labels: int64 (N,), 0 to 999."""

    tree: FileTree
    name: str
    number: int
    labels: np.ndarray


class NpzItems:
    """The images of one split: its batches end to end."""

    def __init__(self, parts: list[ArchivePart], work: Path) -> None:
        self.parts, self.work = parts, work

    def __len__(self) -> int:
        return sum(len(part.labels) for part in self.parts)

    def items(self, positions: Sequence[int]) -> Iterator[Item]:
        wanted, start = np.asarray(positions), 0
        for part in self.parts:
            rows = wanted[(wanted >= start) & (wanted < start + len(part.labels))] - start
            start += len(part.labels)
            if len(rows):
                for row, pixels in _images(part, rows, self.work):
                    yield Item(f"{part.name}[{row}]", int(part.labels[row]), pixels)


def open_imagenet64(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """The batches below a folder (in zips or unpacked), in one zip, or one npz. Raises UserError if one is garbled."""
    found = {split: sorted(_find(source, pattern, work)) for split, pattern in NAMES.items()}
    if not any(found.values()):
        problem = f"{SOURCE} is '{source}', which has no train_data_batch_*.npz or val_data.npz"
        raise UserError(problem, f"give the folder with the official zips as {SOURCE}; {HINT}")
    splits: dict[Split, Items] = {}
    files: list[tuple[str, int]] = []
    for split, batches in found.items():
        numbers = [number for number, _, _ in batches]
        twice = next((number for number in numbers if numbers.count(number) > 1), None)
        if twice is not None:
            raise UserError(
                f"{SOURCE} '{source}' has batch {twice} of {split} twice", "leave one of the two copies there"
            )
        if batches:
            splits[split] = NpzItems([_part(tree, name, number, work) for number, name, tree in batches], work)
            files += [(name, tree.size(name)) for _, name, tree in batches]
    present = {number for number, _, _ in found["train"]}
    absent = [str(number) for number in range(1, TRAIN_BATCHES + 1) if number not in present]
    notes = (f"train batches {', '.join(absent)} are not there: this is a part of ImageNet",) if absent else ()
    return PrepSource(splits, tuple(map(str, range(CLASSES))), fingerprint(files), notes)


def _find(source: Path, pattern: re.Pattern[str], work: Path) -> Iterator[tuple[int, str, FileTree]]:
    """(number, name, tree) of the batches whose name fits, also inside the zips of a folder."""
    if source.suffix == ".npz" and source.is_file():
        trees = [FileTree(source.parent, {source.name: source})]
    else:
        trees = [open_tree(source, SOURCE, work)]
        if source.is_dir():
            zips = [name for name in trees[0].names if re.search(r"imagenet64[^/]*\.zip$", name, re.IGNORECASE)]
            trees += [open_tree(source / name, SOURCE, work) for name in zips]
    for tree in trees:
        for name in tree.names:
            if match := pattern.search(name):
                yield int(match[1] or 0), name, tree


def _part(tree: FileTree, name: str, number: int, work: Path) -> ArchivePart:
    part = ArchivePart(tree, name, number, np.empty(0))
    with _npz(part, work) as npz:
        with npz.open("data.npy") as file:
            count = _data_rows(file)
        with npz.open("labels.npy") as file:
            labels = np.lib.format.read_array(file, allow_pickle=False)
        if labels.shape != (count,) or labels.dtype.kind not in "iu" or not count:
            raise ValueError(f"{count} images, but labels of shape {labels.shape} and type {labels.dtype}")
        if labels.min() < 1 or labels.max() > CLASSES:
            raise ValueError(f"labels from {labels.min()} to {labels.max()}, not 1 to {CLASSES}")
    return part._replace(labels=labels.astype(np.int64) - 1)


def _images(part: ArchivePart, rows: np.ndarray, work: Path) -> Iterator[tuple[int, np.ndarray]]:
    with _npz(part, work) as npz, npz.open("data.npy") as file:
        count = _data_rows(file)
        for start in range(0, int(rows[-1]) + 1, ROWS_AT_ONCE):
            size = min(ROWS_AT_ONCE, count - start) * ROW
            data = file.read(size)
            if len(data) != size:
                raise EOFError("it ends within its data")
            images = np.frombuffer(data, np.uint8).reshape(-1, *SHAPE)
            for row in rows[(rows >= start) & (rows < start + ROWS_AT_ONCE)]:
                yield int(row), images[row - start].copy()  # a view would keep the whole stretch alive


def _data_rows(file: IO[bytes]) -> int:
    """Reads the header of data.npy and returns N; the pixels follow."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    reader = readers.get(np.lib.format.read_magic(file))
    if reader is None:
        raise ValueError("data.npy of an unknown version")
    shape, fortran, dtype = reader(file)
    if dtype != np.uint8 or fortran or len(shape) != 2 or shape[1] != ROW:
        raise ValueError(f"data of shape {shape} and type {dtype}, not uint8 (N, {ROW})")
    return shape[0]


@contextmanager
def _npz(part: ArchivePart, work: Path) -> Iterator[zipfile.ZipFile]:
    """The batch as an opened zip of npy files; one inside an archive is copied to `work` while it is read.

    Seeking inside a compressed member would decompress it from its start again and again.
    """
    location, copy = part.tree.locations[part.name], work / "batch.npz"
    try:
        if not isinstance(location, Path):
            with open_location(location) as packed:
                copy_file(packed, copy)
        with zipfile.ZipFile(location if isinstance(location, Path) else copy) as npz:
            yield npz
    except WriteError:
        raise
    except (OSError, ValueError, *ARCHIVE_ERRORS) as error:
        raise UserError(f"{part.tree.shown(part.name)} is not a batch of ImageNet 64x64: {error}", HINT) from error
    finally:
        with suppress(OSError):  # the whole of `work` goes in the end
            copy.unlink(missing_ok=True)
