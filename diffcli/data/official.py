"""Published digests: a damaged download is refused before it is read.

A file is compared with a digest only if it has the published name and the published size in bytes. The right size with other
contents is a damaged copy; a file of another size is another data set (or a cut download, which its reader finds).
Sources: the pages of the publishers, and url_checksums of tensorflow/datasets for the sizes.
"""

import hashlib
from typing import NamedTuple

from diffcli.config import UserError
from diffcli.data.files import Location, open_location

CHUNK = 1 << 20  # bytes


class Published(NamedTuple):
    """A file as it was published: in which set, its MD5."""

    set: str
    md5: str


PUBLISHED: dict[tuple[str, int], Published] = {
    ("train-images-idx3-ubyte.gz", 9912422): Published("MNIST", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    ("train-labels-idx1-ubyte.gz", 28881): Published("MNIST", "d53e105ee54ea40749a09fcbcd1e9432"),
    ("t10k-images-idx3-ubyte.gz", 1648877): Published("MNIST", "9fb629c4189551a2d022fa330f9573f3"),
    ("t10k-labels-idx1-ubyte.gz", 4542): Published("MNIST", "ec29112dd5afa0611ce80d1b7f02629c"),
    ("train-images-idx3-ubyte.gz", 26421880): Published("Fashion-MNIST", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    ("train-labels-idx1-ubyte.gz", 29515): Published("Fashion-MNIST", "25c81989df183df01b3e8a0aad5dffbe"),
    ("t10k-images-idx3-ubyte.gz", 4422102): Published("Fashion-MNIST", "bef4ecab320f06d8554ea6380940ec79"),
    ("t10k-labels-idx1-ubyte.gz", 5148): Published("Fashion-MNIST", "bb300cfdad3c16e7a12a480ee83cd310"),
    ("train-images-idx3-ubyte.gz", 18165135): Published("KMNIST", "bdb82020997e1d708af4cf47b453dcf7"),
    ("train-labels-idx1-ubyte.gz", 29497): Published("KMNIST", "e144d726b3acfaa3e44228e80efcd344"),
    ("t10k-images-idx3-ubyte.gz", 3041136): Published("KMNIST", "5c965bf0a639b31b8f53240b1b52f4d7"),
    ("t10k-labels-idx1-ubyte.gz", 5120): Published("KMNIST", "7320c461ea6c1c855c0b718fb2a4b134"),
    ("cifar-10-binary.tar.gz", 170052171): Published("CIFAR-10", "c32a1d4ab5d03f1284b67883e8d87530"),
    ("cifar-10-python.tar.gz", 170498071): Published("CIFAR-10", "c58f30108f718f92721af3b95e74349a"),
    ("cifar-100-binary.tar.gz", 168513733): Published("CIFAR-100", "03b5dce01913d631647c71ecec9e9cb8"),
    ("cifar-100-python.tar.gz", 169001437): Published("CIFAR-100", "eb9058c3a382ffc7106e4002c42a8d85"),
    ("img_align_celeba.zip", 1443490838): Published("CelebA", "00d2c5bc6d35e252742224ab0c1e8fcb"),
}


def check_published(name: str, size: int, location: Location, expected: str, shown: str) -> None:
    """Refuses a file with the name and size (bytes) of a published one and another digest, or one of another set.

    expected: the set that is being read; shown: the file as the user knows it. Raises UserError, OSError.
    """
    published = PUBLISHED.get((name.rsplit("/", 1)[-1], size))
    if published is None:
        return
    with open_location(location) as file:
        digest = hashlib.md5(usedforsecurity=False)
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    found = digest.hexdigest()
    if found != published.md5:
        problem = f"{shown} is damaged: its MD5 is {found}, but {published.set} was published with {published.md5}"
        raise UserError(problem, f"download {name.rsplit('/', 1)[-1]} again")
    if published.set != expected:
        kind = published.set.lower().replace("cifar-", "cifar")  # as prep-data calls it
        raise UserError(f"{shown} is a file of {published.set}, not of {expected}", f"use the kind {kind}")
