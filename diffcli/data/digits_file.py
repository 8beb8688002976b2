"""The digits that ship with diffcli: the test images of MNIST, of which every tenth is held out."""

from functools import lru_cache
from importlib.resources import files as package_files

import numpy as np

from diffcli.data.idx import read_pair
from diffcli.data.listing import Split
from diffcli.data.pixels import ImageShape, fit_all

HELD_OUT_EVERY = 10
SIDE = 28


@lru_cache(maxsize=4)
def read_digits(split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 (N, 1, 28, 28), labels int64 (N,), and the number of each among all digits, int64 (N,).

    All who read them in this process share them: not to be changed.
    """
    folder = package_files("diffcli.data") / "digits"
    names = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
    images, labels = read_pair((folder / names[0]).read_bytes(), (folder / names[1]).read_bytes(), names)
    numbers = np.arange(len(images))
    held_out = numbers % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    chosen = held_out if split == "test" else ~held_out
    return images[chosen], labels[chosen], numbers[chosen]


def fitted_digits(split: Split, shape: ImageShape) -> np.ndarray:
    """The images as uint8 (N, C, H, W) of this shape, not to be changed."""
    small = shape.channels * shape.height * shape.width <= SIDE * SIDE  # larger ones would fill the memory for good
    return _kept(split, shape) if small else fit_all(read_digits(split)[0], shape)


@lru_cache(maxsize=4)
def _kept(split: Split, shape: ImageShape) -> np.ndarray:
    return fit_all(read_digits(split)[0], shape)
