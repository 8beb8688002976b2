"""Names of data as a person types them: splits, classes, and where data lie, for hints. Imports nothing heavy."""

import unicodedata
from pathlib import Path
from typing import Literal, get_args

from diffcli.config import UserError

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

TYPED = {
    "data.root": "--data PATH",
    "SOURCE": "SOURCE",
    "--out": "--out DIR",
    "the folder": "A or B",  # the sides of a score
    "the prepared data set": "A or B",
}

COMES_WITH = {  # kinds of data that are part of the package, and what to type for one's own
    "digits": "write a preset for your own pictures by `diffcli presets new NAME --data DIR`, or, for these 28x28 digits, "
    "add --set data.kind=folder for a folder of images, or =mnist for the four files",
    "digits_segmentation": "run `diffcli prep-data pairs SOURCE --out DIR` on images and masks of yours, then type --data DIR",
    "moving_digits": "leave data.root out",
}


def no_root(kind: str) -> str:
    """What is wrong with data.root for a kind of COMES_WITH, and behind a semicolon what to do."""
    return f"root must not be set for kind '{kind}', which comes with diffcli; {COMES_WITH[kind]}"


def given_as(key: str, what: str) -> str:
    """What to type for something else under a key of messages: "give a folder as --data PATH"."""
    return f"give {what} as {TYPED.get(key, key)}"


def alike(name: str) -> str:
    """A name in NFC, because systems store é as one character or as two."""
    return unicodedata.normalize("NFC", name)


def check_there(source: Path, key: str) -> None:
    """Raises UserError where there is nothing at a path. key: the option that names it."""
    if not source.exists():
        raise UserError(f"{key} is '{source}', which does not exist", given_as(key, "a path that is there"))
