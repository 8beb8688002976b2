"""Several prepared sets as one: whether they agree, what they have together, and their files end to end."""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.field_notes import FieldNote
from diffcli.data.files import Span
from diffcli.data.images import ImageOrigin
from diffcli.data.listing import Split
from diffcli.data.shards import PreparedSet, ShardFiles, open_shards
from diffcli.fields import FieldSpec, listed


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

    def __init__(self, parts: Sequence[ShardFiles]) -> None:
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

    def span(self, index: int) -> Span:
        part, own = self._part(index)
        return part.span(own)

    def _part(self, index: int) -> tuple[ShardFiles, int]:
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


def joined(parts: Sequence[ShardFiles]) -> ShardFiles | Joined:
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


def find_set(key: str, root: Path, split: Split) -> Found:
    """The prepared set in a folder. Raises UserError with the key that names it if there is none."""
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


def sides_of(sets: Sequence[Found], parts: Sequence[ShardFiles]) -> Tensor:
    """int64 (N, 2): height and width of every image, from the indexes."""
    for found, part in zip(sets, parts, strict=True):
        if not bool(part.sides.all()):
            raise UserError(
                f"{found.shown} was prepared by a version that noted no sizes, which data.buckets needs",
                "run `diffcli prep-data` again, into another folder",
            )
    return torch.cat([part.sides for part in parts])
