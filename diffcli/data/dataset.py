"""What every data set of a preset has: where it lies, the shape of its images, and how files and arrays become ImageData."""

from abc import abstractmethod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt

from diffcli.config import Config, ImageShape, UserError
from diffcli.data.class_captions import ClassCaptions
from diffcli.data.files import FileTree, Location, read_location
from diffcli.data.images import FileImages, ImageData, MemoryImages
from diffcli.data.listing import Split, list_images
from diffcli.data.loader import held
from diffcli.data.pixels import fit_all


class DataConfig(Config):
    """What every data set has.

    root: folder or archive on disk. size: edge in pixels, or (height, width); other images are resized, antialiased.
    channels: 1 grey, 3 RGB. flip: mirror half of the training images left to right. in_memory: hold decoded pixels in memory;
    None does where they take at most 2 GiB.
    """

    root: Path | None = None
    size: PositiveInt | tuple[PositiveInt, PositiveInt]
    channels: Literal[1, 3] = 3
    flip: bool = False
    in_memory: bool | None = None
    captions: ClassCaptions | None = Field(None, description="makes the field text of a set that has classes")

    @property
    def shape(self) -> ImageShape:
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return ImageShape(self.channels, height, width)

    @abstractmethod
    def build(self, split: Split) -> ImageData:
        """The images of a split. Raises UserError that names data.root where they are missing or broken."""

    def _source(self) -> Path:
        if self.root is None:
            raise UserError("data.root is not set", "type --data PATH (or --set data.root=PATH)")
        return self.root.expanduser()

    def _arrays(self, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> ImageData:
        pixels = torch.from_numpy(fit_all(images, self.shape).copy())
        return self._captioned(MemoryImages(pixels, torch.from_numpy(labels), classes))

    def _files(self, tree: FileTree, split: Split) -> ImageData:
        splits = list_images(tree, "data.root")
        if split not in splits:
            raise no_split(split, list(splits), f"data.root '{tree.source}'")
        listing = splits[split]
        labels = None if listing.labels is None else torch.tensor(listing.labels)
        images = FileImages(TreeFiles(tree, listing.names), self.shape, labels, listing.classes)
        return self._captioned(held(images, self.in_memory))

    def _captioned(self, data: ImageData) -> ImageData:
        return data if self.captions is None else self.captions.added(data)


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


def no_split(split: str, splits: list[str], where: str) -> UserError:
    return UserError(f"{where} has no split '{split}'", f"use the split {' or '.join(splits)}, or add the other one")
