"""Prepared sets of `diffcli prep-data` as data of a preset, with random access, several of them as one."""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import ImageShape, UserError, quoted
from diffcli.data.annotators import joined_annotators
from diffcli.data.buckets import Framing
from diffcli.data.columns import column
from diffcli.data.dataset import DataConfig, no_split
from diffcli.data.field_notes import FieldNote
from diffcli.data.images import Column, EncodedFiles, FileImages, ImageData, ImageOrigin
from diffcli.data.latent_data import LatentImages, Latents
from diffcli.data.listing import Split
from diffcli.data.loader import MEMORY_LIMIT, loaded
from diffcli.data.shards import PreparedSet, ShardFiles, open_shards
from diffcli.fields import LATENT, FieldSpec, listed, typed


class Shards(DataConfig):
    """A set of `diffcli prep-data`, with random access. verify: check the digest of every shard first.

    more: further prepared sets of the same kind of images, joined to that of root in this order. validation: a prepared set that
    serves as split `test`: its split of that name, or else its training images.
    """

    kind: Literal["shards"] = "shards"
    verify: bool = Field(False, description="check the digest of every shard before the first step")
    more: tuple[Path, ...] = Field(
        (), description="further prepared sets, joined with root; they must have the same fields"
    )
    validation: Path | None = Field(None, description="prepared set that serves as split test")

    def absolute(self) -> Self:
        paths = {"root": self.root, "validation": self.validation}
        update = {name: path.expanduser().absolute() for name, path in paths.items() if path is not None}
        return self.model_copy(update=update | {"more": tuple(path.expanduser().absolute() for path in self.more)})

    def over(self, name: str) -> FieldSpec:
        """The field as the set describes it, if it exists."""
        try:
            note = notes_of(self._sets("train")).get(name)
        except UserError:  # reported when the data are opened
            note = None
        return super().over(name) if note is None else note.spec(self.shape[1:])

    @property
    def paths(self) -> list[Path]:
        named = [self.root, *self.more, self.validation]
        return [path.expanduser() for path in named if path is not None]

    def build(self, split: Split) -> ImageData:
        sets = self._sets(split)
        parts = [ShardFiles(found.root, found.prepared, found.split) for found in sets]
        if self.verify:
            for part in parts:
                part.verify()
        classes = sets[0].classes
        labels = None if classes is None else torch.cat([part.labels for part in parts if part.labels is not None])
        framing = self._framing(split, lambda: _sides(sets, parts))
        notes = notes_of(sets)
        if sets[0].prepared.latents:
            return self._latents(split, sets, parts, notes, labels)
        columns = {
            name: self._column(name, note, sets, parts, framing)
            for name, note in notes.items()
            if note.kind != "video"  # kept for tasks of clips; the image is their middle frame
        }
        images = FileImages(joined(parts), self.shape, labels, classes, joined_annotators(columns), framing)
        images.origin = origin_of(sets, parts)
        return self._with_made(loaded(images, self.in_memory))

    def _latents(
        self,
        split: Split,
        sets: list["Found"],
        parts: list[ShardFiles],
        notes: dict[str, FieldNote],
        labels: Tensor | None,
    ) -> ImageData:
        """A split of sets of latents. Raises UserError if they belong to other images than the preset describes."""
        first, note = sets[0], notes[LATENT]
        images = ImageShape(first.prepared.channels, *(first.prepared.size or (0, 0)))
        if images != self.shape:
            height, width = self.shape[1:]
            edge = f" --size {height}" if height == width else ""
            raise UserError(
                f"{first.shown} has latents of images {listed(images)}, but data.size and data.channels say {listed(self.shape)}",
                f"use --set {quoted(f'data.size={typed(images[1:])}')} --set data.channels={images.channels}, or make other "
                f"latents: diffcli prep-data latents SET --first-stage RUN --out DIR{edge}",
            )
        if self.cut_anew:
            raise UserError(
                f"data.{self.cut_anew}: {first.shown} holds latents, which cannot be cut",
                "leave it out, or train on the set of images that they were made of",
            )
        if self.derived:
            raise UserError(
                f"data.derived: {first.shown} holds latents, and no images from which a field could be made",
                "leave data.derived out, or train on the set of images that they were made of",
            )
        flip = self.flip and split == "train"
        if flip and not note.pair:
            raise UserError(
                f"data.flip is true, but {first.shown} holds latents of images as they are, and latents cannot be mirrored",
                "make them with --flip-pair, or use --set data.flip=false",
            )
        latents = Latents(joined(parts), note.spec(images[1:]), note, flip)
        framing = Framing(images[1:])
        columns: dict[str, Column] = {
            name: self._column(name, other, sets, parts, framing)
            for name, other in notes.items()
            if other.kind not in ("video", "latent")
        }
        if latents.bytes_in_memory <= MEMORY_LIMIT if self.in_memory is None else self.in_memory:
            latents.hold()
        made = LatentImages(latents, self.shape, labels, first.classes, columns)
        made.origin = origin_of(sets, parts)
        return self._with_made(made)

    def _sets(self, split: Split) -> list["Found"]:
        """The sets of a split, in order. Raises UserError if there are none, or if two contradict each other."""
        first = _find("data.root", self._source(), split)
        if split == "test" and self.validation is not None:
            found = [_find("data.validation", self.validation, split)._replace(classes=first.classes)]
            if "test" not in found[0].prepared.splits:
                found = [found[0]._replace(split="train")]
            agree(first, found[0])
            return found
        sets = [first, *(_find(f"data.more.{i}", path, split) for i, path in enumerate(self.more))]
        for other in sets[1:]:
            agree(first, other)
        there = [found for found in sets if split in found.prepared.splits]
        lacking = [found for found in sets if split not in found.prepared.splits]
        if lacking and (split == "train" or not there):
            raise no_split(split, list(lacking[0].prepared.splits), lacking[0].shown)
        return [found._replace(classes=first.classes) for found in there]

    def _column(
        self, name: str, note: FieldNote, sets: list["Found"], parts: list[ShardFiles], framing: Framing
    ) -> Column:
        there = [name in found.prepared.fields for found in sets]
        if not all(there):
            return Lacking(name, note.spec(framing.size), sets[there.index(False)].shown, sets[there.index(True)].shown)
        return column(joined([part.field(name) for part in parts]), note, framing, sets[0].root)


class Found(NamedTuple):
    """A prepared set that a key names, and the split to read. classes: those of the set of data.root."""

    key: str
    root: Path
    prepared: PreparedSet
    split: Split
    classes: tuple[str, ...] | None

    @property
    def shown(self) -> str:
        return f"{self.key} '{self.root}'"


class Joined:
    """The encoded files of several sets, end to end."""

    def __init__(self, parts: Sequence[EncodedFiles]) -> None:
        self.parts = tuple(parts)
        self.ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def name(self, index: int) -> str:
        part, own = self._part(index)
        return part.name(own)

    def read(self, index: int) -> bytes:
        part, own = self._part(index)
        return part.read(own)

    def _part(self, index: int) -> tuple[EncodedFiles, int]:
        number = bisect_right(self.ends, index)
        return self.parts[number], index - (self.ends[number - 1] if number else 0)


class Lacking:
    """A field that some of the joined sets lack; refused only if a task reads it."""

    def __init__(self, name: str, spec: FieldSpec, without: str, having: str) -> None:
        self.name, self.spec, self.without, self.having = name, spec, without, having

    def read(self, indices: Tensor, draws: Tensor | None) -> list[str]:
        raise UserError(
            f"{self.without} has no field '{self.name}', which {self.having} has and the task reads",
            "prepare it with what the other was prepared with (captions, masks or --embed), or leave one of the two out",
        )


def joined(parts: Sequence[EncodedFiles]) -> EncodedFiles:
    """Several sets of files as one."""
    return parts[0] if len(parts) == 1 else Joined(parts)


def origin_of(sets: Sequence[Found], parts: Sequence[ShardFiles]) -> ImageOrigin:
    """The origin of the images of joined sets; splits: those that all of them have."""
    shared = [split for split in sets[0].prepared.splits if all(split in found.prepared.splits for found in sets)]
    splits = {split: sum(found.prepared.splits[split].count for found in sets) for split in shared}
    left_out = sum((Counter(found.prepared.left_out) for found in sets), Counter())
    return ImageOrigin(joined(parts), splits, sum(found.prepared.skipped for found in sets), left_out)


def notes_of(sets: Sequence[Found]) -> dict[str, FieldNote]:
    """The fields of joined sets, each as in the first set that has it; a mask has the classes of all sets."""
    notes: dict[str, FieldNote] = {}
    for found in sets:
        for name, note in found.prepared.fields.items():
            first = notes.setdefault(name, note)
            if first.classes is not None and note.classes is not None:
                notes[name] = first.model_copy(update={"classes": max(first.classes, note.classes)})
    return notes


def agree(first: Found, other: Found) -> None:
    """Raises UserError with both sets if they differ in channels, classes or embeddings."""
    one, two = first.prepared, other.prepared
    compared = [("channels", str(one.channels), str(two.channels)), ("contents", *map(_contents, (one, two)))]
    if one.classes is not None:
        compared.append(("classes", _listed(one.classes), _listed(two.classes)))
    for name in one.fields.keys() & two.fields.keys():
        compared.append((f"the field {name}", *_notes(one.fields[name], two.fields[name])))
    for what, mine, theirs in compared:
        if mine != theirs:
            raise UserError(
                f"{first.shown} and {other.shown} cannot be one set: {what} {mine} against {theirs}",
                f"prepare both alike, or leave {other.key.removesuffix('.0')} out",
            )


def _find(key: str, root: Path, split: Split) -> Found:
    root = root.expanduser()
    try:
        prepared = open_shards(root, key)
    except UserError as error:
        if key == "data.root":
            raise
        without = "data.validation=null" if key == "data.validation" else "data.more=[]"
        raise UserError(error.problem, f"{error.hint}; --set {without} goes without it") from error
    return Found(key, root, prepared, split, prepared.classes)


def _contents(prepared: PreparedSet) -> str:
    return f"latents of {prepared.size} images" if prepared.latents else "images"


def _listed(classes: tuple[str, ...] | None) -> str:
    """Class names in few words, the same for the same names."""
    if not classes:
        return "none"
    digest = hashlib.sha256("\0".join(classes).encode()).hexdigest()[:8]
    return (
        ", ".join(classes) if len(classes) < 5 else f"{len(classes)} ({classes[0]} to {classes[-1]}, digest {digest})"
    )


def _notes(one: FieldNote, two: FieldNote) -> tuple[str, str]:
    """The properties of a field that must agree: the digest of the encoder's weights if both are known, else its name."""
    both = one.sha256 is not None and two.sha256 is not None
    return _told(one, both), _told(two, both)


def _told(note: FieldNote, digest: bool) -> str:
    encoder = f"of the encoder {note.encoder}" if note.encoder else ""
    classes = "" if note.kind != "mask" else {None: "of unknown classes", 2: "of two classes"}.get(note.classes, "")
    width = (
        f"{note.width} wide" if note.width else f"{listed(note.shape)}{' in pairs' * note.pair}" if note.shape else ""
    )
    read = note.reading if encoder and note.kind in ("vector", "tokens") else ""
    parts = [note.kind, width, classes, f"weights {note.sha256}" if digest else encoder, read]
    return " ".join(filter(None, parts))


def _sides(sets: Sequence[Found], parts: Sequence[ShardFiles]) -> Tensor:
    """int64 (N, 2): height and width of every image, from the indexes."""
    for found, part in zip(sets, parts, strict=True):
        if not bool(part.sides.all()):
            raise UserError(
                f"{found.shown} was prepared by a version that noted no sizes, which data.buckets needs",
                "run `diffcli prep-data` again, into another folder",
            )
    return torch.cat([part.sides for part in parts])
