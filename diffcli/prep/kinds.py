"""What prep-data can read: each kind opens a folder or an archive as a PrepSource.

To add a kind, write a function `(source, work, options) -> PrepSource` in the file of its family and register it in KINDS.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from diffcli.prep.download.url_sources import open_coco, open_urls
from diffcli.prep.items import PrepSource, SourceOptions
from diffcli.prep.sets.arrays import open_cifar, open_idx
from diffcli.prep.sets.captioned import open_folder
from diffcli.prep.sets.coco import WHERE as COCO
from diffcli.prep.sets.faces import AFHQ, CELEBA, FFHQ, open_afhq, open_celeba, open_ffhq
from diffcli.prep.sets.hub_parquet import WHERE as PARQUET
from diffcli.prep.sets.hub_parquet import open_parquet
from diffcli.prep.sets.imagenet import WHERE as IMAGENET
from diffcli.prep.sets.imagenet import open_imagenet
from diffcli.prep.sets.imagenet64 import open_imagenet64
from diffcli.prep.sets.latents import open_latents
from diffcli.prep.sets.lidc import open_lidc
from diffcli.prep.sets.medical import CVC, ISIC, open_cvc_clinic, open_isic
from diffcli.prep.sets.pairs import open_pairs
from diffcli.prep.sets.webdataset_index import WHERE as WEBDATASET
from diffcli.prep.sets.webdataset_index import open_webdataset
from diffcli.prep.sets.webvid import WHERE as WEBVID
from diffcli.prep.sets.webvid import open_webvid


class Kind(NamedTuple):
    """A kind of prep-data. open: (source, a folder for temporary files, options) -> PrepSource; where: to get it, for the hint.

    large: its images are photographs of any size, so that shards hold fewer of them; clips: each comes with a video.
    takes: the options of SourceOptions, of its picked and of its download that it reads; any other is refused.
    """

    open: Callable[[Path, Path, SourceOptions], PrepSource]
    licence: str
    where: str
    large: bool = False
    clips: bool = False
    takes: tuple[str, ...] = ()


MANNERS = ("obey_opt_out", "timeout", "retries")
DOWNLOADS = (*MANNERS, "min_size", "encode", "quality", "distributor", "threads")
OWNERS = "the images belong to those who published them"

KINDS: dict[str, Kind] = {
    "mnist": Kind(
        partial(open_idx, "mnist"),
        "CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
        "give the folder with the four *-ubyte.gz files of http://yann.lecun.com/exdb/mnist/",
    ),
    "fashion-mnist": Kind(
        partial(open_idx, "fashion_mnist"),
        "MIT, Zalando SE; Xiao, Rasul and Vollgraf 2017",
        "give the folder with the four *-ubyte.gz files of https://github.com/zalandoresearch/fashion-mnist",
    ),
    "kmnist": Kind(
        partial(open_idx, "kmnist"),
        "CC BY-SA 4.0, 'KMNIST Dataset' (created by CODH), adapted from 'Kuzushiji Dataset' (created by NIJL and others)",
        "give the folder with the four *-ubyte.gz files of https://github.com/rois-codh/kmnist (Kuzushiji-MNIST)",
    ),
    "cifar10": Kind(
        partial(open_cifar, "cifar10"),
        "research use, Alex Krizhevsky 2009",
        "give cifar-10-binary.tar.gz or cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar100": Kind(
        partial(open_cifar, "cifar100"),
        "research use, Alex Krizhevsky 2009",
        "give cifar-100-binary.tar.gz or cifar-100-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "folder": Kind(
        open_folder,
        "that of the images; check it before you share them",
        "give a folder of images, with captions in a.txt or a.json beside a.png, or in a table that --table names",
        large=True,
        takes=("table", "image_col", "caption_col", "classes", "range"),
    ),
    "imagenet": Kind(
        open_imagenet, "ImageNet terms of access: non-commercial research and education", IMAGENET, large=True
    ),
    "coco": Kind(
        open_coco,
        "the captions are CC BY 4.0, COCO Consortium; each image is under the licence of its photographer on Flickr",
        f"{COCO}; or captions_train2017.json alone, to download its images",
        large=True,
        takes=DOWNLOADS,
    ),
    "lidc": Kind(
        open_lidc,
        "CC BY 3.0, LIDC-IDRI of The Cancer Imaging Archive; Armato et al. 2015, doi 10.7937/K9/TCIA.2015.LO9QL9SX",
        "give the folder LIDC-IDRI of https://www.cancerimagingarchive.net/collection/lidc-idri, with its XML files",
    ),
    "isic": Kind(
        open_isic,
        "CC BY-NC 4.0, International Skin Imaging Collaboration; Codella et al. 2019, arXiv 1902.03368",
        ISIC,
        large=True,
    ),
    "cvc-clinic": Kind(
        open_cvc_clinic,
        "research and education, CVC Barcelona; Bernal et al. 2015, doi 10.1016/j.compmedimag.2015.02.007",
        CVC,
    ),
    "pairs": Kind(
        open_pairs,
        "that of the images; check it before you share them",
        "give a folder with images/ and masks/ (or sketches/) in it, CVC-ClinicDB, or the zips of an ISIC challenge",
        large=True,
        takes=("field", "range"),
    ),
    "imagenet64": Kind(
        open_imagenet64,
        "ImageNet terms of access: non-commercial research and education; downsampled by Chrabaszcz et al. 2017",
        "give the folder with Imagenet64_train_part1.zip and part2.zip of https://image-net.org/download-images",
    ),
    "celeba": Kind(open_celeba, "non-commercial research only, MMLAB of CUHK; Liu et al. 2015", CELEBA),
    "afhq": Kind(open_afhq, "CC BY-NC 4.0, NAVER Corp.; Choi et al. 2020", AFHQ, large=True),
    "ffhq": Kind(
        open_ffhq,
        "CC BY-NC-SA 4.0, NVIDIA Corp., and each image under the licence of its photographer; Karras et al. 2019",
        FFHQ,
        large=True,
    ),
    "cc3m": Kind(
        open_urls,
        f"the captions and URLs are Google's, free for any use; {OWNERS}; Sharma et al. 2018",
        "download Train_GCC-training.tsv (caption, tab, URL) from https://ai.google.com/research/ConceptualCaptions/download, "
        "then type: diffcli prep-data cc3m Train_GCC-training.tsv --out DIR",
        takes=("url_col", "caption_col", *DOWNLOADS),
    ),
    "cc12m": Kind(
        open_urls,
        f"the captions and URLs are Google's, free for any use; {OWNERS}; Changpinyo et al. 2021",
        "download cc12m.tsv (URL, tab, caption) from https://github.com/google-research-datasets/conceptual-12m, "
        "then type: diffcli prep-data cc12m cc12m.tsv --out DIR",
        takes=("url_col", "caption_col", *DOWNLOADS),
    ),
    "urls": Kind(
        open_urls,
        f"that of the images; {OWNERS}",
        "give a .tsv, .csv, .jsonl (each also .gz) or .parquet with a URL and a caption a row, "
        "and --url-col and --caption-col where the columns have unusual names",
        takes=("url_col", "caption_col", *DOWNLOADS),
    ),
    "latents": Kind(
        open_latents,
        "that of the images; check it before you share them",
        "give a prepared set of images, and what encodes them: prep-data latents SET --first-stage RUN --out DIR",
        takes=("latents",),
    ),
    "webdataset": Kind(
        open_webdataset,
        "that of the images; check it before you share them",
        WEBDATASET,
        large=True,
        takes=("range",),
    ),
    "parquet": Kind(
        open_parquet,
        "that of the images; check it before you share them",
        PARQUET,
        large=True,
        takes=("image_col", "caption_col", "range"),
    ),
    "webvid": Kind(
        open_webvid,
        "the clips belong to their owners, the list to the University of Oxford; Bain et al. 2021",
        WEBVID,
        clips=True,
        takes=("table", "image_col", "caption_col", "url_col", *MANNERS),
    ),
}
