"""ImageNet (ILSVRC 2012, 1000 classes) from its official archives, read in place, or from folders of its images.

ILSVRC2012_img_train.tar is a tar of a thousand tars, one a synset; ILSVRC2012_img_val.tar holds 50,000 images whose classes
stand in the devkit: a line each in ILSVRC2012_validation_ground_truth.txt, numbers that meta.mat gives synsets for. Kaggle's
copy has them in LOC_val_solution.csv. Classes are the synset ids in sorted order, under readable names where a file
(LOC_synset_mapping.txt or meta.mat) has them. PrepSource: Russakovsky et al. 2015, arXiv 1409.0575.
"""

import io
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from posixpath import basename, splitext

import numpy as np

from diffcli.config import UserError
from diffcli.data.files import ARCHIVE_ERRORS, FileTree, open_tree, unfold
from diffcli.data.listing import SPLIT_NAMES, Split
from diffcli.prep.items import SOURCE, Items, PrepSource, SourceOptions, tree_fingerprint
from diffcli.prep.kinds import IMAGENET as WHERE
from diffcli.prep.sets.folders import FileItems, check_once, matching, not_found

DEVKIT = re.compile(r"(?:^|/)ILSVRC2012_devkit_t12\.tar\.gz$")
SPLIT_TARS: dict[Split, re.Pattern[str]] = {
    "train": re.compile(r"(?:^|/)ILSVRC2012_img_train\.tar$"),
    "test": re.compile(r"(?:^|/)ILSVRC2012_img_val\.tar$"),
}
CLASS_TAR = re.compile(r"(?:^|/)n\d{8}\.tar$")
IN_CLASS = re.compile(r"(?:^|/)(?:(train|val|valid|validation|test)/)?(n\d{8})(?:\.tar)?/[^/]+$")
VALIDATION = re.compile(r"(?:^|/)ILSVRC2012_val_(\d{8})\.\w+$")
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
SOLVED = re.compile(r"^(ILSVRC2012_val_\d{8}),(n\d{8})\b", re.MULTILINE)  # then the box, which is not read
SOLUTION, MAPPING = "LOC_val_solution.csv", "LOC_synset_mapping.txt"


def open_imagenet(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """The training and the validation images, whichever exist; unpacked files are preferred to their archive."""
    tree = unfold(open_tree(source, SOURCE, work), DEVKIT, SOURCE, work)
    for split, pattern in SPLIT_TARS.items():
        if split not in _labelled(tree):
            tree = unfold(unfold(tree, pattern, SOURCE, work), CLASS_TAR, SOURCE, work)
    labelled = _labelled(tree)
    if not labelled:
        raise not_found(tree, "images of ImageNet", WHERE)
    for synsets in labelled.values():
        check_once(tree, {name: (synset, splitext(basename(name))[0]) for name, synset in synsets.items()})
    classes = sorted(set((labelled.get("train") or labelled["test"]).values()))
    number = {synset: i for i, synset in enumerate(classes)}
    splits: dict[Split, Items] = {}
    notes, files = [], []
    for split, synsets in sorted(labelled.items(), reverse=True):
        names = [name for name, synset in synsets.items() if synset in number]
        if len(names) < len(synsets):
            notes.append(
                f"{len(synsets) - len(names)} images of {split} are left out: no training image has their class"
            )
        if names:
            splits[split] = FileItems(tree, names, [number[synsets[name]] for name in names])
            files += names
    return PrepSource(splits, _readable(classes, _words(tree)), tree_fingerprint(tree, files), tuple(notes))


def _labelled(tree: FileTree) -> dict[Split, dict[str, str]]:
    """The synset id of each image, by split. Raises UserError if no file has the classes of validation images."""
    found: dict[Split, dict[str, str]] = {}
    validation = {name: int(match[1]) for name, match in matching(tree, VALIDATION).items()}
    for name, match in matching(tree, IN_CLASS).items():
        split = "test" if name in validation else SPLIT_NAMES[match[1] or "train"]
        found.setdefault(split, {})[name] = match[2]
        validation.pop(name, None)
    if validation:
        found.setdefault("test", {}).update(_true_synsets(tree, validation))
    return found


def _true_synsets(tree: FileTree, numbers: Mapping[str, int]) -> dict[str, str]:
    """The synset id of validation images, by their numbers from 1."""
    solution, truth, meta = (tree.find(name) for name in (SOLUTION, TRUTH, META))
    if solution:
        known = dict(SOLVED.findall(_text(tree, solution)))
        synsets = {name: known.get(splitext(basename(name))[0], "") for name in numbers}
    elif truth and meta:
        of_id = {row[0]: row[1] for row in _meta(tree, meta)}
        ids = _text(tree, truth).split()
        listed = {i: of_id.get(int(text), "") for i, text in enumerate(ids, 1) if text.isdecimal()}
        synsets = {name: listed.get(number, "") for name, number in numbers.items()}
    else:
        first, beside = next(iter(numbers)), f"ILSVRC2012_devkit_t12.tar.gz (or {SOLUTION} of Kaggle)"
        problem = f"{SOURCE} is '{tree.source}', without a file that has the classes of {first} and the others"
        hint = f"give a folder that holds them and {beside}, or sort them into val/nXXXXXXXX"
        raise UserError(problem, hint)
    unknown = next((name for name, synset in synsets.items() if not re.fullmatch(r"n\d{8}", synset)), None)
    if unknown:
        said = tree.shown(solution or truth or "")
        raise UserError(f"{said} has no class for {unknown}", f"take a fresh copy of {basename(said)}")
    return synsets


def _words(tree: FileTree) -> dict[str, str]:
    """The words of each synset id, 'tench, Tinca tinca'; empty if no file has them."""
    if mapping := tree.find(MAPPING):
        return dict(line.split(" ", 1) for line in _text(tree, mapping).splitlines() if " " in line)
    if meta := tree.find(META):
        return {synset: words for _, synset, words in _meta(tree, meta)}
    return {}


def _readable(synsets: list[str], words: Mapping[str, str]) -> tuple[str, ...]:
    """The first word of each synset, with its id if another one has the same word ('crane' is a bird and a machine)."""
    first = [words.get(synset, synset).split(",")[0].strip() for synset in synsets]
    count = Counter(first)
    return tuple(
        name if count[name] == 1 else f"{name} ({synset})" for name, synset in zip(first, synsets, strict=True)
    )


def _meta(tree: FileTree, name: str) -> list[tuple[int, str, str]]:
    """(number, synset id, words) of each synset in the devkit's meta.mat."""
    from scipy.io import loadmat

    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(tree.read(name)), squeeze_me=True)["synsets"])
        return [(int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"])) for row in synsets]
    except Exception as error:  # scipy's parser raises nearly anything on garbled files
        hint = "take a fresh ILSVRC2012_devkit_t12.tar.gz"
        raise UserError(f"{tree.shown(name)} is not the meta.mat of ImageNet's devkit: {error}", hint) from error


def _text(tree: FileTree, name: str) -> str:
    try:
        return tree.read(name).decode("utf-8-sig")
    except (OSError, ValueError, *ARCHIVE_ERRORS) as error:
        raise UserError(f"{tree.shown(name)} cannot be read: {error}", "take a fresh copy of it") from error
