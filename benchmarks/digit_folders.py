"""MNIST as folders of PNG files, some digits alone.

    python benchmarks/digit_folders.py MNIST_DIR OUT --digits 56789 [--each 1000]

MNIST_DIR holds the IDX files of the training images, `.gz` or not; OUT gets a folder for each digit with its first images.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from PIL import Image


def read(folder: Path, name: str, header: int) -> np.ndarray:
    """The uint8 values of an IDX file after its header."""
    plain = folder / name
    raw = plain.read_bytes() if plain.is_file() else gzip.decompress((folder / f"{name}.gz").read_bytes())
    return np.frombuffer(raw, np.uint8, offset=header)


def main() -> None:
    """Parse the command line and write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the MNIST IDX files")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--digits", default="0123456789", help="which, as in 56789")
    parser.add_argument("--each", type=int, default=1000, help="images of a digit")
    args = parser.parse_args()
    labels = read(args.data, "train-labels-idx1-ubyte", 8)
    images = read(args.data, "train-images-idx3-ubyte", 16).reshape(-1, 28, 28)
    for digit in map(int, args.digits):
        folder = args.out / str(digit)
        folder.mkdir(parents=True)
        for i, image in enumerate(images[labels == digit][: args.each]):
            Image.fromarray(image).save(folder / f"{i:04d}.png")


if __name__ == "__main__":
    main()
