"""The stored form of captions: one on each line, UTF-8, without control characters; and the choice of one in each epoch."""

import json
import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TypeVar

KEYS = ("caption", "captions", "text", "texts", "prompt", "description", "sentence", "sentences", "comment")  # of JSON
EMPTY = frozenset({"", "none", "null", "nan"})  # what programs write into a cell of a table without a caption
MAX_BYTES = 1 << 20  # of the captions of one image
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
BOM = "\ufeff"
NOT_UTF8 = "are not UTF-8: write them anew, as `iconv -f LATIN1 -t UTF-8` does"

T = TypeVar("T")


def clean(text: str) -> str:
    """A caption on one line: control characters and runs of white space become one space; lone surrogates and BOMs go."""
    if text.isprintable():  # true of nearly all captions, and much faster than a look at each character
        return " ".join(text.split())
    kept = "".join(
        " " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text if not _lone(c) and c != BOM
    )
    return " ".join(kept.split())


def to_bytes(captions: Iterable[str]) -> bytes:
    """The member that holds the captions of one image; empty ones are left out."""
    return "\n".join(filter(None, map(clean, captions))).encode()


def from_bytes(data: bytes) -> list[str]:
    """The inverse of `to_bytes`, also for files of other tools; at least one caption, an empty one if there is none.

    Raises UnicodeDecodeError.
    """
    lines = [clean(line) for line in decoded(data).splitlines()]
    return list(filter(None, lines)) or [""]


def decoded(data: bytes) -> str:
    """The text of a small file in UTF-8, or in UTF-16 where its mark says so. Raises UnicodeDecodeError."""
    return data.decode("utf-16" if data.startswith(UTF16_MARKS) else "utf-8-sig")


def from_json(data: str | bytes) -> tuple[str, ...]:
    """The captions in a .json beside an image: a text, a list, or an object with one of KEYS. Raises ValueError."""
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if isinstance(value, dict):
        return next((found for key in KEYS if (found := texts(value.get(key)))), ())
    return texts(value)


def texts(value: object) -> tuple[str, ...]:
    """The texts in a value of JSON or of a table: itself, or those of a list; numbers become texts, but for NaN."""
    if isinstance(value, list | tuple):
        return tuple(text for item in value for text in texts(item))
    if isinstance(value, str):
        return (value,)
    if isinstance(value, float) and math.isnan(value):  # how tables of numbers mark an empty cell
        return ()
    return () if value is None or isinstance(value, dict | bool) else (str(value),)


def in_cell(value: object) -> tuple[str, ...]:
    """The captions in a cell of a table, without words that stand for an empty cell."""
    return tuple(text for text in texts(value) if text.strip().lower() not in EMPTY)


def chosen(count: int, draw: int | None) -> int:
    """The index, below `count`, that a sample uses in an epoch; without a draw 0. Bit 0 of a draw is for mirroring."""
    return 0 if draw is None else (draw >> 1) % count


def taken(values: Sequence[T], draw: int | None) -> tuple[T, int | None]:
    """One of `values`, and the rest of the draw for another, independent choice."""
    if draw is None:
        return values[0], None
    return values[chosen(len(values), draw)], draw // len(values)


def _lone(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"
