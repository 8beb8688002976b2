"""Sets in files of arrays: the IDX files of MNIST, the batches of CIFAR."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from diffcli.config import UserError
from diffcli.data import cifar, mnist
from diffcli.data.files import FileTree, open_tree
from diffcli.data.listing import Split
from diffcli.prep.items import SOURCE, Item, Items, PrepSource, SourceOptions, tree_fingerprint
from diffcli.prep.sets.folders import images_of, matching, not_found

SPLITS: tuple[Split, ...] = ("train", "test")
OWN = "use the kind folder for images of your own"


class ArrayItems:
    """Pixels uint8 (N, C, H, W) with labels int64 (N,)."""

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray) -> None:
        self.name, self.images, self.labels = name, images, labels

    def __len__(self) -> int:
        return len(self.images)

    def items(self, positions: Sequence[int]) -> Iterator[Item]:
        for position in positions:
            yield Item(f"{self.name}[{position}]", int(self.labels[position]), self.images[position])


def open_idx(kind: mnist.MnistKind, source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """The four IDX files of MNIST, or of a set in its format, or image folders train/CLASS and test/CLASS; or an archive."""
    tree = open_tree(source, SOURCE, work)
    title, classes = mnist.SETS[kind]
    if not tree.find(*mnist.spellings("train-images-idx3-ubyte")) and matching(tree, re.compile("/")):
        return _class_folders(tree, title, classes, f"give the folder with the four *-ubyte files of {title}")
    pairs = {split: mnist.find_idx(tree, kind, split, SOURCE) for split in SPLITS}
    splits: dict[Split, Items] = {s: ArrayItems(x[0], *mnist.read_split(tree, kind, x)) for s, x in pairs.items()}
    names = [name for pair in pairs.values() for name in pair]
    return PrepSource(splits, mnist.SETS[kind].classes, tree_fingerprint(tree, names))


def open_cifar(kind: cifar.CifarKind, source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """CIFAR's binary or python version, or image folders train/CLASS and test/CLASS, each in a folder or an archive."""
    cifar.check_archive(source, kind)
    tree = open_tree(source, SOURCE, work)
    batches = {split: cifar.find_batches(tree, kind, split, SOURCE) for split in SPLITS}
    if not all(batches.values()):
        title, classes = cifar.SETS[kind].title, cifar.SETS[kind].classes
        hint = f"take {cifar.SETS[kind].archive}"
        if not matching(tree, re.compile("")):
            raise not_found(tree, f"batches of {title}, nor image folders", f"{hint}, or {OWN}")
        return _class_folders(tree, title, classes, hint)
    splits: dict[Split, Items] = {s: ArrayItems(s, *cifar.read_batches(tree, kind, x)) for s, x in batches.items()}
    names = [name for batch in batches.values() for name in batch]
    return PrepSource(splits, cifar.SETS[kind].classes, tree_fingerprint(tree, names))


def _class_folders(tree: FileTree, title: str, classes: Sequence[str], hint: str) -> PrepSource:
    """A published set as image folders. Raises UserError if their number is not that of the classes."""
    source = images_of(tree)
    found = len(source.classes or ())
    if found != len(classes):
        problem = f"{SOURCE} is '{tree.source}', which has {found} class folders; {title} has {len(classes)}"
        raise UserError(problem, f"{hint}, or {OWN}")
    return source
