"""Prepared sets: tar shards in the WebDataset layout, an index of byte offsets for each, and `dataset.json` over all.

Images are read by random access straight from the tars, by any number of processes:

    dataset.json            kind, count, size, channels, classes, fields, source, licence, and for each split its shards
    train-000000.tar        for each image KEY.png or KEY.jpg, and what there is of KEY.cls (the label in ASCII), KEY.txt (UTF-8,
                            one caption a line), KEY.mp4, KEY.FIELD.png (a mask or sketch) and KEY.FIELD.npy (an embedding);
                            or KEY.latent.npy in place of the image
    train-000000.json       Index: where each of them lies in the tar, the labels, and what was skipped
"""

import copy
import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, StringConstraints, ValidationError
from torch import Tensor

from diffcli.config import Config, Record, UserError, quoted
from diffcli.data.field_notes import Digest, FieldName, Notes
from diffcli.data.files import Span
from diffcli.data.leftovers import check_finished
from diffcli.data.listing import Split
from diffcli.data.naming import given_as
from diffcli.data.set_folder import DATASET
from diffcli.digest import sha256, stands_in

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+\.(tar|json)$")]  # never a path
AGAIN = (
    "run `diffcli prep-data` with the same arguments again: it rewrites what is missing (delete broken shards first)"
)


class Skipped(Config):
    """An input that could not be used."""

    path: str
    reason: str


class Members(Record):
    """The places of one field in the tar, for each image; size 0: the image has none."""

    offset: list[NonNegativeInt]
    size: list[NonNegativeInt]


class Index(Record):
    """The contents of one shard. members: the names of its images; offset and size: their places in the tar.

    image_size: (height, width) of all images, None if they differ or there are none; sizes: then those of each.
    films: frames and frames per second of each video. fields: the fields beside the images; notes: their descriptions.
    values: those that occur in each mask.
    """

    members: list[str]
    offset: list[NonNegativeInt]
    size: list[NonNegativeInt]
    labels: list[NonNegativeInt] | None
    channels: Literal[1, 3]
    image_size: tuple[int, int] | None
    sizes: list[tuple[int, int]] | None = None
    films: list[tuple[NonNegativeInt, NonNegativeFloat]] | None = None
    fields: dict[FieldName, Members] = Field(default_factory=dict)
    notes: Notes = Field(default_factory=dict)
    values: dict[FieldName, list[NonNegativeInt]] = Field(default_factory=dict)
    skipped: list[Skipped]
    bytes: NonNegativeInt
    sha256: Digest


def index_json(index: Index) -> bytes:
    """The file of an index; without videos it is in the form that earlier versions read."""
    return index.model_dump_json(exclude=None if index.films else {"films"}).encode()


class Shard(Config):
    """One tar of a split as dataset.json lists it."""

    tar: FileName
    index: FileName
    count: NonNegativeInt
    bytes: NonNegativeInt
    sha256: Digest
    index_sha256: Digest


class PreparedSplit(Config):
    """Shards in order; count is the sum of theirs."""

    count: NonNegativeInt
    shards: list[Shard]


class PrepRequest(Config):
    """The request to prep-data; the same request into the same folder continues, another one is refused."""

    kind: str
    source: str
    size: int | None
    limit: int | None
    options: dict[str, str] = Field(default_factory=dict)  # further options, by name
    images_per_shard: int
    fingerprint: Digest


class PreparedSet(Config):
    """dataset.json. size: (height, width) of every image, None where they differ. classes: names, None without labels.

    latents: whether it holds latents in place of images; size and channels are those of the images. left_out: numbers of
    files of its source that are not part of it, by type.
    """

    format: Literal[1] = 1
    kind: str
    count: NonNegativeInt
    skipped: NonNegativeInt
    size: tuple[int, int] | None
    channels: Literal[1, 3]
    classes: tuple[str, ...] | None
    latents: bool = False
    left_out: dict[str, NonNegativeInt] = Field(default_factory=dict)
    fields: Notes = Field(default_factory=dict)
    source: str
    licence: str
    splits: dict[Split, PreparedSplit] = Field(min_length=1)
    request: PrepRequest


def open_shards(root: Path, key: str) -> PreparedSet:
    """The description of a prepared set. Raises UserError if there is none or if it is garbled."""
    path = root / DATASET
    if not path.is_file():
        check_finished(root, key)
        what = "has no dataset.json: it is not a finished set of prep-data" if root.is_dir() else "does not exist"
        made = f"folder {quoted(root)} --out DIR" if root.is_dir() else f"KIND SOURCE --out {quoted(root)}"
        hint = f"run `diffcli prep-data {made}`, or {given_as(key, 'a folder that it wrote')}"
        raise UserError(f"{key} is '{root}', which {what}", hint)
    try:
        return PreparedSet.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path} is not a set of this version: {where}: {first['msg']}", AGAIN) from error


class ShardFiles:
    """The encoded images of one split of a prepared set, by number; opens its shards when they are first read.

    Raises UserError with the shard if one is missing, has another size, or a changed index.
    """

    def __init__(self, root: Path, prepared: PreparedSet, split: Split) -> None:
        self.shards = prepared.splits[split].shards
        self.paths = [root / shard.tar for shard in self.shards]
        rows = [_Rows.of(_checked_index(root, shard), prepared) for shard in self.shards]
        counts = torch.tensor([shard.count for shard in self.shards], dtype=torch.int64)
        self.shard = torch.repeat_interleave(torch.arange(len(counts)), counts)  # tensors: millions of tuples are heavy
        self.first = counts.cumsum(0) - counts
        self.offset, self.size = _members([shard.members for shard in rows])
        self.labels = _labels(rows, prepared, root)
        self.sides = torch.cat([torch.empty(0, 2, dtype=torch.int64), *(shard.sides for shard in rows)])
        self.films = torch.cat([torch.empty(0, 2, dtype=torch.float64), *(shard.films for shard in rows)])
        self.fields = {name: _members([shard.fields[name] for shard in rows]) for name in prepared.fields}

    def field(self, name: str) -> "ShardFiles":
        """The members of a field beside the images, by the number of their image."""
        view = copy.copy(self)
        view.offset, view.size = self.fields[name]
        return view

    def __len__(self) -> int:
        return len(self.shard)

    def span(self, index: int) -> Span:
        """Where an image, or the member of a field, lies in its shard. Raises UserError as `read` does."""
        number = int(self.shard[index])
        _open(self.paths[number], self.shards[number].sha256, self.shards[number].bytes)
        return Span(self.paths[number], int(self.offset[index]), int(self.size[index]))

    def name(self, index: int) -> str:
        shard = int(self.shard[index])
        return f"{self.paths[shard]} (image {index - int(self.first[shard])})"

    def read(self, index: int) -> bytes:
        number = int(self.shard[index])
        path = self.paths[number]
        size = int(self.size[index])
        opened = _open(path, self.shards[number].sha256, self.shards[number].bytes)  # held: the cache may forget it
        data = os.pread(opened.descriptor, size, int(self.offset[index]))  # keeps no position: safe across forks
        if len(data) != size:
            raise UserError(f"{path} ends within image {index}: it was truncated", AGAIN)
        return data

    def verify(self) -> None:
        """Compares every shard with its digest."""
        for path, shard in zip(self.paths, self.shards, strict=True):
            if sha256(path) != shard.sha256:
                raise UserError(f"{path} was changed: its digest is not that of {DATASET}", AGAIN)


class _OpenShard:
    """A file descriptor that closes with its last user; digest distinguishes sets that were at one path at different times.

    Raises UserError if the file is gone or has another size: `prep-data --embed` may have rewritten it meanwhile.
    """

    def __init__(self, path: Path, digest: str, size: int) -> None:
        hint = "run the same command again; it goes on with the set as it is now"
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path} cannot be opened: {error.strerror}", hint) from error
        if (found := os.fstat(self.descriptor).st_size) != size:
            raise UserError(f"{path} has {found} bytes, not {size}: it was changed while it was read", hint)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


_open = lru_cache(maxsize=256)(_OpenShard)  # below the 1024 descriptors that a process may usually hold


def _checked_index(root: Path, shard: Shard) -> Index:
    tar, path = root / shard.tar, root / shard.index
    if missing := [file for file in (tar, path) if not file.is_file()]:
        raise UserError(f"{missing[0]} is missing", AGAIN)
    if (size := tar.stat().st_size) != shard.bytes:
        problem = f"{tar} has {size} bytes, not {shard.bytes}: it was truncated or changed"
        raise UserError(problem, stands_in(tar) or AGAIN)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise UserError(f"{path} was changed: its digest is not that of {DATASET}", AGAIN)
    return Index.model_validate_json(data)


class _Rows(NamedTuple):
    """The parts of an index in memory, int64 tensors, made shard by shard, since lists of millions take ten times the memory.

    members and fields: (2, N), offset and size in the tar; sides: (N, 2), height and width as stored; labels: (N,).
    films: float64 (N, 2), frames and frames per second of the videos, 0 where they are not known.
    """

    members: Tensor
    fields: dict[FieldName, Tensor]
    sides: Tensor
    labels: Tensor
    films: Tensor

    @classmethod
    def of(cls, index: Index, prepared: PreparedSet) -> "_Rows":
        count = len(index.members)
        nothing = Members(offset=[0] * count, size=[0] * count)
        there = {name: index.fields.get(name, nothing) for name in prepared.fields}
        return cls(
            torch.tensor([index.offset, index.size]),
            {name: torch.tensor([found.offset, found.size]) for name, found in there.items()},
            torch.tensor(index.sizes or [index.image_size or (0, 0)] * count, dtype=torch.int64).reshape(-1, 2),
            torch.tensor(index.labels or [], dtype=torch.int64),
            torch.tensor(index.films or [(0, 0.0)] * count, dtype=torch.float64).reshape(-1, 2),
        )


def _members(shards: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Offsets and sizes, int64 (N,), of those of each shard, (2, n)."""
    offset, size = torch.cat([torch.empty(2, 0, dtype=torch.int64), *shards], dim=1)
    return offset, size


def _labels(shards: Sequence[_Rows], prepared: PreparedSet, root: Path) -> Tensor | None:
    if prepared.classes is None:
        return None
    labels = torch.cat([torch.empty(0, dtype=torch.int64), *(shard.labels for shard in shards)])
    if len(labels) and int(labels.max()) >= len(prepared.classes):
        problem = f"{root} holds the label {int(labels.max())}, but {DATASET} names {len(prepared.classes)} classes"
        raise UserError(problem, AGAIN)
    return labels
