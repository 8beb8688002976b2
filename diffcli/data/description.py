"""The description of a data set: one record, and the same few lines for prep-data, train and info.

It does not read all images. Counts and labels come from the listing or from the indexes of a prepared set. Sizes come from the
indexes too, or from the headers of a few files (LOOKED_AT), which the lines then say. The digest is that of the shards, or of the
names and sizes of files; for more than SIZED files, of their names alone.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from diffcli.config import Config, UserError
from diffcli.data.clips.clip_files import TreeClips
from diffcli.data.clips.film import NoFrames
from diffcli.data.columns import Texts
from diffcli.data.dataset import TreeFiles
from diffcli.data.files import ARCHIVE_ERRORS
from diffcli.data.images import EncodedFiles, ImageData, ImageOrigin, NamedFiles
from diffcli.data.joining import Joined
from diffcli.data.latent_data import LatentImages
from diffcli.data.pixels import open_image
from diffcli.data.shards import PreparedSet, ShardFiles, open_shards
from diffcli.data.sidecars import SidecarFiles
from diffcli.data.stream.stream_data import StreamData
from diffcli.fields import listed

LOOKED_AT = 16  # files whose headers are read if no index has sizes
SIZED = 100_000  # largest number of files whose sizes are part of a digest
COLOUR = 8  # difference between the channels of a pixel above the noise of a grey JPEG
SHOWN_CLASSES = 10
SHOWN_KINDS = 6  # of what was left out

Side = tuple[int, int]  # (height, width) in pixels


class StoredSizes(Config):
    """Sizes of stored images, the smallest and the largest by area. looked_at: number of files; None: all."""

    smallest: Side
    largest: Side
    looked_at: int | None = None


class DataDescription(Config):
    """The description of a data set, as a run records it.

    splits: images of each. counted: the split that is described. shape: of an image after reading, (C, H, W). frames: of a clip;
    None: these are images. class_counts: images of each class, in the order of `classes`. captioned: images with a caption.
    fields: the other fields of each sample. skipped: broken images that prep-data left out. left_out: files that are no images,
    by type. digest: of the files of the split.
    """

    place: str
    splits: dict[str, int | None]
    counted: str = "train"
    shape: tuple[int, ...]
    stored: StoredSizes | None = None
    latents: bool = False
    frames: int | None = None
    classes: tuple[str, ...] | None = None
    class_counts: tuple[int, ...] | None = None
    captioned: int | None = None
    fields: tuple[str, ...] = ()
    skipped: int = 0
    left_out: dict[str, int] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    digest: str | None = None

    @property
    def count(self) -> int | None:
        """Images of the described split; None for a stream of unknown length."""
        return self.splits[self.counted]

    @property
    def facts(self) -> dict[str, str]:
        """The few lines, by topic."""
        found = {"data": f"{self.place}: {self._amounts()}", "pixels": self._pixels(), "classes": self._classes()}
        if self.captioned is not None:
            every = self.count is None or self.captioned == self.count
            found["captions"] = (
                f"of every {self._noun[:-1]}" if every else f"of {self.captioned:,} of {self.count:,} {self._noun}"
            )
        if self.fields:
            found["fields"] = ", ".join(self.fields)
        if left_out := self._left_out():
            found["left out"] = left_out
        return found

    @property
    def lines(self) -> list[str]:
        """The facts as lines of text."""
        return [f"{name + ':':<9} {value}" for name, value in self.facts.items()]

    @property
    def empty_classes(self) -> list[int]:
        """The numbers of the classes without an image."""
        return [number for number, count in enumerate(self.class_counts or ()) if not count]

    @property
    def remarks(self) -> list[str]:
        """Notes on what is allowed but probably not meant, one sentence each."""
        if not self.empty_classes or self.classes is None:
            return list(self.notes)
        named = _few([self.classes[number] for number in self.empty_classes], SHOWN_CLASSES)
        begins = " (labels count from 0)" if self.empty_classes == [0] and self.classes[0] == "0" else ""
        return [*self.notes, f"no {self._noun[:-1]} has the class {named}{begins}: it is never trained"]

    @property
    def _noun(self) -> str:
        return "images" if self.frames is None else "clips"

    def _amounts(self) -> str:
        splits = {self.counted: self.count} | self.splits  # a record sorts them by name
        unknown = f"{self._noun} of unknown number"
        parts = [f"{split} {unknown if n is None else f'{n:,}'}" for split, n in splits.items()]
        known = [n for n in splits.values() if n is not None]
        if len(known) < len(splits):
            return ", ".join(parts)
        return f"{sum(known):,} {self._noun}" + (
            f" ({', '.join(parts)})" if parts and list(splits) != ["train"] else ""
        )

    def _pixels(self) -> str:
        what = "latents of images of " if self.latents else "" if self.frames is None else f"{self.frames} frames of "
        colour = {1: "grey", 3: "RGB"}.get(self.shape[0], f"{self.shape[0]} channels")
        read = f"{what}{_pixels(self.shape[1:])} (HxW) {colour}"
        if self.stored is None or self.stored.smallest == self.stored.largest == self.shape[1:]:
            return read
        sizes = list(dict.fromkeys([_pixels(self.stored.smallest), _pixels(self.stored.largest)]))
        of = "" if self.stored.looked_at is None else f" ({self.stored.looked_at} files looked at)"
        return f"{read}, stored as {' to '.join(sizes)}{of}"

    def _classes(self) -> str:
        if self.classes is None:
            return "none"
        counts = self.class_counts
        if counts is None:
            return f"{len(self.classes)}: {_few(self.classes, SHOWN_CLASSES)}"
        named = [f"{name} ({count:,})" for name, count in zip(self.classes, counts, strict=True)]
        spread = f"; {min(counts):,} to {max(counts):,} {self._noun} each" if len(counts) > SHOWN_CLASSES else ""
        return f"{len(counts)}: {_few(named, SHOWN_CLASSES)}{spread}"

    def _left_out(self) -> str:
        found = [f"{self.skipped:,} broken images (see skipped.jsonl)"] * bool(self.skipped)
        kinds = sorted(self.left_out.items(), key=lambda pair: (-pair[1], pair[0]))
        return ", ".join([*found, *([_few([f"{n:,} {kind}" for kind, n in kinds], SHOWN_KINDS)] if kinds else [])])


def describe(data: ImageData, split: str = "train", place: Path | str | None = None) -> DataDescription:
    """The description of a split of built data. place: as given by the user; None: the set comes with diffcli."""
    origin = data.origin or ImageOrigin()
    streamed = isinstance(data, StreamData)
    count = data.count if isinstance(data, StreamData) else len(data)
    labels = None if streamed or data.labels is None else data.labels
    classes = data.classes
    if labels is not None and len(labels):  # some may have no name
        classes = (*(classes or ()), *map(str, range(len(classes or ()), int(labels.max()) + 1)))
    others: dict[str, int | None] = {name: n for name, n in origin.splits.items() if name != split}
    columns = {name: column for name, column in data.columns.items() if name != "latent"}
    return DataDescription(
        place=str(place or "embedded"),
        splits={split: count} | others,
        counted=split,
        shape=tuple(data.shape),
        stored=stored_sizes(origin.files),
        latents=isinstance(data, LatentImages),
        frames=next((spec.sides[1] for spec in data.specs.values() if spec.kind == "clip"), None),
        classes=classes,
        class_counts=None if labels is None or classes is None else _counts(labels, len(classes)),
        captioned=_captioned(columns["text"], count) if "text" in columns else None,
        fields=tuple(sorted(columns.keys() - {"text"})),
        skipped=origin.skipped,
        left_out=dict(origin.left_out),
        notes=origin.notes,
        digest=_identity(origin.files, data),
    )


def describe_set(root: Path, key: str = "the prepared set") -> DataDescription:
    """The description of a prepared set, from all its indexes. key: names it in errors. Raises UserError if it is none."""
    prepared = open_shards(root, key)
    split = "train" if "train" in prepared.splits else next(iter(prepared.splits))
    files = ShardFiles(root, prepared, split)
    texts = files.field("text") if "text" in prepared.fields else None
    return DataDescription(
        place=str(root),
        splits={name: found.count for name, found in prepared.splits.items()},
        counted=split,
        shape=(prepared.channels, *_largest(prepared, files)),
        stored=stored_sizes(files),
        latents=prepared.latents,
        classes=prepared.classes,
        class_counts=None if files.labels is None else _counts(files.labels, len(prepared.classes or ())),
        captioned=None if texts is None else int((texts.size > 0).sum()),
        fields=tuple(sorted(prepared.fields.keys() - {"text", "latent"})),
        skipped=prepared.skipped,
        left_out=dict(prepared.left_out),
        digest=_of_shards(files),
    )


def stored_sizes(files: NamedFiles | None) -> StoredSizes | None:
    """The sizes of stored images: of all if an index has them, else of a few files; None if they are unknown."""
    match files:
        case Joined(parts=parts):
            each = [stored_sizes(part) for part in parts]
            if not all(each):
                return None
            return _extremes([side for found in each if found for side in (found.smallest, found.largest)], None)
        case ShardFiles(sides=sides):
            return _extremes([(int(h), int(w)) for h, w in sides.unique(dim=0)], None) if bool(sides.all()) else None
        case TreeFiles() | TreeClips():
            try:
                found = [files.size_of(row) for row in spread(len(files))]
            except (UserError, NoFrames):  # a broken one, which its reader reports
                return None
            return _extremes(found, len(found) if len(found) < len(files) else None)
        case _:
            return None


def spread(count: int) -> list[int]:
    """The rows of at most LOOKED_AT files, spread evenly."""
    return sorted({i * count // LOOKED_AT for i in range(LOOKED_AT)} if count else ())


def first_in_colour(files: EncodedFiles) -> str | None:
    """The name of an image with real colours among LOOKED_AT / 4 decoded ones; None if all are grey."""
    for row in spread(len(files))[:: LOOKED_AT // 4]:
        try:
            image = open_image(files.read(row), files.name(row))
        except (OSError, UserError, *ARCHIVE_ERRORS):  # its reader reports it
            continue
        if image.mode == "RGB" and int(np.ptp(np.asarray(image), axis=-1).max()) > COLOUR:
            return files.name(row)
    return None


def differences(before: DataDescription, now: DataDescription) -> list[str]:
    """The changes of the data of a run since `before`, without the class list, in a few words each."""
    found = [
        f"{now._noun} of the split {now.counted}: {now.count:,}, were {before.count:,}"
        for _ in [0]
        if None not in (before.count, now.count) and before.count != now.count
    ]
    if before.classes == now.classes and before.class_counts and now.class_counts:
        pairs = zip(now.classes or (), before.class_counts, now.class_counts, strict=True)
        changed = [f"{name} {new:,} (was {old:,})" for name, old, new in pairs if new != old]
        found += [f"images of a class: {_few(changed, SHOWN_CLASSES)}"] if changed else []
    if before.captioned != now.captioned:
        found.append(f"captions: of {now.captioned or 0:,} images, was {before.captioned or 0:,}")
    if not found and None not in (before.digest, now.digest) and before.digest != now.digest:
        found.append("as many images as before, but not the same files")
    return found


def _largest(prepared: PreparedSet, files: ShardFiles) -> Side:
    sizes = None if prepared.size else stored_sizes(files)
    return prepared.size or (sizes.largest if sizes else (0, 0))


def _extremes(sides: Sequence[Side], looked_at: int | None) -> StoredSizes | None:
    if not sides:
        return None
    by_area = sorted(sides, key=lambda side: (side[0] * side[1], side))
    return StoredSizes(smallest=by_area[0], largest=by_area[-1], looked_at=looked_at)


def _counts(labels: torch.Tensor, classes: int) -> tuple[int, ...]:
    return tuple(torch.bincount(labels, minlength=classes).tolist())


def _captioned(column: Any, count: int | None) -> int | None:
    """The number of images with a caption; a column of shards knows which have none."""
    if not isinstance(column, Texts):
        return count
    files = column.files.parts if isinstance(column.files, Joined) else (column.files,)
    return sum(_with_text(part) for part in files)


def _with_text(files: EncodedFiles) -> int:
    match files:
        case ShardFiles(size=size):
            return int((size > 0).sum())
        case SidecarFiles(captioned=captioned):
            return captioned
        case _:
            return len(files)


def _identity(files: NamedFiles | None, data: ImageData) -> str | None:
    match files:
        case Joined(parts=parts):
            each = [_identity(part, data) for part in parts]
            return hashlib.sha256(" ".join(map(str, each)).encode()).hexdigest()
        case ShardFiles():
            return _of_shards(files)
        case TreeFiles() | TreeClips():
            return files.digest(sizes=len(files) <= SIZED)
        case _:
            return None


def _of_shards(files: ShardFiles) -> str:
    return hashlib.sha256("".join(shard.sha256 for shard in files.shards).encode()).hexdigest()


def _pixels(side: Sequence[int]) -> str:
    return listed(tuple(side))


def _few(words: Sequence[str], most: int) -> str:
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more:,} more" if more > 0 else "")
