"""The two sides of a comparison: everything that `diffcli fid` takes, as rows that any process can read for itself.

Sides are never held whole: folders are decoded and `.npz` samples unpacked batch by batch, and of a set only the fields that
an extractor reads.
"""

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from diffcli import __version__, preset
from diffcli.config import UserError, quoted
from diffcli.data.broken import broken_among, left_out, named
from diffcli.data.clips.whole_films import whole_films
from diffcli.data.dataset import DataConfig, TreeFiles
from diffcli.data.files import open_location, open_tree
from diffcli.data.fitting import fitted
from diffcli.data.image_formats import images_among
from diffcli.data.images import ChosenImages, ImageData
from diffcli.data.leftovers import check_finished
from diffcli.data.listing import Split
from diffcli.data.loader import WORTH_WORKERS
from diffcli.data.pixels import channels_first, open_image, read_size
from diffcli.data.prepared import Shards
from diffcli.data.set_folder import DATASET, is_prepared
from diffcli.data.shards import open_shards
from diffcli.data.stream.stream_data import Stream
from diffcli.data.walk import Walk
from diffcli.digest import sha256
from diffcli.engine.model import Model
from diffcli.engine.score import npz
from diffcli.engine.score.cache import cache_folder, write_whole
from diffcli.engine.score.compared import KINDS, split_named
from diffcli.fields import Batch, FieldSpec, Specs, joined
from diffcli.lookup.checkpoint_files import is_checkpoint
from diffcli.metrics.statistics import Statistics

STAGE = re.compile(
    r"((?:.*/)?stage-[^/]*)\.json"
)  # the record of an earlier stage, which `diffcli sample --then` leaves
READERS = 4  # threads that decode ahead; Pillow releases the interpreter lock
T = TypeVar("T")
R = TypeVar("R")

Read = Callable[[Sequence[range], Collection[str]], Iterator[Batch]]
"""Spans of rows, ascending, and names of fields -> for each span these fields on the CPU or a device: image uint8 (B, C, H, W)
with C = 1 or 3, label int64 (B,), and whatever else a data set has. No row outside of the spans is decoded."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison: rows, or only statistics of rows."""

    name: str
    size: int | None  # number of rows; None where statistics do not say
    fields: Specs  # of a row
    read: Read | None = None  # None for statistics
    classes: tuple[str, ...] | None = None  # names of the labels, where they are known
    statistics: Statistics | None = None
    identify: Callable[[], str] | None = None  # identity of the rows in the cache of references; None is never cached
    data: ImageData | None = None  # where the rows are those of a data set
    whole: Statistics | None = None  # of all images, where the rows are a part of them: see `npz_side`
    notes: tuple[str, ...] = ()  # for the report

    @cached_property
    def fingerprint(self) -> str | None:
        """The identity of the rows in the cache of references; computing it reads files."""
        return None if self.identify is None else self.identify()


def resolve(text: str, size: int | tuple[int, int] | None = None, always: bool = False) -> Side:
    """The side that `text` names. size: for images of a prepared set with several sizes; always: also if all are equal.

    Raises UserError if it is missing, empty or of a kind that cannot be scored.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder_like(path, size, always)
    if path.is_file():
        if path.suffix != ".npz":
            raise UserError(
                f"{text} is a {path.suffix or 'plain'} file, not a side that can be scored", f"give {KINDS}"
            )
        return npz_side(path)
    name = text.rpartition(":")[0]
    chosen = split_named(text)
    prepared = Path(name).expanduser()
    if is_prepared(prepared):
        return prepared_side(prepared, chosen, size, always)
    loaded = preset.load(name)
    return data_side(f"{loaded.name}:{chosen}", loaded.data, chosen)


def data_side(name: str, config: DataConfig, split: Split) -> Side:
    """A split of a preset's data; files are decoded when they are read, also with `in_memory`."""
    config = fitted(config)
    data = config.model_copy(update={"in_memory": False}).build(split)

    def identify() -> str:
        settings = config.model_dump_json(exclude={"in_memory", "flip", "crop", "buckets", "derived", "grey"})
        content = " ".join(map(fingerprint, config.paths)) or f"diffcli {__version__}"
        return f"data {settings} {split} {content}"

    remote = isinstance(config, Stream)  # remote data may change without notice
    side = Side(name, len(data), data.specs, classes=data.classes, identify=None if remote else identify)
    return over(side, data)


def over(side: Side, data: ImageData) -> Side:
    """A side whose rows are those of `data`."""

    def read(spans: Sequence[range], fields: Collection[str]) -> Iterator[Batch]:
        chosen = data.select(fields)
        return read_ahead(lambda span: chosen.read(torch.arange(span.start, span.stop)), spans)

    return replace(side, size=len(data), fields=data.specs, read=read, data=data)


def spread(side: Side, n: int | None) -> Side:
    """n rows of a side, spread evenly because sets are often sorted by class: row i is number i x size // n.

    The side itself where it has no more, or no rows; None: all.
    """
    if n is None or side.size is None or side.size <= n or side.read is None:
        return side
    places, whole = torch.arange(n) * side.size // n, side.read

    def read(spans: Sequence[range], fields: Collection[str]) -> Iterator[Batch]:
        rows = whole([range(i, i + 1) for span in spans for i in places[span.start : span.stop].tolist()], fields)
        return (together([next(rows) for _ in span]) for span in spans)

    identify = None if side.identify is None else lambda: f"{n} rows spread over {side.fingerprint}"
    chosen = replace(side, size=n, read=read) if side.data is None else over(side, ChosenImages(side.data, places))
    return replace(chosen, identify=identify)


def chosen_rows(whole: Side, scored: Side) -> dict[str, str]:
    """For a report: which rows of a side are scored, if `spread` has left some out."""
    if scored is whole:
        return {}
    return {"rows": f"{scored.size} spread evenly over {whole.size}: row i is number i x {whole.size} // {scored.size}"}


def together(rows: Sequence[Batch]) -> Batch:
    """Rows of a side as one batch; a grey image among coloured ones is repeated."""
    if "image" in rows[0]:
        channels = max(row["image"].shape[1] for row in rows)
        rows = [{**row, "image": row["image"].expand(-1, channels, -1, -1)} for row in rows]
    return joined(rows)


def own_side(model: Model, split: Split) -> Side:
    """A split of the training data of a checkpoint. Raises UserError if a command produces them: it may be a stranger's."""
    config = model.preset.data
    if config.commands:
        raise UserError(
            f"{model.path}: its data come from the command `{config.commands[0]}`, which is not run for a checkpoint",
            "name the reference with --ref",
        )
    return data_side(f"{model.preset.name}:{split}", config, split)


def prepared_side(
    root: Path, split: Split | None = None, size: int | tuple[int, int] | None = None, always: bool = False
) -> Side:
    """A set that prep-data wrote: the split asked for, else `train`, else its only one; `size`, `always`: see `resolve`."""
    prepared = open_shards(root, "the prepared data set")
    first: Split = next(iter(prepared.splits))
    chosen: Split = split or ("train" if "train" in prepared.splits else first)
    if prepared.size is None and size is None:
        raise UserError(
            f"{root} holds images of different sizes", f"prepare it with --size N, or score with NAME:{chosen}"
        )
    shown = size if always else prepared.size or size
    return data_side(f"{root}:{chosen}", Shards(root=root, size=shown, channels=prepared.channels), chosen)


def folder_side(folder: Path) -> Side:
    """All image files below a folder, by name, but for earlier stages of a cascade; one size throughout.

    Those that cannot be decoded are left out, which is noted. Raises UserError where none can, or sizes differ.
    """
    tree = open_tree(folder, "the folder")
    stages = tuple(f"{m[1]}/" for name in tree.names if (m := STAGE.fullmatch(name)))
    names = [name for name in images_among(tree.names, tree.head).images if not name.startswith(stages)]
    if not names:
        raise UserError(f"{folder} holds no images", f"give {KINDS}")
    content = fingerprint(folder)
    names, notes = decodable(TreeFiles(tree, names), content)
    with open_location(tree.locations[names[0]]) as file:
        size = read_size(file, tree.shown(names[0]))

    def batch(span: range) -> Batch:
        chosen = names[span.start : span.stop]
        images = [channels_first(open_image(tree.read(name), tree.shown(name))) for name in chosen]
        for name, image in zip(chosen, images, strict=True):
            if image.shape[1:] != size:
                sizes = " and ".join(f"{height}x{width}" for height, width in (size, image.shape[1:]))
                hint = f"bring them to one size: diffcli prep-data folder {quoted(folder)} --out DIR --size {size[1]}"
                raise UserError(f"{folder}: sizes differ: {names[0]} and {name} are {sizes} pixels (HxW)", hint)
        channels = max(len(image) for image in images)  # a grey image among coloured ones is repeated
        stacked = np.stack([np.broadcast_to(image, (channels, *image.shape[1:])) for image in images])
        return {"image": torch.from_numpy(stacked)}

    def read(spans: Sequence[range], fields: Collection[str]) -> Iterator[Batch]:
        return read_ahead(batch, spans)

    specs = {"image": FieldSpec("image", (None, *size))}
    return Side(str(folder), len(names), specs, read, identify=lambda: f"images {content}", notes=notes)


def decodable(files: TreeFiles, content: str) -> tuple[list[str], tuple[str, ...]]:
    """The files that can be decoded, and a note on the others. Raises UserError where none can.

    content: identifies the folder; what is found of many files is kept under it, as every file is decoded for that.
    """
    place = cache_folder() / f"broken-{hashlib.sha256(f'{content} {len(files)}'.encode()).hexdigest()[:32]}.json"
    try:
        broken = {int(row): str(reason) for row, reason in json.loads(place.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        broken = broken_among(files)
        if len(files) >= WORTH_WORKERS:
            write_whole(place, lambda file: file.write(json.dumps(broken).encode()), "what is broken")
    if not broken:
        return files.names, ()
    if len(broken) >= len(files):
        problem = f"{files.source}: no image can be decoded: {named(files, broken)}"
        raise UserError(problem, "give a folder of whole images")
    kept = [name for row, name in enumerate(files.names) if row not in broken]
    return kept, (f"{files.source}: {left_out(files, broken)}",)


def npz_side(path: Path) -> Side:
    """`.npz` samples (`arr_0`, maybe `arr_1`) or statistics (`mu`, `sigma`).

    The reference batches of Dhariwal & Nichol 2021 have both: 10,000 images, and the statistics of the whole data set. Metrics
    of mean and covariance use the statistics, other metrics the images.
    """
    names = npz.members(path)
    if "arr_0" not in names:
        if {"mu", "sigma"} & names:
            statistics = Statistics.load(path)
            return Side(str(path), statistics.n, {}, statistics=statistics)
        found = ", ".join(sorted(names)) or "nothing"
        raise UserError(f"{path} holds {found}; neither arr_0 (samples) nor mu and sigma (statistics)", npz.HINT)
    labelled = "arr_1" in names
    shape = npz.samples_shape(path, labelled)

    def read(spans: Sequence[range], fields: Collection[str]) -> Iterator[Batch]:
        return npz.read_samples(path, spans, fields)

    pictures = npz.AXES[len(shape)]
    specs = {str(pictures): FieldSpec(pictures, (shape[-1], *shape[1:-1]))}
    specs |= {"label": FieldSpec("classes")} if labelled else {}
    whole = Statistics.load(path) if {"mu", "sigma"} <= names else None
    return Side(str(path), shape[0], specs, read, identify=lambda: f"samples {fingerprint(path)}", whole=whole)


def fingerprint(path: Path) -> str:
    """Identifies content: a file and a prepared set by digest, a folder by the names, sizes and times of its files."""
    if path.is_file():
        return sha256(path)
    if is_prepared(path):
        return sha256(path / DATASET)
    total = hashlib.sha256()
    for name, file in sorted(Walk(path).files.items()):
        stat = file.stat()
        total.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
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


def _folder_like(path: Path, size: int | tuple[int, int] | None, always: bool) -> Side:
    if is_prepared(path):
        return prepared_side(path, None, size, always)
    check_finished(path, "the prepared data set")
    if is_checkpoint(path):
        raise UserError(f"{path} is a run or a checkpoint, not images", f"score it with --ckpt {quoted(path)} --ref B")
    films = whole_films(path)
    return folder_side(path) if films is None else data_side(str(path), films, "train")
