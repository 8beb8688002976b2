"""Prepared sets of `diffcli prep-data` as data of a preset, with random access: images, latents or clips."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from diffcli.config import ImageShape, UserError, keys_agree, quoted
from diffcli.data.annotators import joined_annotators
from diffcli.data.buckets import Framing
from diffcli.data.clips.clip_data import ClipData
from diffcli.data.clips.clip_keys import Lengths, clip_faults, described_clips, timings
from diffcli.data.clips.rates import FrameRate
from diffcli.data.clips.shard_clips import ChosenFiles, ShardClips, long_enough
from diffcli.data.columns import column
from diffcli.data.dataset import DataConfig, no_split
from diffcli.data.field_notes import FieldNote
from diffcli.data.images import Column, FileImages, ImageData
from diffcli.data.joining import Found, Lacking, agree, find_set, joined, notes_of, origin_of, sides_of
from diffcli.data.latent_data import LatentImages, Latents
from diffcli.data.listing import Split
from diffcli.data.loader import MEMORY_LIMIT, loaded
from diffcli.data.shards import ShardFiles
from diffcli.fields import LATENT, FieldSpec, listed, typed

VIDEO = "video"  # the field of prepared sets that holds videos


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
    frames: Lengths | None = Field(
        None,
        description="of a set with videos: frames of a clip, or a list of lengths, one a batch; null: images are read",
    )
    fps: FrameRate | None = Field(
        None, description="frames per second that videos are resampled to by their time stamps; null: as they are"
    )
    stride: PositiveInt = Field(1, description="every how many frames, after resampling, one is taken")

    @keys_agree
    def _clips_agree(self) -> Iterator[str]:
        if self.frames is not None:
            yield from clip_faults(self, self.frames)
        elif self.fps is not None or self.stride != 1:
            yield "fps and stride are of clips, and frames is null; set data.frames=16 for example"

    @property
    def specs(self) -> dict[str, FieldSpec]:
        if self.frames is None:
            return super().specs
        return described_clips(self, timings(self.frames, self.fps, self.stride)[-1])

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
        framing = self._framing(split, lambda: sides_of(sets, parts))
        notes = notes_of(sets)
        if sets[0].prepared.latents:
            return self._latents(split, sets, parts, notes, labels)
        if self.frames is not None:
            return self._clips(split, sets, parts, notes, labels)
        columns = {
            name: self._column(name, note, sets, parts, framing)
            for name, note in notes.items()
            if note.kind != "video"  # kept for tasks of clips; the image is their middle frame
        }
        images = FileImages(joined(parts), self.shape, labels, classes, joined_annotators(columns), framing)
        images.origin = origin_of(sets, parts)
        return self._with_made(loaded(images, self.in_memory))

    def _clips(
        self,
        split: Split,
        sets: list[Found],
        parts: list[ShardFiles],
        notes: dict[str, FieldNote],
        labels: Tensor | None,
    ) -> ImageData:
        """The videos of a split, without those too short. Raises UserError if a set has none, or all are too short."""
        assert self.frames is not None
        for found in sets:
            if VIDEO not in found.prepared.fields:
                raise UserError(
                    f"data.frames is {self.frames}, but {found.shown} holds no videos",
                    "use --set data.frames=null for its images, or prepare clips: diffcli prep-data webvid SOURCE --out DIR",
                )
        each = timings(self.frames, self.fps, self.stride)
        lengths = torch.cat([part.films for part in parts])
        places = long_enough(lengths, each[-1]).nonzero()[:, 0]
        if not len(places):
            raise UserError(f"{sets[0].shown}: no video has {each[-1]}", "set data.frames or data.stride lower")
        framing = Framing(self.shape[1:], self.crop == "random" and split == "train")
        columns: dict[str, Column] = {
            name: self._column(name, note, sets, parts, framing, places)
            for name, note in notes.items()
            if note.kind in ("text", "vector", "tokens")  # what is of the whole video, not of its middle frame
        }
        films = ShardClips(ChosenFiles(joined([part.field(VIDEO) for part in parts]), places))
        chosen = None if labels is None else labels[places]
        data = ClipData(films, self.shape, each, chosen, sets[0].classes, columns, framing)
        short = len(lengths) - len(places)
        told = (f"left out, too short for {each[-1]}: {short:,} of {len(lengths):,} clips",) if short else ()
        data.origin = origin_of(sets, parts)._replace(notes=told)
        return self._with_made(data)

    def _latents(
        self,
        split: Split,
        sets: list[Found],
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

    def _sets(self, split: Split) -> list[Found]:
        """The sets of a split, in order. Raises UserError if there are none, or if two contradict each other."""
        first = find_set("data.root", self._source(), split)
        if split == "test" and self.validation is not None:
            found = [find_set("data.validation", self.validation, split)._replace(classes=first.classes)]
            if "test" not in found[0].prepared.splits:
                found = [found[0]._replace(split="train")]
            agree(first, found[0])
            return found
        sets = [first, *(find_set(f"data.more.{i}", path, split) for i, path in enumerate(self.more))]
        for other in sets[1:]:
            agree(first, other)
        there = [found for found in sets if split in found.prepared.splits]
        lacking = [found for found in sets if split not in found.prepared.splits]
        if lacking and (split == "train" or not there):
            raise no_split(split, list(lacking[0].prepared.splits), lacking[0].shown)
        return [found._replace(classes=first.classes) for found in there]

    def _column(
        self,
        name: str,
        note: FieldNote,
        sets: list[Found],
        parts: list[ShardFiles],
        framing: Framing,
        places: Tensor | None = None,
    ) -> Column:
        """A field of the samples, or of those at places, int64 (n,)."""
        there = [name in found.prepared.fields for found in sets]
        if not all(there):
            return Lacking(name, note.spec(framing.size), sets[there.index(False)].shown, sets[there.index(True)].shown)
        files = joined([part.field(name) for part in parts])
        return column(files if places is None else ChosenFiles(files, places), note, framing, sets[0].root)
