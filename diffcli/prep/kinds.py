"""What prep-data can read: each kind opens a folder or an archive as a Source.

To add a kind, write a function `(source, work, options) -> Source` and register it in KINDS.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffcli.data.cifar import CLASSES as CIFAR_CLASSES
from diffcli.data.cifar import find_batches, read_batches
from diffcli.data.files import FileTree, open_tree
from diffcli.data.listing import Split, list_images
from diffcli.data.mnist import find_idx, read_split
from diffcli.prep.imagenet import open_imagenet64
from diffcli.prep.items import Item, Items, Source, SourceOptions, fingerprint

SOURCE = "SOURCE"  # what the user typed, for errors
SPLITS: tuple[Split, ...] = ("train", "test")


class Kind(NamedTuple):
    """A kind of prep-data. open: (source, a folder for temporary files, options) -> Source; where: to get it, for the hint."""

    open: Callable[[Path, Path, SourceOptions], Source]
    licence: str
    where: str


class FileItems:
    """Encoded images of a tree."""

    def __init__(self, tree: FileTree, names: list[str], labels: list[int] | None) -> None:
        self.tree, self.names, self.labels = tree, names, labels

    def __len__(self) -> int:
        return len(self.names)

    def items(self, positions: Sequence[int]) -> Iterator[Item]:
        for position in positions:
            name = self.names[position]
            yield Item(name, None if self.labels is None else self.labels[position], self.tree.locations[name])


class ArrayItems:
    """Pixels uint8 (N, C, H, W) with labels int64 (N,)."""

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray) -> None:
        self.name, self.images, self.labels = name, images, labels

    def __len__(self) -> int:
        return len(self.images)

    def items(self, positions: Sequence[int]) -> Iterator[Item]:
        for position in positions:
            yield Item(f"{self.name}[{position}]", int(self.labels[position]), self.images[position])


def open_mnist(source: Path, work: Path, options: SourceOptions) -> Source:
    """The four IDX files of MNIST in a folder or an archive."""
    tree = open_tree(source, SOURCE, work)
    pairs = {split: find_idx(tree, split, SOURCE) for split in SPLITS}
    splits: dict[Split, Items] = {s: ArrayItems(pair[0], *read_split(tree, s, pair)) for s, pair in pairs.items()}
    classes = tuple(str(digit) for digit in range(10))
    return Source(splits, classes, _fingerprint(tree, [name for pair in pairs.values() for name in pair]))


def open_cifar10(source: Path, work: Path, options: SourceOptions) -> Source:
    """CIFAR-10's binary version, or image folders train/CLASS and test/CLASS, each in a folder or an archive."""
    tree = open_tree(source, SOURCE, work)
    batches = {split: find_batches(tree, split, SOURCE) for split in SPLITS}
    if not all(batches.values()):
        return _images(tree)
    splits: dict[Split, Items] = {s: ArrayItems(s, *read_batches(tree, names)) for s, names in batches.items()}
    return Source(splits, CIFAR_CLASSES, _fingerprint(tree, [name for names in batches.values() for name in names]))


def open_folder(source: Path, work: Path, options: SourceOptions) -> Source:
    """Any images in a folder or an archive, with or without class folders, with or without train and test around them."""
    return _images(open_tree(source, SOURCE, work))


def open_imagenet(source: Path, work: Path, options: SourceOptions) -> Source:
    """The official npz batches of ImageNet 64x64."""
    return open_imagenet64(source, SOURCE, work)


def _images(tree: FileTree) -> Source:
    listings = list_images(tree, SOURCE)
    splits: dict[Split, Items] = {split: FileItems(tree, x.names, x.labels) for split, x in listings.items()}
    classes = next(iter(listings.values())).classes
    return Source(splits, classes, _fingerprint(tree, [name for x in listings.values() for name in x.names]))


def _fingerprint(tree: FileTree, names: list[str]) -> str:
    return fingerprint((name, tree.size(name)) for name in names)


KINDS: dict[str, Kind] = {
    "mnist": Kind(
        open_mnist,
        "CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
        "give the folder with the four *-ubyte.gz files of http://yann.lecun.com/exdb/mnist/",
    ),
    "cifar10": Kind(
        open_cifar10,
        "research use, Alex Krizhevsky 2009",
        "give cifar-10-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "folder": Kind(open_folder, "that of the images; check it before you share them", "give a folder of images"),
    "imagenet64": Kind(
        open_imagenet,
        "ImageNet terms of access: non-commercial research and education; downsampled by Chrabaszcz et al. 2017",
        "give the folder with Imagenet64_train_part1.zip and part2.zip of https://image-net.org/download-images",
    ),
}
