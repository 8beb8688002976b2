"""The preset keys of clips, `data: {kind: clips, ...}`: folders of videos, of animations and of numbered frames."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt

from diffcli.config import UserError, keys_agree
from diffcli.data.broken import left_out, named
from diffcli.data.buckets import Framing
from diffcli.data.clips.clip_data import ClipData
from diffcli.data.clips.clip_files import ANIMATIONS, FRAME_RATE, RATE_FILE, FoundClips, TreeClips, clips_among
from diffcli.data.clips.clip_keys import Lengths, clip_faults, described_clips, timings
from diffcli.data.clips.film import BrokenClip, Timing
from diffcli.data.clips.probing import broken_clips
from diffcli.data.clips.rates import FrameRate
from diffcli.data.columns import Texts
from diffcli.data.dataset import Broken, DataConfig, no_split
from diffcli.data.files import FileTree, open_tree
from diffcli.data.image_formats import VIDEOS
from diffcli.data.images import Column, ImageData, ImageOrigin
from diffcli.data.listing import ClassesFrom, Listing, Split, arranged
from diffcli.data.naming import given_as
from diffcli.data.sidecars import SidecarFiles
from diffcli.fields import FieldSpec


class Clips(DataConfig):
    """Videos, GIF and WebP animations, and folders of numbered pictures, in class folders and splits as `folder` has them.

    Captions in files beside the clips (a.txt of a.mp4) are the field text, unless `captions` makes others. The field fps is that
    of the clip as it is given. A clip begins anywhere in its film in training, and is its middle otherwise.
    """

    kind: Literal["clips"] = "clips"
    frames: Lengths = Field(
        16,
        description="frames of a clip; a list: each batch of training has one of these lengths, all else the longest",
    )
    fps: FrameRate | None = Field(
        None, description="frames per second that films are resampled to by their time stamps; null: as they are"
    )
    stride: PositiveInt = Field(1, description="every how many frames, after resampling, one is taken")
    classes: ClassesFrom = Field(
        "folders", description="where class names come from: folders, or the prefix of file names"
    )
    broken: Broken = Field(
        "refuse",
        description="clips that cannot be read or are too short: refuse stops the run; leave_out looks at all first, skips these",
    )

    remedy: ClassVar[str] = BrokenClip.remedy

    @keys_agree
    def _clips_agree(self) -> Iterator[str]:
        return clip_faults(self, self.frames)

    @property
    def timings(self) -> tuple[Timing, ...]:
        return timings(self.frames, self.fps, self.stride)

    @property
    def specs(self) -> dict[str, FieldSpec]:
        return described_clips(self, self.timings[-1])

    def build(self, split: Split) -> ImageData:
        tree = open_tree(self._folder(), "data.root")
        found = clips_among(tree, "data.root")
        names = list(found.clips)
        listings = arranged(names, tree, self.classes, found.others + tree.passed, what="clips")
        if split not in listings.splits:
            raise no_split(split, list(listings.splits), f"data.root '{tree.source}'")
        listing, notes = self._whole(tree, listings.splits[split], found)
        files = TreeClips(tree, listing.names, found.clips, self._folder_fps)
        if files.unrated:
            notes = (
                *notes,
                f"folders of frames without {RATE_FILE}, taken for {self._folder_fps:g} a second: {files.unrated:,}",
            )
        labels = None if listing.labels is None else torch.tensor(listing.labels)
        texts = SidecarFiles(tree, listing.names) if self.captions is None else None
        columns: dict[str, Column] = {"text": Texts(texts)} if texts and texts.captioned else {}
        framing = Framing(self.shape[1:], self.crop == "random" and split == "train")
        data = ClipData(files, self.shape, self.timings, labels, listing.classes, columns, framing, self.remedy)
        counts = {name: len(each.names) for name, each in listings.splits.items()} | {split: len(files)}
        data.origin = ImageOrigin(files, counts, left_out=listings.left_out, notes=(*listings.notes, *notes))
        return self._with_made(data)

    def _folder(self) -> Path:
        """The source. Raises UserError where it is one film, which is no archive."""
        source = self._source()
        if source.is_file() and source.suffix.lower() in (*VIDEOS, *ANIMATIONS):
            raise UserError(f"data.root is '{source}', which is a single film", given_as("data.root", "its folder"))
        return source

    @property
    def _folder_fps(self) -> float:
        return self.fps or FRAME_RATE

    def _whole(self, tree: FileTree, listing: Listing, found: FoundClips) -> tuple[Listing, tuple[str, ...]]:
        """The clips that can be read, if others are left out, and a note on those. Raises BrokenClip for misnumbered frames."""
        files = TreeClips(tree, listing.names, found.clips, self._folder_fps)
        if self.broken == "refuse":
            for index in range(len(files)):
                if fault := files.fault(index):
                    raise BrokenClip(files.name(index), fault, self.remedy)
            return listing, ()
        broken = broken_clips(ClipData(files, self.shape, self.timings))
        if not broken:
            return listing, ()
        if len(broken) == len(files):
            problem = f"data.root '{tree.source}': no clip can be read: {named(files, broken)}"
            raise UserError(problem, "give a folder of whole clips as --data PATH, or set data.frames lower")
        kept = [row for row in range(len(files)) if row not in broken]
        labels = None if listing.labels is None else [listing.labels[row] for row in kept]
        return Listing([listing.names[row] for row in kept], labels, listing.classes), (
            left_out(files, broken, "clips", "cannot be read or are too short"),
        )
