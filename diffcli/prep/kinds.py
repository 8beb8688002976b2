"""What prep-data can read: each kind opens a folder or an archive as a Source.

To add a kind, write a function `(source, work, options) -> Source` in the file of its family and register it in KINDS.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from diffcli.prep.arrays import open_cifar10, open_mnist
from diffcli.prep.folders import open_folder
from diffcli.prep.imagenet64 import open_imagenet64
from diffcli.prep.items import Source, SourceOptions


class Kind(NamedTuple):
    """A kind of prep-data. open: (source, a folder for temporary files, options) -> Source; where: to get it, for the hint.

    large: its images are photographs of any size, so that shards hold fewer of them.
    """

    open: Callable[[Path, Path, SourceOptions], Source]
    licence: str
    where: str
    large: bool = False


KINDS: dict[str, Kind] = {
    "mnist": Kind(
        open_mnist,
        "CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
        "give the folder with the four *-ubyte.gz files of http://yann.lecun.com/exdb/mnist/",
    ),
    "cifar10": Kind(
        open_cifar10,
        "research use, Alex Krizhevsky 2009",
        "give cifar-10-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "folder": Kind(
        open_folder, "that of the images; check it before you share them", "give a folder of images", large=True
    ),
    "imagenet64": Kind(
        open_imagenet64,
        "ImageNet terms of access: non-commercial research and education; downsampled by Chrabaszcz et al. 2017",
        "give the folder with Imagenet64_train_part1.zip and part2.zip of https://image-net.org/download-images",
    ),
}
