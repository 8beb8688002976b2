"""What lies in the tars of others: members grouped into samples by the name before the first dot, as WebDataset does.

Only headers are walked, so a tar of any size opens at the speed of its disk. Members that hold pickles are never read.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from diffcli.data.files import Span
from diffcli.data.pixels import SUFFIXES

PICKLES = frozenset({"pyd", "pkl", "pickle", "pth", "pt"})
IMAGES = frozenset(suffix[1:] for suffix in SUFFIXES)


class Sample(NamedTuple):
    """The members of one sample, by extension (all after the first dot, in small letters)."""

    key: str
    members: dict[str, Span]

    @property
    def image(self) -> Span | None:
        return next((self.members[e] for e in self.members if e in IMAGES), None)


class Contents(NamedTuple):
    """Samples sorted by key; how many members hold pickles; fault: why the tar ends before its end, or empty."""

    samples: list[Sample]
    pickles: int
    fault: str


def read_contents(tar: Path) -> Contents:
    """The samples of a tar; of one that was cut short, those before the cut. Raises OSError where it cannot be opened."""
    samples: dict[str, dict[str, Span]] = {}
    pickles, fault, end = 0, "", tar.stat().st_size
    for name, span in _members(tar):
        if span is None or span.offset + span.size > end:
            fault = f"it is cut short or garbled after {name or 'its start'}"
            break
        key, extension = _split(name)
        if extension in PICKLES:
            pickles += 1
        elif extension:
            samples.setdefault(key, {}).setdefault(extension, span)
    return Contents([Sample(key, samples[key]) for key in sorted(samples, key=_natural)], pickles, fault)


def _members(tar: Path) -> Iterator[tuple[str, Span | None]]:
    """Names and places of the files in a tar; (last name, None) where it does not end as a tar does."""
    name = ""
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                name = member.name
                if member.isreg():
                    yield name, Span(tar, member.offset_data, member.size)
            with tar.open("rb") as raw:
                raw.seek(file.offset)
                ended = raw.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except tarfile.TarError:
        ended = False
    if not ended:
        yield name, None


def _split(name: str) -> tuple[str, str]:
    """('folder/key', 'seg.png') of 'folder/key.seg.png'."""
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return str(path.with_name(stem)) if stem else "", extension.lower()


def _natural(key: str) -> list[tuple[int, str]]:
    """Orders numbers by value, so that 9 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key)]
