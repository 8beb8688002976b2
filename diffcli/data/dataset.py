"""The base of the data sets of a preset: place, shape of the images, and the way from files and arrays to ImageData."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from diffcli.config import Config, ImageShape, UserError, keys_agree
from diffcli.data.broken import broken_among, left_out, named
from diffcli.data.buckets import Framing, aspects, nearest
from diffcli.data.class_captions import ClassCaptions
from diffcli.data.columns import Texts
from diffcli.data.deep_images import LOOKED_AT, range_note
from diffcli.data.derived import AnyDerived, derived_specs
from diffcli.data.field_notes import FieldNote, is_mask
from diffcli.data.files import ARCHIVE_ERRORS, FileTree, Location, open_location, read_location, size_of
from diffcli.data.image_formats import open_encoded
from diffcli.data.images import FileImages, ImageData, ImageOrigin, MemoryImages, unreadable
from diffcli.data.listing import ClassesFrom, Listing, Split, list_images
from diffcli.data.loader import loaded
from diffcli.data.modes import GREY, Range
from diffcli.data.pixels import fit_all, read_size
from diffcli.data.sidecars import SidecarFiles, on_tables
from diffcli.fields import FieldSpec

Broken = Literal["refuse", "leave_out"]


class DataConfig(Config):
    """The keys of every data set.

    root: folder or archive on disk. size: edge in pixels, or (height, width); other images are resized, antialiased; null:
    that of the images, where they have one. channels: 1 grey, 3 RGB; left out: those of the images. flip: mirror half of the
    training images left to right. in_memory: hold decoded pixels in memory; None does if they take at most 2 GiB. crop:
    the place of the crop of training images after resizing, at the centre or at random in each epoch.
    buckets: sizes (height, width); each training image goes to the bucket of the nearest aspect ratio, and a batch has one
    bucket; samples, previews and scores use `size`.
    """

    root: Path | None = Field(None, description="folder or archive on disk; --data sets it")
    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="edge in pixels, or [height, width]; others are resized, antialiased, and cropped; null: that of the images",
    )
    channels: Literal[1, 3] = Field(
        3, description="1: grey, 3: RGB; left out: those of the images of a folder or a set"
    )
    grey: bool = Field(False, description="allow colour images to be converted to grey if channels is 1")
    flip: bool = Field(False, description="mirror half of the training images left to right")
    in_memory: bool | None = Field(None, description="hold decoded pixels in memory; null: if they take at most 2 GiB")
    crop: Literal["centre", "random"] = Field(
        "centre",
        description="where training images are cropped once the shorter side fits: centre, or random in each epoch",
    )
    buckets: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        (),
        description="sizes [height, width]; each training image goes to the nearest aspect ratio; samples have data.size",
    )
    captions: ClassCaptions | None = Field(None, description="makes the field text of a set that has classes")
    derived: tuple[AnyDerived, ...] = Field((), description="fields that are computed from the image when it is read")

    @property
    def shape(self) -> ImageShape:
        if self.size is None:
            raise UserError(
                "data.size is left out, and no data are read to determine it", "use --set data.size=64 (pixels)"
            )
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return ImageShape(self.channels, height, width)

    @property
    def specs(self) -> dict[str, FieldSpec]:
        """The fields that the preset determines before any file is opened; `ImageData.specs` has all fields."""
        text = {} if self.captions is None else {"text": FieldSpec("text")}
        image = FieldSpec("image", tuple(self.shape))
        return {"image": image} | text | derived_specs(self.derived, image)

    def over(self, name: str) -> FieldSpec:
        """The field of this name in data that have it, if it has the size of the images."""
        return FieldNote(kind="mask" if is_mask(name) else "image").spec(self.shape[1:])

    @property
    def cut_anew(self) -> str:
        """The keys that crop every training image anew when it is read, such as `crop 'random'`; empty: there are none."""
        found = ["crop 'random'"] * (self.crop == "random") + ["buckets"] * bool(self.buckets)
        return " and ".join(found)

    @keys_agree
    def _cut(self) -> Iterator[str]:
        if self.in_memory and self.cut_anew:
            yield (
                f"in_memory is true, but {self.cut_anew} cut the images anew whenever they are read; "
                "set data.in_memory to false"
            )
        ratios = aspects(torch.tensor(self.buckets)) if self.buckets else torch.empty(0)
        if len(ratios.unique()) < len(ratios):
            yield "buckets holds one aspect ratio twice; leave one of the two sizes out of data.buckets"

    @keys_agree
    def _derives(self) -> Iterator[str]:
        if self.size is None:  # that of the data, which are read later
            return
        try:
            for size in (self.shape[1:], *self.buckets):
                derived_specs(self.derived, FieldSpec("image", (self.channels, *size)))
        except UserError as error:
            yield f"{error.problem}; {error.hint}"

    def absolute(self) -> "DataConfig":
        """The same data with absolute paths."""
        return self if self.root is None else self.model_copy(update={"root": self.root.expanduser().absolute()})

    @property
    def paths(self) -> list[Path]:
        """Its paths on this machine."""
        return [] if self.root is None else [self.root.expanduser()]

    @property
    def commands(self) -> list[str]:
        """The commands that reading it would run."""
        return []

    @abstractmethod
    def build(self, split: Split) -> ImageData:
        """The images of a split. Raises UserError with data.root if they are missing or broken."""

    def _source(self) -> Path:
        if self.root is None:
            raise UserError("data.root is not set", "type --data PATH (or --set data.root=PATH)")
        return self.root.expanduser()

    def _arrays(self, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> ImageData:
        if self.cut_anew:
            side = "x".join(map(str, images.shape[2:]))
            raise UserError(
                f"data.{self.cut_anew}: for image files and shards, but this set is one array of {side} images",
                "leave it out, or run `diffcli prep-data` and train on the shards that it writes",
            )
        pixels = torch.from_numpy(fit_all(images, self.shape).copy())
        return self._with_made(MemoryImages(pixels, torch.from_numpy(labels), classes))

    def _files(
        self,
        tree: FileTree,
        split: Split,
        classes_from: ClassesFrom = "folders",
        broken: Broken = "refuse",
        captions_beside: bool = False,
        levels: Range | None = None,
    ) -> ImageData:
        found = list_images(tree, "data.root", classes_from)
        if split not in found.splits:
            raise no_split(split, list(found.splits), f"data.root '{tree.source}'")
        listing, notes = found.splits[split], found.notes
        if broken == "leave_out":
            listing, named = _whole(tree, listing, levels)
            notes = (*notes, *named)
        labels = None if listing.labels is None else torch.tensor(listing.labels)
        files = TreeFiles(tree, listing.names)
        texts = SidecarFiles(tree, listing.names) if captions_beside else None
        columns = {"text": Texts(texts)} if texts and texts.captioned else None
        if captions_beside and columns is None:
            notes = (*notes, *on_tables(tree))
        framing = self._framing(split, files.sides)
        images = FileImages(files, self.shape, labels, listing.classes, columns, framing, levels)
        if levels is None and (note := range_note(files.first(LOOKED_AT), "data.range=[{}]")):
            notes = (*notes, note)
        counts = {name: len(each.names) for name, each in found.splits.items()} | {split: len(files)}
        images.origin = ImageOrigin(files, counts, left_out=found.left_out, notes=notes)
        return self._with_made(loaded(images, self.in_memory))

    def _framing(self, split: Split, sides: Callable[[], Tensor]) -> Framing:
        """The crop of the images of a split. sides: gives their (height, width), int64 (N, 2), which only buckets need."""
        if split != "train":
            return Framing(self.shape[1:])
        bucket = nearest(sides(), self.buckets) if self.buckets else None
        return Framing(self.shape[1:], self.crop == "random", self.buckets, bucket)

    def _with_made(self, data: ImageData) -> ImageData:
        """The data with the fields that the preset derives: captions from classes, and fields from the image."""
        captioned = data if self.captions is None else self.captions.added(data)
        return captioned.deriving(self.derived)


def _whole(tree: FileTree, listing: Listing, levels: Range | None) -> tuple[Listing, tuple[str, ...]]:
    """The images of a listing that can be decoded, and a note on the others. Raises UserError if none can."""
    files = TreeFiles(tree, listing.names)
    broken = broken_among(files, levels)
    if not broken:
        return listing, ()
    if len(broken) == len(files):
        problem = f"data.root '{tree.source}': no image can be decoded: {named(files, broken)}"
        raise UserError(problem, "give a folder of whole images as --data PATH")
    kept = [row for row in range(len(files)) if row not in broken]
    labels = None if listing.labels is None else [listing.labels[row] for row in kept]
    return Listing([listing.names[row] for row in kept], labels, listing.classes), (left_out(files, broken),)


class TreeFiles:
    """The encoded images of a FileTree, by number."""

    def __init__(self, tree: FileTree, names: list[str]) -> None:
        self.source = tree.source
        self.names = names
        self.locations: list[Location] = [tree.locations[name] for name in names]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return str(self.source / self.names[index])

    def read(self, index: int) -> bytes:
        return read_location(self.locations[index])

    def first(self, count: int) -> Iterator[bytes]:
        """Some files, evenly spread; none from one on that cannot be read."""
        for index in range(0, len(self), max(1, len(self) // count)):
            try:
                yield self.read(index)
            except (OSError, *ARCHIVE_ERRORS):
                return

    def sides(self) -> Tensor:
        """int64 (N, 2): height and width of each image, from its header."""
        return torch.tensor([self.size_of(index) for index in range(len(self))], dtype=torch.int64).reshape(-1, 2)

    def digest(self, sizes: bool) -> str:
        """A digest of the names of the files and, optionally, of their sizes in bytes."""
        total = hashlib.sha256()
        for name, location in zip(self.names, self.locations, strict=True):
            total.update(f"{name}\0{size_of(location) if sizes else ''}\n".encode())
        return total.hexdigest()

    def is_grey(self, index: int) -> bool:
        """Whether an image is stored without colours, according to its header; False for an unreadable one."""
        try:
            with open_location(self.locations[index]) as file, open_encoded(file) as image:
                return image.mode in GREY or image.mode.startswith("I")
        except Exception:  # Pillow's parsers raise nearly anything on garbled files
            return False

    def size_of(self, index: int) -> tuple[int, int]:
        """(height, width) of an image, from its header."""
        try:
            with open_location(self.locations[index]) as file:
                return read_size(file, self.name(index))
        except (OSError, *ARCHIVE_ERRORS) as error:
            raise unreadable(self.name(index), error) from error


class NoSplit(UserError):
    """Data lack a split."""


def no_split(split: str, splits: list[str], where: str) -> NoSplit:
    return NoSplit(f"{where} has no split '{split}'", f"use the split {' or '.join(splits)}, or add the other one")
