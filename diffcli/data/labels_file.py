"""The `dataset.json` with the classes of images that the tools of StyleGAN and EDM write.

    {"labels": [["00000/img00000000.png", 6], ...]}    or {"labels": null} for a set without classes

The folders 00000, 00001, ... around the images are no classes. Source: dataset_tool.py of NVlabs/edm (Karras et al. 2022, arXiv
2206.00364); a label may be a list that is 1 for its class and 0 elsewhere.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diffcli.config import UserError
from diffcli.data.files import FileTree
from diffcli.data.sample_labels import label_of_value, set_labels

NAME = "dataset.json"
BEGINS = re.compile(rb'\s*\{\s*"labels"\s*:')  # the beginning of such a file, never that of a prepared set
LOOK = 64  # bytes


class LabelledNames(NamedTuple):
    """The images of a set with such a file. labels, classes: None if it has no classes."""

    names: list[str]
    labels: list[int] | None
    classes: tuple[str, ...] | None
    notes: tuple[str, ...]


def labelled_names(tree: FileTree, images: Sequence[str]) -> LabelledNames | None:
    """The images with the labels of the file; None if there is no such file. Raises UserError for a garbled one."""
    if NAME not in tree.locations or not BEGINS.match(tree.head(NAME)):
        return None
    stored = _stored(tree)
    if stored is None:
        return LabelledNames(list(images), None, None, ())
    try:
        found = set_labels([stored.get(name) for name in images])
    except ValueError as error:
        raise UserError(f"{tree.shown(NAME)} {error}", "write it anew: labels are counted from 0") from error
    if not found.classes:
        note = found.note or f"{NAME} has a label of none of the {len(images)} images"
        return LabelledNames(list(images), None, None, (note,))
    pairs = [(name, label) for name, label in zip(images, found.labels, strict=True) if isinstance(label, int)]
    lacking = [name for name, label in zip(images, found.labels, strict=True) if isinstance(label, str)]
    notes = [f"{len(lacking)} images without a label in {NAME} are left out, the first {lacking[0]}"] if lacking else []
    names, labels = zip(*pairs, strict=True)
    return LabelledNames(list(names), list(labels), found.classes, tuple(notes))


def is_labels_file(path: Path) -> bool:
    """Whether a `dataset.json` is such a file, not that of a prepared set."""
    with path.open("rb") as file:
        return BEGINS.match(file.read(LOOK)) is not None


def _stored(tree: FileTree) -> dict[str, str | None] | None:
    """The labels by the names of images."""
    try:
        labels = json.loads(tree.read(NAME))["labels"]
        return None if labels is None else {str(name).replace("\\", "/"): _label(label) for name, label in labels}
    except (ValueError, TypeError, RecursionError) as error:
        problem = f"{tree.shown(NAME)} has no labels as StyleGAN and EDM write them ({error})"
        raise UserError(problem, f"write it anew, or delete {tree.shown(NAME)}: folders are classes then") from error


def _label(value: object) -> str | None:
    """A class by its number, or by its place in a list."""
    if isinstance(value, list):
        return str(value.index(1)) if sorted(value) == [0] * (len(value) - 1) + [1] else None
    return label_of_value(value)
