"""Splits and classes of image folders: `split/class/image`, `class/split/image`, `class/image`, or images alone.

Only the names of a FileTree are used, so a folder and an archive of that folder give the same set in the same order.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from diffcli.config import UserError, quoted
from diffcli.data.files import FileTree
from diffcli.data.image_formats import SHOWN_SUFFIXES, VIDEOS, images_among
from diffcli.data.labels_file import labelled_names
from diffcli.data.naming import Split as Split
from diffcli.data.naming import alike, given_as

ClassesFrom = Literal["folders", "prefix"]
SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "holdout"), "test"),
}
SPLIT_FOLDER = re.compile(rf"({'|'.join(SPLIT_NAMES)})[ _-]?(sets?|data|images?|imgs?|split|\d{{4}})?")
LAST_WORD = re.compile(r"[ _.-]+[^ _.-]*$|\d+$")  # the part of a name that distinguishes images of one class
FEW = 3  # names that a message lists


class Listing(NamedTuple):
    """Image files of one split, sorted, with their classes; labels and classes are None without classes."""

    names: list[str]
    labels: list[int] | None
    classes: tuple[str, ...] | None


class Listings(NamedTuple):
    """The splits of a tree of images, and notes for the user.

    left_out: numbers of files that are no images, by suffix, and of ignored files. notes: on the interpretation of the folders.
    """

    splits: dict[Split, Listing]
    left_out: Mapping[str, int] = {}
    notes: tuple[str, ...] = ()


def list_images(tree: FileTree, key: str, classes_from: ClassesFrom = "folders") -> Listings:
    """The splits of a tree of images; one without folders named as SPLIT_FOLDER says is all `train`.

    Classes are the sorted names of the folders of the training split, or with `prefix` the beginnings of file names. A folder
    around splits or class folders is no class; with a `labels_file` no folder is one. key: the option that names the source,
    for errors.
    Raises UserError if there are no images, if images are both in class folders and beside them, or splits beside other folders.
    """
    found = images_among(tree.names, tree.head)
    names, needs = found.images, found.notes[1:]  # the first counts the others
    if not names:
        raise _no_images(tree, key, needs)
    if labelled := labelled_names(tree, names):
        listing = Listing(labelled.names, labelled.labels, labelled.classes)
        return Listings({"train": listing}, found.others + tree.passed, (*needs, *labelled.notes))
    return arranged(names, tree, classes_from, found.others + tree.passed, needs)


def arranged(
    names: list[str],
    tree: FileTree,
    classes_from: ClassesFrom,
    left_out: Mapping[str, int],
    needs: Sequence[str] = (),
    what: str = "images",
) -> Listings:
    """The splits and classes that the paths of a tree's images, or of other samples, say; the rest as for `list_images`."""
    around = _wrapper(names, tree.source.is_dir())
    paths = {name: name.removeprefix(around) for name in names}
    grouped = _grouped(paths, tree)
    if classes_from == "prefix":
        grouped = {split: {name: _by_prefix(name, tree) for name in paths} for split, paths in grouped.items()}
    classes = _classes(grouped.get("train", next(iter(grouped.values()))), tree)
    splits = {split: _listing(paths, classes, tree) for split, paths in sorted(grouped.items(), reverse=True)}
    notes = _notes(tree, around, classes if classes_from == "folders" else None, what)
    return Listings(splits, left_out, (*needs, *notes))


def split_named(folder: str) -> Split | None:
    """The split that the name of a folder means, such as `Training`, `test_set` or `val2017`; None for other names."""
    match = SPLIT_FOLDER.fullmatch(folder.lower())
    return SPLIT_NAMES[match[1]] if match else None


def _no_images(tree: FileTree, key: str, needs: Sequence[str]) -> UserError:
    counted = Counter(PurePosixPath(name).suffix.lower() or "without a suffix" for name in tree.names)
    there = ", ".join(f"{count} {kind}" for kind, count in counted.most_common(FEW))
    hint = given_as(key, f"a folder of images ({SHOWN_SUFFIXES})")
    if "dataset.json" in tree.names:
        hint = f"it is a prepared set, which `diffcli train --preset NAME --data {quoted(tree.source)}` takes as it is"
    if any(suffix in VIDEOS for suffix in counted):
        hint = f"films are data of kind clips, as in `diffcli train --preset ucf101-64 --data {quoted(tree.source)}`"
    if any(name.endswith(".parquet") for name in tree.names):
        hint = f"images within .parquet are read by `diffcli prep-data parquet {quoted(tree.source)} --out DIR`"
    return UserError(
        f"{key} is '{tree.source}', which holds no images" + (f", but {there}" if there else ""),
        "; ".join(needs) or hint,
    )


def _wrapper(names: list[str], folder: bool) -> str:
    """The folders around everything, as 'name/'. A lone `train/` is a split; a lone folder of images in a folder is a class.

    An archive is one of the folder around everything in it, so that a lone folder of images in that one is a class.
    """
    wrapper = ""
    while True:
        tops = {name.removeprefix(wrapper).partition("/")[:2] for name in names}
        top, slash = next(iter(tops))
        if len(tops) > 1 or not slash:
            loose = any(not slash for _, slash in tops)
            around = "" if folder else wrapper[: wrapper.find("/") + 1]
            return around if loose else wrapper
        if split_named(top):
            return wrapper
        wrapper += f"{top}/"


def _grouped(paths: dict[str, str], tree: FileTree) -> dict[Split, dict[str, str]]:
    """The names of the images of each split, with their paths from the class folder on."""
    tops = {path.partition("/")[0]: split_named(path.partition("/")[0]) for path in paths.values() if "/" in path}
    loose = any("/" not in path for path in paths.values())
    grouped: dict[Split, dict[str, str]] = {}
    if tops and all(tops.values()) and not loose:
        for name, path in paths.items():
            top, _, rest = path.partition("/")
            grouped.setdefault(tops[top] or "train", {})[name] = rest
        return grouped
    if any(tops.values()):
        _check_beside(paths, tops, tree)
    inner = {path.split("/")[1] if path.count("/") > 1 else "" for path in paths.values()}
    if {split_named(folder) for folder in inner} != {"train", "test"}:
        return {"train": paths}
    for name, path in paths.items():
        top, folder, rest = path.split("/", 2)
        grouped.setdefault(split_named(folder) or "train", {})[name] = f"{top}/{rest}"
    return grouped


def _check_beside(paths: dict[str, str], tops: Mapping[str, Split | None], tree: FileTree) -> None:
    """Raises UserError if folders named as splits are beside other folders, unless they may be classes of that name."""
    named = sorted((top for top, split in tops.items() if split), key=lambda top: (tops[top] != "train", top))
    deep = {path.partition("/")[0] for path in paths.values() if path.count("/") > 1}
    if len({tops[top] for top in named}) == 1 and deep.isdisjoint(named):
        return  # a class called `train` beside `car`
    others = sorted(top for top, split in tops.items() if not split) or ["images"]
    meant = (_misspelt(top, {tops[name] for name in named}) for top in others)
    guess = next((f"rename {top} to {split}, or " for top, split in zip(others, meant, strict=True) if split), "")
    raise UserError(
        f"{tree.source} holds the splits {_few(named)} beside {_few(others)}: as classes, test images would be trained on",
        f"{guess}move {others[0]} out of it, or name {tree.source}/{named[0]}",
    )


def _misspelt(folder: str, there: Collection[Split | None]) -> str | None:
    """The name of a split that is not there, which the name of a folder nearly is, as `trian`."""
    close = get_close_matches(folder.lower(), [name for name, split in SPLIT_NAMES.items() if split not in there], n=1)
    return next(iter(close), None)


def _few(names: list[str]) -> str:
    return ", ".join(names[:FEW]) + ", ..." * (len(names) > FEW)


def _by_prefix(name: str, tree: FileTree) -> str:
    """CLASS/name of a file name that begins with its class: `cat_001.png`, `big_dog-7.jpg`, `dog.12.jpg`, `cat12.png`."""
    stem = PurePosixPath(name).stem
    prefix = LAST_WORD.sub("", stem).rstrip(" (_.-")
    if not prefix or prefix == stem:
        raise UserError(
            f"{tree.shown(name)}: no class stands before its name, as in cat_001.png", "rename it, or leave prefix out"
        )
    return f"{prefix}/{name}"


def _notes(tree: FileTree, around: str, classes: tuple[str, ...] | None, what: str) -> list[str]:
    notes = []
    if around and tree.source.is_dir():
        notes.append(f"all {what} lie in {around}, which is no class")
    if classes:
        paths = [*tree.names, *(f"{folder}/" for folder in tree.empty)]
        lone = {_class_folder(path.removeprefix(around)) for path in paths} - {None, *classes}
        if lone:
            notes.append(f"no classes, for they hold no {what}: {_few(sorted(filter(None, lone)))}")
    return notes


def _class_folder(path: str) -> str | None:
    """The folder that would be the class of a path, relative to the folder of splits or classes."""
    *folders, _ = path.split("/")
    inner = folders[1:] if folders and split_named(folders[0]) else folders
    return inner[0] if inner else None


def _classes(paths: dict[str, str], tree: FileTree) -> tuple[str, ...] | None:
    loose = [name for name, path in paths.items() if "/" not in path]
    classes = tuple(sorted({path.partition("/")[0] for path in paths.values() if "/" in path}))
    if loose and classes:
        raise UserError(
            f"{tree.shown(loose[0])} lies beside the class folders {', '.join(classes[:3])}",
            "put every image into a class folder, or give a folder of images without folders in it",
        )
    return classes or None


def _listing(paths: dict[str, str], classes: tuple[str, ...] | None, tree: FileTree) -> Listing:
    if classes is None:
        nested = next((name for name, path in paths.items() if "/" in path), None)
        if nested:
            raise UserError(f"{tree.shown(nested)} has a class, but the training images have none", "move the images")
        return Listing(list(paths), None, None)
    number = {alike(name): i for i, name in enumerate(classes)}
    tops = {name: path.partition("/")[0] for name, path in paths.items()}
    unknown = next((name for name, top in tops.items() if alike(top) not in number), None)
    if unknown:
        problem = (
            f"{tree.shown(unknown)} is in the class folder '{tops[unknown]}', which the training images do not have"
        )
        raise UserError(problem, "give both splits the same class folders")
    return Listing(list(paths), [number[alike(top)] for top in tops.values()], classes)
