"""The videos of prepared sets as clips, read in place from the tars."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from torch import Tensor

from diffcli.data.clips.clip_files import readable
from diffcli.data.clips.film import Film, NoFrames, Timing, starts
from diffcli.data.files import Span
from diffcli.data.images import NamedFiles


class PlacedFiles(NamedFiles, Protocol):
    """Files that lie in others."""

    def read(self, index: int) -> bytes: ...

    def span(self, index: int) -> Span:
        """Where a file lies; of size 0: there is none."""


class ShardClips:
    """The films among the files of prepared sets, by number."""

    def __init__(self, files: PlacedFiles) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files.name(index)

    @contextmanager
    def film(self, index: int) -> Iterator[Film]:
        span = self.files.span(index)
        if not span.size:
            raise NoFrames("the sample has no video")
        with readable(span) as film:
            yield film


class ChosenFiles(NamedTuple):
    """A selection of files: file i is file places[i], int64 (n,), of those."""

    files: PlacedFiles
    places: Tensor

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        return self.files.name(int(self.places[index]))

    def read(self, index: int) -> bytes:
        return self.files.read(int(self.places[index]))

    def span(self, index: int) -> Span:
        return self.files.span(int(self.places[index]))


def long_enough(lengths: Tensor, timing: Timing) -> Tensor:
    """Bool (N,): whether films are long enough for a clip, or not known to be too short.

    lengths: float64 (N, 2), frames and frames per second; 0: not known.
    """
    frames, rate = lengths.unbind(1)
    return (rate == 0) | (starts(frames / rate, rate, timing) > 0)
