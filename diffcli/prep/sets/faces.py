"""CelebA, AFHQ and FFHQ from their official archives or the folders in them; unpacked files are preferred to their archive.

CelebA: images numbered from 000001, without classes. Training is the official partition 0 (the first 162,770); validation and
test are one split, `test`. PrepSource: Liu et al. 2015, arXiv 1411.7766; list_eval_partition.txt.
AFHQ, version 1 or 2: train and val or test, classes cat, dog and wild. PrepSource: Choi et al. 2020, arXiv 1912.01865.
FFHQ: images numbered from 00000, without classes; the last 10,000 of 70,000 are `test`. PrepSource: Karras et al. 2019,
arXiv 1812.04948, https://github.com/NVlabs/ffhq-dataset.
"""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from diffcli.config import UserError
from diffcli.data.files import ARCHIVE_ERRORS, FileTree, open_tree, unfold
from diffcli.data.listing import SPLIT_NAMES, Split
from diffcli.data.official import check_published
from diffcli.prep.items import SOURCE, Items, PrepSource, SourceOptions, tree_fingerprint
from diffcli.prep.kinds import AFHQ, CELEBA, FFHQ
from diffcli.prep.sets.folders import FileItems, check_once, matching, not_found

CELEBA_ZIP = re.compile(r"(?:^|/)img_align_celeba\w*\.zip$")
AFHQ_ZIP = re.compile(r"(?:^|/)afhq\w*\.zip$")
FFHQ_ZIP = re.compile(r"(?:^|/)(?:ffhq|images1024x1024|thumbnails128x128)[^/]*\.zip$")
CELEBA_IMAGE = re.compile(r"(?:^|/)(\d{6})\.\w+$")
AFHQ_IMAGE = re.compile(r"(?:^|/)(train|val|test)/(cat|dog|wild)/([^/]+)\.\w+$")
FFHQ_IMAGE = re.compile(r"(?:^|/)(?:img\d{3})?(\d{5})\.\w+$")  # img00000000.png: as NVIDIA's dataset_tool writes zips
ANIMALS = ("cat", "dog", "wild")
PARTITION = re.compile(r"^(\d{6})\.\w+[ ,\t]+([012])\s*$", re.MULTILINE)
CELEBA_TRAIN = 162_770  # images 000001 to 162770 are partition 0
FFHQ_TRAIN = 60_000


def open_celeba(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """The aligned and cropped images, split as list_eval_partition says or, without it, by their official numbers."""
    if source.is_file():
        check_published(source.name, source.stat().st_size, source, "CelebA", str(source))
    tree, found = _images(source, work, CELEBA_ZIP, CELEBA_IMAGE, "images numbered 000001.jpg to 202599.jpg", CELEBA)
    partition = _partition(tree)
    return _split(tree, found, lambda name: "train" if partition(int(found[name][1])) else "test")


def open_afhq(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """The animal faces, with their three classes."""
    tree, found = _images(source, work, AFHQ_ZIP, AFHQ_IMAGE, "folders train/cat, train/dog and train/wild", AFHQ)
    labels = {name: ANIMALS.index(match[2]) for name, match in found.items()}
    return _split(tree, found, lambda name: SPLIT_NAMES[found[name][1]], labels)


def open_ffhq(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """The aligned images of any size: 1024, thumbnails of 128, or a copy that somebody resized."""
    tree, found = _images(source, work, FFHQ_ZIP, FFHQ_IMAGE, "images numbered 00000.png to 69999.png", FFHQ)
    return _split(tree, found, lambda name: "train" if int(found[name][1]) < FFHQ_TRAIN else "test")


def _images(
    source: Path, work: Path, archive: re.Pattern[str], image: re.Pattern[str], what: str, where: str
) -> tuple[FileTree, dict[str, re.Match[str]]]:
    """The tree and its images with matching names, from its archives only if none is unpacked."""
    tree = open_tree(source, SOURCE, work)
    found = matching(tree, image)
    if not found:
        tree = unfold(tree, archive, SOURCE, work)
        found = matching(tree, image)
    if not found:
        raise not_found(tree, what, where)
    check_once(tree, {name: match.groups() for name, match in found.items()})
    return tree, found


def _split(
    tree: FileTree,
    found: dict[str, re.Match[str]],
    split_of: Callable[[str], Split],
    labels: dict[str, int] | None = None,
) -> PrepSource:
    names: dict[Split, list[str]] = {"train": [], "test": []}
    for name in found:
        names[split_of(name)].append(name)
    splits: dict[Split, Items] = {
        split: FileItems(tree, chosen, [labels[name] for name in chosen] if labels else None)
        for split, chosen in names.items()
        if chosen
    }
    return PrepSource(splits, ANIMALS if labels else None, tree_fingerprint(tree, found))


def _partition(tree: FileTree) -> Callable[[int], bool]:
    """Whether an image of CelebA, by its number, is one for training."""
    name = tree.find("list_eval_partition.txt", "list_eval_partition.csv")
    if name is None:
        return lambda number: number <= CELEBA_TRAIN
    try:
        known = {int(match[1]): match[2] == "0" for match in PARTITION.finditer(tree.read(name).decode())}
    except (OSError, ValueError, *ARCHIVE_ERRORS) as error:
        raise UserError(f"{tree.shown(name)} cannot be read: {error}", "take a fresh copy of it") from error
    if not known:
        problem = f"{tree.shown(name)} has no line as '000001.jpg 0'"
        raise UserError(
            problem, f"take a fresh {PurePosixPath(name).name}, or delete it: the official numbers then split"
        )
    return lambda number: known.get(number, False)
