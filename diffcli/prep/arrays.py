"""Sets whose files hold all pixels as arrays: the IDX files of MNIST, the batches of CIFAR."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from diffcli.data.cifar import CLASSES as CIFAR_CLASSES
from diffcli.data.cifar import find_batches, read_batches
from diffcli.data.files import open_tree
from diffcli.data.listing import Split
from diffcli.data.mnist import find_idx, read_split
from diffcli.prep.folders import images_of
from diffcli.prep.items import SOURCE, Item, Items, Source, SourceOptions, tree_fingerprint

SPLITS: tuple[Split, ...] = ("train", "test")


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
    return Source(splits, classes, tree_fingerprint(tree, [name for pair in pairs.values() for name in pair]))


def open_cifar10(source: Path, work: Path, options: SourceOptions) -> Source:
    """CIFAR-10's binary version, or image folders train/CLASS and test/CLASS, each in a folder or an archive."""
    tree = open_tree(source, SOURCE, work)
    batches = {split: find_batches(tree, split, SOURCE) for split in SPLITS}
    if not all(batches.values()):
        return images_of(tree)
    splits: dict[Split, Items] = {s: ArrayItems(s, *read_batches(tree, names)) for s, names in batches.items()}
    names = [name for batch in batches.values() for name in batch]
    return Source(splits, CIFAR_CLASSES, tree_fingerprint(tree, names))
