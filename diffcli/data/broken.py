"""Finds the files that cannot be decoded as images, by decoding each."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.utils.data import Dataset

from diffcli.config import UserError
from diffcli.data.files import ARCHIVE_ERRORS
from diffcli.data.images import EncodedFiles, NamedFiles, unreadable
from diffcli.data.loader import LOAD_CHUNK, WORTH_WORKERS, decoders, from_workers
from diffcli.data.modes import Range, flatten
from diffcli.data.pixels import BrokenImage, open_image

Faults = dict[int, str]  # why, by number of the file
Probe = Callable[[Sequence[int]], Faults | UserError]
"""Finds the faults of the files of these numbers. It returns an error, because a DataLoader would rebuild it wrongly."""

MOST_NAMED = 3  # files in one note


def broken_among(files: EncodedFiles, levels: Range | None = None) -> Faults:
    """The files that cannot be decoded; many are read by as many processes as this rank has cores.

    levels: what is black and white in deep images, see `modes.flatten`.
    Raises UserError if a file cannot be read for a temporary reason, which is no fault of the file.
    """
    return probed(_Images(files, levels), len(files))


def probed(probe: Probe, count: int, some: int = LOAD_CHUNK, worth_workers: int = WORTH_WORKERS) -> Faults:
    """The faults of `count` files, by number. A probe gets `some` of them at once, in processes of at least `worth_workers`."""
    found: Faults = {}
    chunks = [chunk.tolist() for chunk in torch.arange(count).split(some)]
    many = count >= worth_workers
    for each in from_workers(_Probing(probe), decoders(), torch.device("cpu"), chunks) if many else map(probe, chunks):
        if isinstance(each, UserError):
            raise each
        found |= each
    return found


def named(files: NamedFiles, broken: Faults) -> str:
    """The first of the broken files, each with what is wrong with it."""
    told = ", ".join(f"{files.name(row)} ({reason})" for row, reason in list(broken.items())[:MOST_NAMED])
    return told + ", ..." * (len(broken) > MOST_NAMED)


def left_out(files: NamedFiles, broken: Faults, what: str = "images", why: str = "cannot be decoded") -> str:
    """A note on files that are left out."""
    return f"left out, since they {why}: {len(broken):,} of {len(files):,} {what}: {named(files, broken)}"


class _Probing(Dataset):
    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def __getitem__(self, rows: Sequence[int]) -> Faults | UserError:
        return self.probe(rows)


class _Images:
    """Decodes the image files of these numbers."""

    def __init__(self, files: EncodedFiles, levels: Range | None) -> None:
        self.files, self.levels = files, levels

    def __call__(self, rows: Sequence[int]) -> Faults | UserError:
        found = {}
        for row in rows:
            try:
                open_image(self.files.read(row), "", partial(flatten, levels=self.levels))
            except BrokenImage as error:
                found[row] = error.reason
            except (OSError, *ARCHIVE_ERRORS) as error:
                return unreadable(self.files.name(row), error)
        return found
