"""CIFAR-10's binary version: records of 1 label byte and 3072 pixel bytes (3x32x32), without any pickle.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html (section "Binary version").
"""

import numpy as np

from diffcli.config import ImageShape, UserError
from diffcli.data.files import ARCHIVE_ERRORS, FileTree
from diffcli.data.listing import Split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = ImageShape(3, 32, 32)
RECORD = 1 + 3 * 32 * 32
BATCHES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}


def find_batches(tree: FileTree, split: Split, key: str) -> list[str]:
    """Names of the binary batches of a split; empty where the tree is not the binary version (image folders, then).

    Raises UserError for the python version, whose pickles would run code, and for a version that is not whole.
    """
    names = BATCHES[split]
    found = {name: tree.find(name) for name in names}
    if not any(tree.find(*BATCHES[other]) for other in BATCHES):
        if tree.find("data_batch_1", "test_batch", "batches.meta"):
            raise UserError(
                f"{key} is '{tree.source}', the python version of CIFAR-10: pickles, which diffcli never loads",
                f"take cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html and set {key} to it",
            )
        return []
    missing = next((name for name, path in found.items() if path is None), None)
    if missing:
        raise UserError(f"{key} is '{tree.source}', which has no {missing}", "take a fresh cifar-10-binary.tar.gz")
    return [path for path in found.values() if path is not None]


def read_batches(tree: FileTree, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, 3, 32, 32) and int64 labels (N,) of these batches, in their order."""
    records = np.concatenate([_records(tree, name) for name in names])
    return records[:, 1:].reshape(-1, *SHAPE), records[:, 0].astype(np.int64)


def _records(tree: FileTree, name: str) -> np.ndarray:
    try:
        data = tree.read(name)
    except (OSError, *ARCHIVE_ERRORS) as error:
        raise UserError(f"{tree.shown(name)} cannot be read: {error}", "take a fresh copy of it") from error
    if not data or len(data) % RECORD:
        problem = f"{tree.shown(name)} has {len(data)} bytes, which is not a number of records of {RECORD} bytes"
        raise UserError(problem, "take a fresh cifar-10-binary.tar.gz")
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    if records[:, 0].max() >= len(CLASSES):
        problem = f"{tree.shown(name)} holds the label {records[:, 0].max()}; CIFAR-10 has 0 to 9"
        raise UserError(problem, "take a fresh cifar-10-binary.tar.gz")
    return records
