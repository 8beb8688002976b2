"""The contract between prep-data and what it reads: a Source is splits of Items, in a fixed order, with class names."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from diffcli.data.files import Location
from diffcli.data.listing import Split


class Item(NamedTuple):
    """One image of a source: an encoded file or pixels uint8 (C, H, W). name: as the source calls it, for skipped.jsonl."""

    name: str
    label: int | None
    image: Location | np.ndarray


class Items(Protocol):
    """The images of one split."""

    def __len__(self) -> int: ...

    def items(self, positions: Sequence[int]) -> Iterator[Item]:
        """The items at these rising positions."""


class Source(NamedTuple):
    """An opened source. fingerprint: a digest of what is in it, so that a resumed run sees the same; notes: worth saying."""

    splits: dict[Split, Items]
    classes: tuple[str, ...] | None
    fingerprint: str
    notes: tuple[str, ...] = ()


def fingerprint(files: Iterable[tuple[str, int]]) -> str:
    """SHA-256 over (name, size in bytes) of the files that a source is made of."""
    digest = hashlib.sha256()
    for name, size in files:
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
