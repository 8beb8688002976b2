"""The class of a sample in KEY.cls, KEY.class or a key of KEY.json, and the classes of a whole set.

The labels of a set are numbers from 0 or names, as in most of its samples. If at least half of the samples have a valid label,
the others are left out; otherwise the set has no classes.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from diffcli.data.captions import decoded

EXTENSIONS = ("cls", "class")
KEYS = ("label", "class", "cls", "class_id", "class_label", "class_name", "category", "target")  # of an object of JSON
LONGEST = 200  # characters of the name of a class
MAX_CLASSES = 1 << 20
FEWEST = 0.5  # of the samples that have a label, in a set with classes


class SetLabels(NamedTuple):
    """The classes of a set. labels: the number of each sample, or why it has none; note: why there are no classes, or empty."""

    classes: tuple[str, ...]
    labels: list[int | str]
    note: str = ""


def label_in(members: Mapping[str, bytes]) -> str | None:
    """The label in the members of a sample, by extension; None if there is none."""
    stored = next((members[extension] for extension in EXTENSIONS if extension in members), None)
    if stored is not None:
        return label_of_bytes(stored)
    return label_of_json(members["json"]) if "json" in members else None


def label_of_bytes(data: bytes) -> str | None:
    """The label in a member of its own."""
    try:
        text = decoded(data[: 4 * LONGEST]).strip()
    except UnicodeDecodeError:
        return None
    return text[:LONGEST] or None


def label_of_json(data: bytes) -> str | None:
    """The first of KEYS in an object of JSON that holds a number or a text."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    found = (label_of_value(value[key]) for key in KEYS if key in value) if isinstance(value, dict) else iter(())
    return next((label for label in found if label is not None), None)


def label_of_value(value: object) -> str | None:
    """A label in a cell of a table or a value of JSON, as a text."""
    match value:
        case bool() | None:
            return None
        case float() if value.is_integer():
            return str(int(value))
        case int() | str():
            return str(value).strip()[:LONGEST] or None
        case _:
            return None


def number_in(label: str) -> int | None:
    """The number of a label; None for a name. Negative ones are numbers, though invalid ones."""
    try:
        return int(label) if label.isascii() else None
    except ValueError:
        return None


def set_labels(found: Sequence[str | None]) -> SetLabels:
    """The classes of a set from the labels of its samples: numbers if most are numbers, else names.

    Raises ValueError for numbers beyond those of classes.
    """
    given = [label for label in found if label is not None]
    numbers = [number for number in map(number_in, given) if number is not None]
    numbered = 2 * len(numbers) > len(given)
    names = tuple(sorted(set(given)))
    if numbered and max(numbers) >= MAX_CLASSES:
        raise ValueError(f"holds the label {max(numbers)}, no number of a class")
    place = {name: number for number, name in enumerate(names)}
    labels = [_numbered(label) if numbered else _placed(label, place) for label in found]
    good = [label for label in labels if isinstance(label, int)]
    if not good or len(good) < FEWEST * len(found):
        note = f"{len(good)} of {len(found)} samples have a label that fits; too few, so that the set has no classes"
        return SetLabels((), labels, note if given else "")
    classes = tuple(map(str, range(max(good) + 1))) if numbered else names
    return SetLabels(classes, labels)


def _numbered(label: str | None) -> int | str:
    if label is None:
        return "it has no label, as the others have"
    number = number_in(label)
    if number is None:
        return f"its label is '{label}', not a number as those of the others"
    return number if number >= 0 else f"its label is {number}, and classes are counted from 0"


def _placed(label: str | None, place: Mapping[str, int]) -> int | str:
    return "it has no label, as the others have" if label is None else place[label]
