"""The data sets of a preset: `data: {kind: ..., root: ..., size: ...}` is a config that builds its ImageData.

Whatever is on disk, a set has one shape, uint8 pixels and int64 labels; its order is that of its files, sorted by name.
"""

from abc import abstractmethod
from importlib.resources import files as package_files
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator

from diffcli.config import Config, ImageShape, UserError
from diffcli.data.cifar import CLASSES as CIFAR_CLASSES
from diffcli.data.cifar import find_batches, read_batches
from diffcli.data.files import FileTree, Location, open_tree, read_location
from diffcli.data.idx import read_pair
from diffcli.data.images import FileImages, ImageData, MemoryImages
from diffcli.data.listing import Split, list_images
from diffcli.data.loader import held
from diffcli.data.mnist import find_idx, read_split
from diffcli.data.pixels import fit_all
from diffcli.data.shards import ShardFiles, is_prepared, open_shards

DIGITS = tuple(str(digit) for digit in range(10))
HELD_OUT_EVERY = 10


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

    def _arrays(self, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> MemoryImages:
        return MemoryImages(torch.from_numpy(fit_all(images, self.shape).copy()), torch.from_numpy(labels), classes)

    def _files(self, tree: FileTree, split: Split) -> ImageData:
        splits = list_images(tree, "data.root")
        if split not in splits:
            raise _no_split(split, list(splits), f"data.root '{tree.source}'")
        listing = splits[split]
        labels = None if listing.labels is None else torch.tensor(listing.labels)
        return held(FileImages(TreeFiles(tree, listing.names), self.shape, labels, listing.classes), self.in_memory)


class Digits(DataConfig):
    """The 10,000 test images of MNIST, shipped with diffcli: 28x28, grey.

    They are one set, so every tenth image is held out: `train` has 9,000, `test` the other 1,000.
    """

    kind: Literal["digits"] = "digits"
    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 28
    channels: Literal[1, 3] = 1

    @model_validator(mode="after")
    def _embedded(self) -> "Digits":
        if self.root is not None:
            raise ValueError(
                "root must not be set for kind 'digits', which comes with diffcli; use kind mnist or folder"
            )
        return self

    def build(self, split: Split) -> ImageData:
        folder = package_files("diffcli.data") / "digits"
        names = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
        images, labels = read_pair((folder / names[0]).read_bytes(), (folder / names[1]).read_bytes(), names)
        held_out = np.arange(len(images)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        chosen = held_out if split == "test" else ~held_out
        return self._arrays(images[chosen], labels[chosen], DIGITS)


class Mnist(DataConfig):
    """MNIST from its four IDX files, gzipped or plain, anywhere below root (as torchvision lays them out, too)."""

    kind: Literal["mnist"] = "mnist"
    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 28
    channels: Literal[1, 3] = 1

    def build(self, split: Split) -> ImageData:
        tree = open_tree(self._source(), "data.root")
        images, labels = read_split(tree, split, find_idx(tree, split, "data.root"))
        return self._arrays(images, labels, DIGITS)


class Cifar10(DataConfig):
    """CIFAR-10 from its binary version (folder or archive), or from image folders train/CLASS, test/CLASS (or archive)."""

    kind: Literal["cifar10"] = "cifar10"
    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 32

    def build(self, split: Split) -> ImageData:
        tree = open_tree(self._source(), "data.root")
        batches = find_batches(tree, split, "data.root")
        if batches:
            return self._arrays(*read_batches(tree, batches), CIFAR_CLASSES)
        return self._files(tree, split)


class Folder(DataConfig):
    """A folder of images: flat, with class folders, or with folders train and test (or val) around either."""

    kind: Literal["folder"] = "folder"

    def build(self, split: Split) -> ImageData:
        source = self._source()
        if source.is_file():
            hint = f"run `diffcli prep-data folder {source} --out DIR`, then type --data DIR"
            raise UserError(f"data.root is '{source}', which is a file, not a folder of images", hint)
        return self._files(open_tree(source, "data.root"), split)


class Shards(DataConfig):
    """A set that `diffcli prep-data` wrote, read by random access. verify: check the digest of every shard first."""

    kind: Literal["shards"] = "shards"
    verify: bool = False

    def build(self, split: Split) -> ImageData:
        source = self._source()
        prepared = open_shards(source, "data.root")
        if split not in prepared.splits:
            raise _no_split(split, list(prepared.splits), f"data.root '{source}'")
        files = ShardFiles(source, prepared, split)
        if self.verify:
            files.verify()
        return held(FileImages(files, self.shape, files.labels, prepared.classes), self.in_memory)


class NoData(DataConfig):
    """The shape of images that are not here: the data of an imported model. channels: any number, so latents too."""

    kind: Literal["none"] = "none"
    channels: PositiveInt = 3  # type: ignore[assignment]  # wider than what a file of images can have

    def build(self, split: Split) -> ImageData:
        raise UserError(
            "data.kind is 'none': the preset of an imported model has no images",
            "name a reference or data: --ref for fid, --set data.kind=folder --data PATH to train",
        )


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


AnyData = Annotated[Digits | Mnist | Cifar10 | Folder | Shards | NoData, Field(discriminator="kind")]


def at_root(config: DataConfig, root: Path) -> DataConfig:
    """`config` reading from `root`: as shards of the same shape where `diffcli prep-data` prepared it."""
    if is_prepared(root) and not isinstance(config, Shards):
        same = config.model_dump(include={"size", "channels", "flip", "in_memory"})
        return Shards(root=root, **same)
    return type(config).model_validate(config.model_dump() | {"root": root})


def _no_split(split: str, splits: list[str], where: str) -> UserError:
    return UserError(f"{where} has no split '{split}'", f"use the split {' or '.join(splits)}, or add the other one")
