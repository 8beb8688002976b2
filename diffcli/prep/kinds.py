"""The kinds of data that prep-data reads, and where to get them; imports nothing heavy, so that the command line is fast.

To add a kind, write a function `(source, work, options) -> PrepSource` in the file of its family, register it in `openers` and
describe it here.
"""

from pathlib import Path
from typing import NamedTuple

from diffcli.config import UserError, did_you_mean
from diffcli.data.naming import check_there

PATTERNS = ("webdataset", "parquet")  # kinds whose SOURCE may stand for several files
CELEBA = "give img_align_celeba.zip of https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, or the folder with it"
AFHQ = "give afhq_v2.zip or afhq.zip of https://github.com/clovaai/stargan-v2, or the folder with its train and test"
FFHQ = "give the folder images1024x1024 or thumbnails128x128 of https://github.com/NVlabs/ffhq-dataset, or a zip of it"
IMAGENET = (
    "give the folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz of"
    " https://image-net.org/download-images (log in first), or one with train/nXXXXXXXX and val/nXXXXXXXX"
)
COCO = "give the folder with train2017.zip, val2017.zip and annotations_trainval2017.zip of https://cocodataset.org/#download"
ISIC = (
    "give the folder with ISIC2018_Task1-2_Training_Input and ISIC2018_Task1_Training_GroundTruth, or their zips, of "
    "https://challenge.isic-archive.com/data/#2018"
)
CVC = (
    "give the folder CVC-ClinicDB with Original and Ground Truth in it (also in PNG/ or TIF/), of "
    "https://polyp.grand-challenge.org/CVCClinicDB"
)
WEBDATASET = "give a folder with .tar shards, of which those named val or test become the split test, or one .tar"
PARQUET = "give a .parquet file, or a folder of such, with a column of encoded images, as hubs export them"
WEBVID = (
    "give results_2M_train.csv (columns videoid, contentUrl, duration, page_dir, name) of https://github.com/m-bain/webvid, "
    "whose clips are then fetched, or a folder with that table and the clips as VIDEOID.mp4 in it"
)


class Kind(NamedTuple):
    """A kind of prep-data: its licence, and where to get it, for the hint.

    large: its images are photographs of any size, so that shards hold fewer of them; clips: each comes with a video.
    takes: the options of SourceOptions, of its picked and of its download that it reads; any other is refused.
    """

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
        "CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
        "give the folder with the four *-ubyte.gz files of http://yann.lecun.com/exdb/mnist/",
    ),
    "fashion-mnist": Kind(
        "MIT, Zalando SE; Xiao, Rasul and Vollgraf 2017",
        "give the folder with the four *-ubyte.gz files of https://github.com/zalandoresearch/fashion-mnist",
    ),
    "kmnist": Kind(
        "CC BY-SA 4.0, 'KMNIST Dataset' (created by CODH), adapted from 'Kuzushiji Dataset' (created by NIJL and others)",
        "give the folder with the four *-ubyte.gz files of https://github.com/rois-codh/kmnist (Kuzushiji-MNIST)",
    ),
    "cifar10": Kind(
        "research use, Alex Krizhevsky 2009",
        "give cifar-10-binary.tar.gz or cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar100": Kind(
        "research use, Alex Krizhevsky 2009",
        "give cifar-100-binary.tar.gz or cifar-100-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "folder": Kind(
        "that of the images; check it before you share them",
        "give a folder of images, with captions in a.txt or a.json beside a.png, or in a table that --table names",
        large=True,
        takes=("table", "image_col", "caption_col", "classes", "range"),
    ),
    "imagenet": Kind("ImageNet terms of access: non-commercial research and education", IMAGENET, large=True),
    "coco": Kind(
        "the captions are CC BY 4.0, COCO Consortium; each image is under the licence of its photographer on Flickr",
        f"{COCO}; or captions_train2017.json alone, to download its images",
        large=True,
        takes=DOWNLOADS,
    ),
    "lidc": Kind(
        "CC BY 3.0, LIDC-IDRI of The Cancer Imaging Archive; Armato et al. 2015, doi 10.7937/K9/TCIA.2015.LO9QL9SX",
        "give the folder LIDC-IDRI of https://www.cancerimagingarchive.net/collection/lidc-idri, with its XML files",
    ),
    "isic": Kind(
        "CC BY-NC 4.0, International Skin Imaging Collaboration; Codella et al. 2019, arXiv 1902.03368",
        ISIC,
        large=True,
    ),
    "cvc-clinic": Kind(
        "research and education, CVC Barcelona; Bernal et al. 2015, doi 10.1016/j.compmedimag.2015.02.007",
        CVC,
    ),
    "pairs": Kind(
        "that of the images; check it before you share them",
        "give a folder with images/ and masks/ (or sketches/) in it, CVC-ClinicDB, or the zips of an ISIC challenge",
        large=True,
        takes=("field", "range"),
    ),
    "imagenet64": Kind(
        "ImageNet terms of access: non-commercial research and education; downsampled by Chrabaszcz et al. 2017",
        "give the folder with Imagenet64_train_part1.zip and part2.zip of https://image-net.org/download-images",
    ),
    "celeba": Kind("non-commercial research only, MMLAB of CUHK; Liu et al. 2015", CELEBA),
    "afhq": Kind("CC BY-NC 4.0, NAVER Corp.; Choi et al. 2020", AFHQ, large=True),
    "ffhq": Kind(
        "CC BY-NC-SA 4.0, NVIDIA Corp., and each image under the licence of its photographer; Karras et al. 2019",
        FFHQ,
        large=True,
    ),
    "cc3m": Kind(
        f"the captions and URLs are Google's, free for any use; {OWNERS}; Sharma et al. 2018",
        "download Train_GCC-training.tsv (caption, tab, URL) from https://ai.google.com/research/ConceptualCaptions/download, "
        "then type: diffcli prep-data cc3m Train_GCC-training.tsv --out DIR",
        takes=("url_col", "caption_col", *DOWNLOADS),
    ),
    "cc12m": Kind(
        f"the captions and URLs are Google's, free for any use; {OWNERS}; Changpinyo et al. 2021",
        "download cc12m.tsv (URL, tab, caption) from https://github.com/google-research-datasets/conceptual-12m, "
        "then type: diffcli prep-data cc12m cc12m.tsv --out DIR",
        takes=("url_col", "caption_col", *DOWNLOADS),
    ),
    "urls": Kind(
        f"that of the images; {OWNERS}",
        "give a .tsv, .csv, .jsonl (each also .gz) or .parquet with a URL and a caption a row, "
        "and --url-col and --caption-col where the columns have unusual names",
        takes=("url_col", "caption_col", *DOWNLOADS),
    ),
    "latents": Kind(
        "that of the images; check it before you share them",
        "give a prepared set of images, and what encodes them: prep-data latents SET --first-stage RUN --out DIR",
        takes=("latents",),
    ),
    "webdataset": Kind(
        "that of the images; check it before you share them",
        WEBDATASET,
        large=True,
        takes=("range",),
    ),
    "parquet": Kind(
        "that of the images; check it before you share them",
        PARQUET,
        large=True,
        takes=("image_col", "caption_col", "range"),
    ),
    "webvid": Kind(
        "the clips belong to their owners, the list to the University of Oxford; Bain et al. 2021",
        WEBVID,
        clips=True,
        takes=("table", "image_col", "caption_col", "url_col", *MANNERS),
    ),
}


def require_source(kind: str, source: Path | None) -> Path:
    """The source. Raises UserError if none was given, with what to get, if it is not there, and for an unknown kind."""
    if kind not in KINDS:
        raise UserError(f"prep-data KIND is '{kind}'", did_you_mean(kind, [*KINDS, "shards"]))
    if source is None:
        raise UserError(f"prep-data {kind} needs a SOURCE", KINDS[kind].where)
    if kind not in PATTERNS:
        check_there(source, "SOURCE")
    return source
