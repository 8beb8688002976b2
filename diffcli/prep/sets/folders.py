"""Folders of images as a source: flat, with class folders, with train and test around either; in archives, too."""

import re
from collections.abc import Iterator, Mapping, Sequence
from posixpath import splitext

from diffcli.config import UserError
from diffcli.data.files import FileTree
from diffcli.data.image_formats import SUFFIXES
from diffcli.data.listing import ClassesFrom, Split, list_images
from diffcli.prep.items import SOURCE, Item, Items, PrepSource, tree_fingerprint


class FileItems:
    """Encoded images of a tree."""

    def __init__(self, tree: FileTree, names: list[str], labels: list[int] | None) -> None:
        self.tree, self.names, self.labels = tree, names, labels

    def __len__(self) -> int:
        return len(self.names)

    def items(self, positions: Sequence[int]) -> Iterator[Item]:
        for position in positions:
            name = self.names[position]
            yield Item(name, None if self.labels is None else self.labels[position], self.tree.locations[name])


def images_of(tree: FileTree, classes_from: ClassesFrom = "folders") -> PrepSource:
    """The images of a tree, with splits and labels from their folders or from the beginnings of their names."""
    found = list_images(tree, SOURCE, classes_from)
    splits: dict[Split, Items] = {split: FileItems(tree, x.names, x.labels) for split, x in found.splits.items()}
    classes = next(iter(found.splits.values())).classes
    digest = tree_fingerprint(tree, [name for x in found.splits.values() for name in x.names])
    return PrepSource(splits, classes, digest, found.notes, left_out=found.left_out)


def matching(tree: FileTree, pattern: re.Pattern[str]) -> dict[str, re.Match[str]]:
    """The images of a tree whose names fit, with how they fit."""
    found = ((name, pattern.search(name)) for name in tree.locations)
    return {name: match for name, match in found if match and splitext(name)[1].lower() in SUFFIXES}


def check_once(tree: FileTree, identities: Mapping[str, object]) -> None:
    """Raises UserError if an image occurs twice: two names with the same identity."""
    names: dict[object, str] = {}
    for name, identity in identities.items():
        if names.setdefault(identity, name) != name:
            problem = f"{SOURCE} is '{tree.source}', which holds one image twice: {names[identity]} and {name}"
            raise UserError(problem, f"give the folder of one of the two as {SOURCE}")


def not_found(tree: FileTree, what: str, hint: str) -> UserError:
    """The error for a source without the expected files, with what it holds instead."""
    return UserError(f"{SOURCE} is '{tree.source}', which has no {what}; it holds {tree.holds}", hint)
