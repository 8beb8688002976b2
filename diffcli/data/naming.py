"""Names of data as a person types them: splits, classes, and where data lie, for hints. Imports nothing heavy."""

import unicodedata
from typing import Literal, get_args

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

TYPED = {
    "data.root": "--data PATH",
    "SOURCE": "SOURCE",
    "--out": "--out DIR",
    "the folder": "A or B",  # the sides of a score
    "the prepared data set": "A or B",
}


def given_as(key: str, what: str) -> str:
    """What to type for something else under a key of messages: "give a folder as --data PATH"."""
    return f"give {what} as {TYPED.get(key, key)}"


def alike(name: str) -> str:
    """A name in NFC, because systems store é as one character or as two."""
    return unicodedata.normalize("NFC", name)
