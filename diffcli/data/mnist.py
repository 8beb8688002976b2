"""MNIST and the two sets in its format: four IDX files with the official names, gzipped or not, in any folder or archive.

Fashion-MNIST: Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747. Kuzushiji-MNIST: Clanuwat et al. 2018, arXiv 1812.01718.
"""

from typing import Literal, NamedTuple

import numpy as np

from diffcli.config import UserError
from diffcli.data.files import ARCHIVE_ERRORS, FileTree
from diffcli.data.idx import read_pair
from diffcli.data.listing import Split
from diffcli.data.naming import given_as
from diffcli.data.official import check_published

MnistKind = Literal["mnist", "fashion_mnist", "kmnist"]
PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DIGITS = tuple(str(digit) for digit in range(10))


class MnistSet(NamedTuple):
    """A set in MNIST's format: its name, and those of its classes."""

    title: str
    classes: tuple[str, ...]


SETS: dict[MnistKind, MnistSet] = {
    "mnist": MnistSet("MNIST", DIGITS),
    "fashion_mnist": MnistSet("Fashion-MNIST", FASHION),
    "kmnist": MnistSet("KMNIST", ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
}


def find_idx(tree: FileTree, kind: MnistKind, split: Split, key: str) -> tuple[str, str]:
    """Names of the image and the label file of a split. Raises UserError that names the missing file."""
    found = []
    for stem in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        name = f"{PREFIX[split]}-{stem}"
        path = tree.find(*spellings(name))
        if path is None:
            problem = f"{key} is '{tree.source}', which has no file {name}.gz (or {name}); it holds {tree.holds}"
            raise UserError(problem, given_as(key, f"the folder with the four *-ubyte files of {SETS[kind].title}"))
        found.append(path)
    return found[0], found[1]


def spellings(name: str) -> list[str]:
    """The names that a file may have: some tools unpack it with a dot."""
    plain = [name, name.replace("-idx", ".idx")]
    return plain + [f"{spelling}.gz" for spelling in plain]


def read_split(tree: FileTree, kind: MnistKind, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, 1, 28, 28) and int64 labels (N,). Raises UserError where the files are broken or of another set."""
    try:
        for name in names:
            check_published(name, tree.size(name), tree.locations[name], SETS[kind].title, tree.shown(name))
        images, labels = (tree.read(name) for name in names)
    except (OSError, *ARCHIVE_ERRORS) as error:
        raise UserError(f"{tree.shown(names[0])} cannot be read: {error}", "take a fresh copy of it") from error
    return read_pair(images, labels, (tree.shown(names[0]), tree.shown(names[1])))
