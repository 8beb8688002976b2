"""Where MNIST's four IDX files lie: any folder or archive with the official names, gzipped or not."""

import numpy as np

from diffcli.config import UserError
from diffcli.data.files import ARCHIVE_ERRORS, FileTree
from diffcli.data.idx import read_pair
from diffcli.data.listing import Split

PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}


def find_idx(tree: FileTree, split: Split, key: str) -> tuple[str, str]:
    """Names of the image and the label file of a split. Raises UserError that names the missing file."""
    found = []
    for stem in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        name = f"{PREFIX[split]}-{stem}"
        spellings = (name, name.replace("-idx", ".idx"))  # unpacked by some tools with a dot
        path = tree.find(*spellings, *(f"{spelling}.gz" for spelling in spellings))
        if path is None:
            problem = f"{key} is '{tree.source}', which has no file {name}.gz (or {name})"
            raise UserError(problem, f"set {key} to the folder with the four *-ubyte files of MNIST")
        found.append(path)
    return found[0], found[1]


def read_split(tree: FileTree, split: Split, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, 1, 28, 28) and int64 labels (N,)."""
    try:
        images, labels = (tree.read(name) for name in names)
    except (OSError, *ARCHIVE_ERRORS) as error:
        raise UserError(f"{tree.shown(names[0])} cannot be read: {error}", "take a fresh copy of it") from error
    return read_pair(images, labels, (tree.shown(names[0]), tree.shown(names[1])))
