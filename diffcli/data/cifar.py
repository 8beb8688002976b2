"""CIFAR-10 and CIFAR-100 in both of their versions, neither of which is ever unpickled: `pickled.py` reads the second as data.

Binary: records of 1 label byte (CIFAR-100: a coarse and a fine one) and 3072 pixel bytes (3x32x32). Python: dicts with `data`
uint8 (N, 3072) and `labels` (CIFAR-100: `fine_labels`). CIFAR-100 is read with its 100 fine classes.
Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html (sections "Binary version", "Python version").
"""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from diffcli.config import ImageShape, UserError
from diffcli.data.files import ARCHIVE_ERRORS, FileTree
from diffcli.data.listing import Split
from diffcli.data.official import check_published
from diffcli.data.pickled import PickleError, read_pickle

CifarKind = Literal["cifar10", "cifar100"]
SHAPE = ImageShape(3, 32, 32)
PIXELS = 3 * 32 * 32  # bytes of one image
FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""


class CifarSet(NamedTuple):
    """One of the two sets. archive: its published name; files: of each split, for each version that it comes in.

    label_bytes: of a binary record, the last of them the label; label_key: where a pickled batch holds its labels.
    """

    title: str
    archive: str
    classes: tuple[str, ...]
    files: dict[str, dict[Split, tuple[str, ...]]]
    label_bytes: int
    label_key: str


BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
SETS: dict[CifarKind, CifarSet] = {
    "cifar10": CifarSet(
        "CIFAR-10",
        "cifar-10-binary.tar.gz",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        {
            "binary": {"train": tuple(f"{name}.bin" for name in BATCHES), "test": ("test_batch.bin",)},
            "python": {"train": BATCHES, "test": ("test_batch",)},
        },
        label_bytes=1,
        label_key="labels",
    ),
    "cifar100": CifarSet(
        "CIFAR-100",
        "cifar-100-binary.tar.gz",
        tuple(FINE.split()),
        {
            "binary": {"train": ("train.bin",), "test": ("test.bin",)},
            "python": {"train": ("train",), "test": ("test",)},
        },
        label_bytes=2,
        label_key="fine_labels",
    ),
}


def check_archive(source: Path, kind: CifarKind) -> None:
    """Refuses a published archive that is damaged, or of the other set."""
    if source.is_file():
        check_published(source.name, source.stat().st_size, source, SETS[kind].title, str(source))


def find_batches(tree: FileTree, kind: CifarKind, split: Split, key: str) -> list[str]:
    """Names of the batches of a split, binary ones where there are both; empty where there are none (image folders, then).

    Raises UserError for a version that is not whole, and for the other set.
    """
    for files in SETS[kind].files.values():
        if tree.find(*(name for names in files.values() for name in names)):
            found = {name: tree.find(name) for name in files[split]}
            missing = next((name for name, path in found.items() if path is None), None)
            if missing:
                raise UserError(f"{key} is '{tree.source}', which has no {missing}", _fresh(kind))
            return [path for path in found.values() if path is not None]
    for other, cifar in SETS.items():
        for files in cifar.files.values():
            if path := tree.find(*(name for names in files.values() for name in names)):
                problem = f"{key} is '{tree.source}', which holds {path}: {cifar.title}, not {SETS[kind].title}"
                raise UserError(problem, f"use the kind {other}, or take {SETS[kind].archive}")
    return []


def read_batches(tree: FileTree, kind: CifarKind, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, 3, 32, 32) and int64 labels (N,) of these batches, in their order."""
    batches = [_batch(tree, kind, name) for name in names]
    return np.concatenate([pixels.reshape(-1, *SHAPE) for pixels, _ in batches]), np.concatenate(
        [x for _, x in batches]
    )


def _batch(tree: FileTree, kind: CifarKind, name: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 pixels (N, 3072) and int64 labels (N,) of one batch."""
    try:
        data = tree.read(name)
        pixels, labels = _records(data, kind) if name.endswith(".bin") else _pickled(data, kind)
    except (OSError, *ARCHIVE_ERRORS) as error:
        raise UserError(f"{tree.shown(name)} cannot be read: {error}", "take a fresh copy of it") from error
    except ValueError as error:
        raise UserError(f"{tree.shown(name)} is not a batch of {SETS[kind].title}: {error}", _fresh(kind)) from error
    highest = len(SETS[kind].classes) - 1
    if labels.min() < 0 or labels.max() > highest:
        worst = labels.min() if labels.min() < 0 else labels.max()
        problem = f"{tree.shown(name)} holds the label {worst}; {SETS[kind].title} has 0 to {highest}"
        raise UserError(problem, _fresh(kind))
    return pixels, labels


def _records(data: bytes, kind: CifarKind) -> tuple[np.ndarray, np.ndarray]:
    head = SETS[kind].label_bytes
    if not data or len(data) % (head + PIXELS):
        raise ValueError(f"it has {len(data)} bytes, which is not a number of records of {head + PIXELS} bytes")
    records = np.frombuffer(data, np.uint8).reshape(-1, head + PIXELS)
    return records[:, head:], records[:, head - 1].astype(np.int64)


def _pickled(data: bytes, kind: CifarKind) -> tuple[np.ndarray, np.ndarray]:
    batch, key = read_pickle(data), SETS[kind].label_key
    if not isinstance(batch, dict) or not {"data", key} <= batch.keys():
        raise PickleError(f"it is no dict with 'data' and '{key}'")
    pixels, labels = batch["data"], batch[key]
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS or not len(pixels):
        raise PickleError(f"its data is no array of N x {PIXELS} bytes")
    whole = isinstance(labels, list) and all(isinstance(x, int) and abs(x) < 256 for x in labels)
    if not whole or len(labels) != len(pixels):
        raise PickleError(f"its {key} are not {len(pixels)} small numbers, one for each image")
    return pixels, np.asarray(labels, np.int64)


def _fresh(kind: CifarKind) -> str:
    return f"take a fresh {SETS[kind].archive} from https://www.cs.toronto.edu/~kriz/cifar.html"
