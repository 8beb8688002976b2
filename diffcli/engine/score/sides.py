"""Where the images of a score come from: every kind of side that `diffcli fid` takes, as a stream of uint8 batches.

Nothing is held whole: folders are decoded and `.npz` samples are unpacked batch by batch. No pickle is ever read.
"""

import hashlib
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from diffcli import __version__, checkpoint, preset
from diffcli.config import UserError, did_you_mean
from diffcli.data.dataset import DataConfig
from diffcli.data.images import ImageData
from diffcli.data.listing import Split
from diffcli.data.pixels import SUFFIXES, channels_first, open_image
from diffcli.data.prepared import Shards
from diffcli.data.shards import DATASET, is_prepared, open_shards
from diffcli.data.stream.stream import Stream
from diffcli.digest import sha256
from diffcli.engine.model import Model
from diffcli.metrics.statistics import Statistics

Images = tuple[Tensor, Tensor | None]  # uint8 (B, C, H, W), C = 1 or 3; labels int64 (B,) where there are any
SPLITS: tuple[Split, ...] = get_args(Split)
KINDS = "a folder of images, .npz samples, .npz statistics, a prepared data set or NAME:SPLIT of a preset's data"
READERS = 4  # threads that decode ahead; Pillow releases the interpreter lock
ZIP_ERRORS = (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
SAMPLES_HINT = "give an .npz with arr_0, uint8 (N, H, W, C) with 1 or 3 channels, and at most arr_1, N integer labels"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Source:
    """One side of a comparison: a stream of images, or statistics of images that are gone."""

    name: str
    batches: Callable[[int], Iterator[Images]] | None  # batch size -> images in order; None for statistics
    size: int | None = None  # number of images, where it is known beforehand
    labelled: bool = False
    classes: tuple[str, ...] | None = None  # names of the labels, where they are known
    statistics: Statistics | None = None
    fingerprint: str | None = None  # what the reference cache knows the images by; None is never cached
    data: ImageData | None = None  # where the images are rows of a data set, with whatever else it has


def resolve(text: str, overrides: Iterable[str] = (), size: int | tuple[int, int] | None = None) -> Source:
    """The side that the user means by `text`; `overrides` (`data.root=...`) go to the preset of NAME:SPLIT.

    size: that of images of a prepared set where theirs differ.

    Raises UserError where it is missing, empty or of no kind that can be scored.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder_like(path, size)
    if path.is_file():
        if path.suffix != ".npz":
            raise UserError(
                f"{text} is a {path.suffix or 'plain'} file, not a side that can be scored", f"give {KINDS}"
            )
        return npz_source(path)
    name, colon, split = text.rpartition(":")
    if not colon:
        raise UserError(f"{text} does not exist", f"give {KINDS} (such as digits:train)")
    chosen = next((s for s in SPLITS if s == split), None)
    if chosen is None:
        raise UserError(f"{text}: '{split}' is not a split", did_you_mean(split, SPLITS))
    prepared = Path(name).expanduser()
    if is_prepared(prepared):
        return prepared_source(prepared, chosen, size)
    loaded = preset.load(name, list(overrides))
    return data_source(f"{loaded.name}:{chosen}", loaded.data, chosen)


def data_source(name: str, config: DataConfig, split: Split) -> Source:
    """A split of a preset's data; files are decoded as they are read, whatever `in_memory` says of training."""
    data = config.model_copy(update={"in_memory": False}).build(split)

    def read(rows: Tensor) -> Images:
        return data.pixels(rows), None if data.labels is None else data.labels[rows]

    def batches(batch_size: int) -> Iterator[Images]:
        return read_ahead(read, torch.arange(len(data)).split(batch_size))

    settings = config.model_dump_json(exclude={"in_memory", "flip", "crop", "buckets"})
    content = " ".join(map(fingerprint, config.paths)) or f"diffcli {__version__}"
    remote = isinstance(config, Stream)  # what lies elsewhere may change unseen
    identity = None if remote else f"data {settings} {split} {content}"
    return Source(name, batches, len(data), data.classes is not None, data.classes, fingerprint=identity, data=data)


def own_source(model: Model, split: Split) -> Source:
    """A split of what a checkpoint was trained on. Raises UserError where a command makes it: a checkpoint may be anybody's."""
    config = model.preset.data
    if config.commands:
        raise UserError(
            f"{model.path}: its data are what the command `{config.commands[0]}` prints, which is not run for a checkpoint",
            "name the reference with --ref",
        )
    return data_source(f"{model.preset.name}:{split}", config, split)


def prepared_source(root: Path, split: Split | None = None, size: int | tuple[int, int] | None = None) -> Source:
    """A set that prep-data wrote: the split asked for, else `train`, else its only one; `size`: see `resolve`."""
    prepared = open_shards(root, "the prepared data set")
    first: Split = next(iter(prepared.splits))
    chosen: Split = split or ("train" if "train" in prepared.splits else first)
    if prepared.size is None and size is None:
        raise UserError(
            f"{root} holds images of different sizes", f"prepare it with --size N, or score with NAME:{chosen}"
        )
    return data_source(
        f"{root}:{chosen}", Shards(root=root, size=prepared.size or size, channels=prepared.channels), chosen
    )


def folder_source(folder: Path) -> Source:
    """All image files below a folder, by name; one size throughout."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UserError(f"{folder} holds no images", f"give {KINDS}")
    first = _decode(files[0])

    def read(paths: list[Path]) -> Images:
        images = [_decode(path) for path in paths]
        for path, image in zip(paths, images, strict=True):
            if image.shape[1:] != first.shape[1:]:
                sizes = " and ".join(f"{a.shape[2]}x{a.shape[1]}" for a in (first, image))
                hint = f"bring them to one size: diffcli prep-data folder {folder} --out DIR --size {first.shape[2]}"
                raise UserError(f"{folder}: sizes differ: {files[0].name} and {path.name} are {sizes}", hint)
        channels = max(len(image) for image in images)  # a grey image among coloured ones is repeated
        stacked = np.stack([np.broadcast_to(image, (channels, *image.shape[1:])) for image in images])
        return torch.from_numpy(stacked), None

    def batches(batch_size: int) -> Iterator[Images]:
        return read_ahead(read, [files[i : i + batch_size] for i in range(0, len(files), batch_size)])

    return Source(str(folder), batches, len(files), fingerprint=f"images {fingerprint(folder)}")


def npz_source(path: Path) -> Source:
    """`.npz` samples (`arr_0`, maybe `arr_1`) or statistics (`mu`, `sigma`); where it has both, its images count."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except ZIP_ERRORS as error:
        raise UserError(f"{path} is not an .npz file ({error})", SAMPLES_HINT) from error
    if "arr_0" not in names:
        if {"mu", "sigma"} & names:
            statistics = Statistics.load(path)
            return Source(str(path), None, statistics.n, statistics=statistics)
        found = ", ".join(sorted(names)) or "nothing"
        raise UserError(f"{path} holds {found}; neither arr_0 (samples) nor mu and sigma (statistics)", SAMPLES_HINT)
    shape = _samples_shape(path, "arr_1" in names)
    labelled = "arr_1" in names

    def batches(batch_size: int) -> Iterator[Images]:
        return _read_samples(path, labelled, batch_size)

    return Source(str(path), batches, shape[0], labelled, fingerprint=f"samples {fingerprint(path)}")


def fingerprint(path: Path) -> str:
    """Identifies content: a file and a prepared set by digest, a folder by the names, sizes and times of its files."""
    if path.is_file():
        return sha256(path)
    if is_prepared(path):
        return sha256(path / DATASET)
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        stat = file.stat()
        total.update(f"{file.relative_to(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def read_ahead(read: Callable[[T], R], items: Iterable[T], workers: int = READERS) -> Iterator[R]:
    """read(item) in order, by threads that are at most 2 * workers items ahead: memory stays bounded."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(read, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # also where the reader stops early or an item fails
            for future in pending:
                future.cancel()


def _folder_like(path: Path, size: int | tuple[int, int] | None) -> Source:
    if is_prepared(path):
        return prepared_source(path, size=size)
    if (path / "checkpoints").is_dir() or (path / checkpoint.RECORD).is_file():
        raise UserError(f"{path} is a run or a checkpoint, not images", f"score it with --ckpt {path} --ref B")
    return folder_source(path)


def _decode(path: Path) -> np.ndarray:
    return channels_first(open_image(path.read_bytes(), str(path)))


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> tuple[IO[bytes], tuple[int, ...], np.dtype]:
    """An array of an .npz, opened behind its header: (stream, shape, dtype). Objects are refused."""
    file = archive.open(f"{name}.npy")
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise UserError(f"{path}: {name} holds Python objects, which are never unpickled", SAMPLES_HINT)
    if fortran and len(shape) > 1:
        raise UserError(f"{path}: {name} is stored in Fortran order", "save numpy.ascontiguousarray(images)")
    return file, shape, dtype


def _samples_shape(path: Path, labelled: bool) -> tuple[int, ...]:
    try:
        with zipfile.ZipFile(path) as archive:
            _, shape, dtype = _member(archive, path, "arr_0")
            labels = _member(archive, path, "arr_1") if labelled else None
    except ZIP_ERRORS as error:
        raise UserError(f"{path} cannot be read as samples ({error})", SAMPLES_HINT) from error
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise UserError(f"{path}: arr_0 is {dtype} {shape}", SAMPLES_HINT)
    if labels and (labels[2].kind not in "iu" or labels[1] != shape[:1]):
        raise UserError(f"{path}: arr_1 is {labels[2]} {labels[1]} beside {shape[0]} images", SAMPLES_HINT)
    return shape


def _read_samples(path: Path, labelled: bool, batch_size: int) -> Iterator[Images]:
    try:
        with zipfile.ZipFile(path) as archive:
            file, shape, _ = _member(archive, path, "arr_0")
            labels, _, kind = _member(archive, path, "arr_1") if labelled else (None, None, None)
            for start in range(0, shape[0], batch_size):
                count = min(batch_size, shape[0] - start)
                images = _take(file, np.dtype(np.uint8), (count, *shape[1:]))
                asked = _take(labels, kind, (count,)).astype(np.int64) if labels and kind else None
                batch = torch.from_numpy(images).permute(0, 3, 1, 2)
                yield batch, None if asked is None else torch.from_numpy(asked)
    except ZIP_ERRORS as error:
        raise UserError(f"{path} is damaged: {error}", "write the samples again, or copy the file again") from error


def _take(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    wanted = dtype.itemsize * int(np.prod(shape))
    raw = bytearray(wanted)  # writable, as torch wants it
    view = memoryview(raw)
    done = 0
    while done < wanted:
        got = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError(f"it ends {wanted - done} bytes early")
        done += got
    return np.frombuffer(raw, dtype).reshape(shape)
