"""What image folders mean: `split/class/image`, `class/image`, or images alone, read from the names only.

Works on the names of a FileTree, so a folder and an archive of that folder are the same set in the same order.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from diffcli.config import UserError
from diffcli.data.files import FileTree
from diffcli.data.image_formats import SUFFIXES

Split = Literal["train", "test"]
SPLIT_NAMES: dict[str, Split] = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}


class Listing(NamedTuple):
    """Image files of one split, sorted, with their classes; labels and classes are None where there are no class folders."""

    names: list[str]
    labels: list[int] | None
    classes: tuple[str, ...] | None


def list_images(tree: FileTree, key: str) -> dict[Split, Listing]:
    """The splits of a tree of images; one without folders named train, test or val is all `train`.

    Classes are the sorted names of the folders of the training split. key: what the user typed to name the source.
    Raises UserError where there are no images, or images lie both in class folders and beside them.
    """
    names = [name for name in tree.names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not names:
        kinds = " ".join(sorted(SUFFIXES))
        raise UserError(
            f"{key} is '{tree.source}', which holds no images", f"set {key} to a folder of images ({kinds})"
        )
    wrapper = "" if tree.source.is_dir() else _wrapper(names)
    paths = {name: name.removeprefix(wrapper) for name in names}
    tops = {path.partition("/")[0] for path in paths.values()}
    if tops <= SPLIT_NAMES.keys():
        grouped: dict[Split, dict[str, str]] = {}
        for name, path in paths.items():
            top, _, rest = path.partition("/")
            grouped.setdefault(SPLIT_NAMES[top], {})[name] = rest
    else:
        grouped = {"train": paths}
    classes = _classes(grouped.get("train", next(iter(grouped.values()))), tree)
    return {split: _listing(paths, classes, tree) for split, paths in sorted(grouped.items(), reverse=True)}


def _wrapper(names: Sequence[str]) -> str:
    """The folders that an archive puts around everything, as 'name/'; a lone `train/` is a split, not a wrapping."""
    wrapper = ""
    while True:
        tops = {name.removeprefix(wrapper).partition("/")[0] for name in names}
        inner = f"{wrapper}{next(iter(tops))}/"
        if len(tops) > 1 or tops <= SPLIT_NAMES.keys() or not all(name.startswith(inner) for name in names):
            return wrapper
        wrapper = inner


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
    number = {name: i for i, name in enumerate(classes)}
    tops = {name: path.partition("/")[0] for name, path in paths.items()}
    unknown = next((name for name, top in tops.items() if top not in number), None)
    if unknown:
        problem = (
            f"{tree.shown(unknown)} is in the class folder '{tops[unknown]}', which the training images do not have"
        )
        raise UserError(problem, "give both splits the same class folders")
    return Listing(list(paths), [number[top] for top in tops.values()], classes)
