"""The function that opens each kind of prep-data: a folder or an archive becomes a PrepSource."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from diffcli.prep.download.url_sources import open_coco, open_urls
from diffcli.prep.items import PrepSource, SourceOptions
from diffcli.prep.sets.arrays import open_cifar, open_idx
from diffcli.prep.sets.captioned import open_folder
from diffcli.prep.sets.faces import open_afhq, open_celeba, open_ffhq
from diffcli.prep.sets.hub_parquet import open_parquet
from diffcli.prep.sets.imagenet import open_imagenet
from diffcli.prep.sets.imagenet64 import open_imagenet64
from diffcli.prep.sets.latents import open_latents
from diffcli.prep.sets.lidc import open_lidc
from diffcli.prep.sets.medical import open_cvc_clinic, open_isic
from diffcli.prep.sets.pairs import open_pairs
from diffcli.prep.sets.webdataset_index import open_webdataset
from diffcli.prep.sets.webvid import open_webvid

Opener = Callable[[Path, Path, SourceOptions], PrepSource]
"""(source, a folder for temporary files, options) -> PrepSource."""

OPENERS: dict[str, Opener] = {
    "mnist": partial(open_idx, "mnist"),
    "fashion-mnist": partial(open_idx, "fashion_mnist"),
    "kmnist": partial(open_idx, "kmnist"),
    "cifar10": partial(open_cifar, "cifar10"),
    "cifar100": partial(open_cifar, "cifar100"),
    "folder": open_folder,
    "imagenet": open_imagenet,
    "coco": open_coco,
    "lidc": open_lidc,
    "isic": open_isic,
    "cvc-clinic": open_cvc_clinic,
    "pairs": open_pairs,
    "imagenet64": open_imagenet64,
    "celeba": open_celeba,
    "afhq": open_afhq,
    "ffhq": open_ffhq,
    "cc3m": open_urls,
    "cc12m": open_urls,
    "urls": open_urls,
    "latents": open_latents,
    "webdataset": open_webdataset,
    "parquet": open_parquet,
    "webvid": open_webvid,
}
