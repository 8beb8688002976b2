"""The digits that ship with diffcli: the test images of MNIST, of which every tenth is held out."""

from importlib.resources import files as package_files

import numpy as np

from diffcli.data.idx import read_pair
from diffcli.data.listing import Split

HELD_OUT_EVERY = 10


def read_digits(split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 (N, 1, 28, 28), labels int64 (N,), and the number of each among all digits, int64 (N,)."""
    folder = package_files("diffcli.data") / "digits"
    names = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
    images, labels = read_pair((folder / names[0]).read_bytes(), (folder / names[1]).read_bytes(), names)
    numbers = np.arange(len(images))
    held_out = numbers % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    chosen = held_out if split == "test" else ~held_out
    return images[chosen], labels[chosen], numbers[chosen]
