"""Captions as they are stored: one a line, UTF-8, without control characters; and which of several an epoch reads."""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TypeVar

KEYS = ("caption", "captions", "text")  # of an object of JSON
MAX_BYTES = 1 << 20  # of the captions of one image

T = TypeVar("T")


def clean(text: str) -> str:
    """A caption on one line: control characters and runs of white space become one space, lone surrogates go."""
    if text.isprintable():  # nearly all are, and asking is ten times as fast as looking at each character
        return " ".join(text.split())
    kept = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text if not _lone(c))
    return " ".join(kept.split())


def to_bytes(captions: Iterable[str]) -> bytes:
    """The member that holds the captions of one image; empty ones are left out."""
    return "\n".join(filter(None, map(clean, captions))).encode()


def from_bytes(data: bytes) -> list[str]:
    """The inverse of `to_bytes`, for members of anybody; at least one caption, the empty one where there is none."""
    lines = [clean(line) for line in data.decode("utf-8", "replace").splitlines()]
    return list(filter(None, lines)) or [""]


def from_json(data: str | bytes) -> tuple[str, ...]:
    """The captions in a .json beside an image: a text, a list, or an object with one of KEYS. Raises ValueError."""
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if isinstance(value, dict):
        value = next((value[key] for key in KEYS if key in value), None)
    return texts(value)


def texts(value: object) -> tuple[str, ...]:
    """The texts in a value of JSON or of a table: itself, or those of a list; numbers become texts."""
    if isinstance(value, list | tuple):
        return tuple(text for item in value for text in texts(item))
    if isinstance(value, str):
        return (value,)
    return () if value is None or isinstance(value, dict | bool) else (str(value),)


def chosen(count: int, draw: int | None) -> int:
    """Which of `count` values of one sample an epoch takes; without a draw the first. Bit 0 of a draw is the mirror's."""
    return 0 if draw is None else (draw >> 1) % count


def taken(values: Sequence[T], draw: int | None) -> tuple[T, int | None]:
    """One of `values`, and what is left of the draw for another, independent choice."""
    if draw is None:
        return values[0], None
    return values[chosen(len(values), draw)], draw // len(values)


def _lone(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"
