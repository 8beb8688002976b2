"""Clips by number: the films in a tree of files, each a video, an animation, or a folder of numbered frames."""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, Protocol

from diffcli.config import UserError
from diffcli.data.clips.film import Film, NoFrames
from diffcli.data.clips.picture_films import FolderFilm, animated, animation
from diffcli.data.clips.span_file import SpanFile
from diffcli.data.clips.video_film import opened
from diffcli.data.files import FileTree, Location, Span, open_location, read_location, size_of
from diffcli.data.image_formats import TEXTS, VIDEOS, is_image, suffixes
from diffcli.data.naming import given_as

ANIMATIONS = suffixes("gif webp")
SHOWN = ".mp4 .mov .webm .mkv .avi .gif .webp, or folders of numbered pictures"
RATE_FILE = "fps.txt"  # in a folder of frames: how many are shown a second
FRAME_RATE = 25.0  # of folders of frames that do not say theirs
NUMBER = re.compile(r"\d+(?=\D*$)")  # the last number of a name
LARGEST_ANIMATION = 1 << 28  # bytes
FEW = 3


class ClipFiles(Protocol):
    """Films by number; picklable, for the workers of a DataLoader."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The film as the user knows it."""

    def film(self, index: int) -> AbstractContextManager[Film]:
        """The film while the context lasts. Raises NoFrames if it is none, BrokenImage, OSError or one of ARCHIVE_ERRORS."""


class FoundClips(NamedTuple):
    """The clips of a tree by name, each with its files; others: numbers of files that belong to none, by suffix."""

    clips: dict[str, tuple[str, ...]]
    others: Counter[str]


def clips_among(tree: FileTree, key: str) -> FoundClips:
    """The clips of a tree: videos and animations, and each folder with pictures directly in it, in the order of their names.

    Raises UserError if there are none. key: the option that names the tree.
    """
    single: list[str] = []
    frames: dict[str, list[str]] = {}
    others = Counter[str]()
    for name in tree.names:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in VIDEOS or (suffix in ANIMATIONS and animated(tree.head(name))):
            single.append(name)
        elif is_image(suffix, lambda name=name: tree.head(name)):  # type: ignore[misc]  # bound now
            frames.setdefault(str(PurePosixPath(name).parent), []).append(name)
        elif suffix not in TEXTS:
            others[suffix if re.fullmatch(r"\.\w{1,9}", suffix) else "with another name"] += 1
    clips = {name: (name,) for name in single} | {folder: tuple(names) for folder, names in frames.items()}
    if not clips:
        there = ", ".join(f"{count} {kind}" for kind, count in others.most_common(FEW))
        problem = f"{key} is '{tree.source}', which holds no clips" + (f", but {there}" if there else "")
        raise UserError(problem, given_as(key, f"a folder of clips ({SHOWN})"))
    return FoundClips({name: clips[name] for name in sorted(clips)}, others)


class TreeClips:
    """The clips of a FileTree, by number. clips: the files of each by its name; fps: of folders that do not say theirs."""

    def __init__(self, tree: FileTree, names: Sequence[str], clips: Mapping[str, Sequence[str]], fps: float) -> None:
        self.source, self.names, self.fps = tree.source, list(names), fps
        self.files = [clips[name] if _single(name, clips) else in_order(clips[name]) for name in names]
        self.locations: list[tuple[Location, ...]] = [tuple(tree.locations[f] for f in files) for files in self.files]
        self.single = [_single(name, clips) for name in names]
        self.rates = [tree.locations.get(_inside(name, RATE_FILE)) for name in names]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return str(self.source / self.names[index])

    @contextmanager
    def film(self, index: int) -> Iterator[Film]:
        if not self.single[index]:
            yield self._frames(index)
            return
        with readable(self.locations[index][0]) as film:
            yield film

    def fault(self, index: int) -> str | None:
        """What is wrong with a folder of frames according to their names; None for all else."""
        return None if self.single[index] else misnumbered([PurePosixPath(name).name for name in self.files[index]])

    @property
    def unrated(self) -> int:
        """How many folders of frames do not say how many are shown a second."""
        return sum(not single and rate is None for single, rate in zip(self.single, self.rates, strict=True))

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width as stored. Raises as `film`."""
        with self.film(index) as film:
            return film.size

    def digest(self, sizes: bool) -> str:
        """A digest of the names of the files and, optionally, of their sizes in bytes."""
        total = hashlib.sha256()
        for files, locations in zip(self.files, self.locations, strict=True):
            for name, location in zip(files, locations, strict=True):
                total.update(f"{name}\0{size_of(location) if sizes else ''}\n".encode())
        return total.hexdigest()

    def _frames(self, index: int) -> FolderFilm:
        if found := self.fault(index):
            raise NoFrames(found)
        names, locations, rate = self.files[index], self.locations[index], self.rates[index]

        def read(number: int) -> bytes:
            return read_location(locations[number])

        shown = [PurePosixPath(name).name for name in names]
        return FolderFilm(shown, self.fps if rate is None else read_rate(read_location(rate)), read)


@contextmanager
def readable(place: Location) -> Iterator[Film]:
    """The film at a place, while the context lasts: a video, or an animation. Raises as `ClipFiles.film` does."""
    with _stream(place) as stream:
        head = stream.read(32)
        stream.seek(0)
        if animated(head):
            if size_of(place) > LARGEST_ANIMATION:
                raise NoFrames(f"it is an animation of more than {LARGEST_ANIMATION >> 20} MiB")
            with animation(stream.read()) as film:
                yield film
        else:
            with opened(place if isinstance(place, Path) else stream) as film:
                yield film


def _stream(place: Location) -> IO[bytes]:
    """A stream over a place, of which a member of a tar is never read whole."""
    if isinstance(place, Span):
        return io.BufferedReader(SpanFile(place))
    return open_location(place)


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Frames by the last number of their names; those without one by name."""
    return tuple(sorted(names, key=lambda name: (_number(name) or 0, name)))


def misnumbered(names: Sequence[str]) -> str | None:
    """What is wrong with the numbers of frames in order; None where they count evenly."""
    numbers = [_number(name) for name in names]
    for name, number in zip(names, numbers, strict=True):
        if number is None:
            return f"its picture {name} has no number, so it is no frame"
    steps = [after - before for before, after in pairwise(numbers)]  # type: ignore[operator]
    if 0 in steps:
        at = steps.index(0)
        return f"{names[at]} and {names[at + 1]} have one number"
    if len(set(steps)) > 1:
        at = steps.index(max(steps))
        return f"frames are missing between {names[at]} and {names[at + 1]}"
    return None


def _number(name: str) -> int | None:
    found = NUMBER.search(PurePosixPath(name).stem)
    return int(found[0]) if found else None


def read_rate(text: bytes) -> float:
    """The number in the file of a folder that says how many frames are shown a second. Raises NoFrames."""
    try:
        rate = float(text.decode("utf-8-sig"))
        if 0 < rate < float("inf"):
            return rate
    except ValueError:
        pass
    raise NoFrames(f"its {RATE_FILE} holds no number of frames per second")


def _single(name: str, clips: Mapping[str, Sequence[str]]) -> bool:
    return tuple(clips[name]) == (name,)


def _inside(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"
