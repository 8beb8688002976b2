"""Captions as they are stored: one a line, UTF-8, without control characters; and which of several an epoch reads."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import TypeVar

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
