"""Finds the files that cannot be decoded as images, by decoding each."""

from collections.abc import Sequence
from functools import partial

import torch
from torch.utils.data import Dataset

from diffcli.config import UserError
from diffcli.data.files import ARCHIVE_ERRORS
from diffcli.data.images import EncodedFiles, unreadable
from diffcli.data.loader import LOAD_CHUNK, WORTH_WORKERS, decoders, from_workers
from diffcli.data.modes import Range, flatten
from diffcli.data.pixels import BrokenImage, open_image

Faults = dict[int, str]  # why, by number of the file
MOST_NAMED = 3  # files in one note


def broken_among(files: EncodedFiles, levels: Range | None = None) -> Faults:
    """The files that cannot be decoded; many are read by as many processes as this rank has cores.

    levels: what is black and white in deep images, see `modes.flatten`.
    Raises UserError if a file cannot be read for a temporary reason, which is no fault of the file.
    """
    probe = _Probe(files, levels)
    found: Faults = {}
    chunks = [chunk.tolist() for chunk in torch.arange(len(files)).split(LOAD_CHUNK)]
    many = len(files) >= WORTH_WORKERS
    for each in (
        from_workers(probe, decoders(), torch.device("cpu"), chunks) if many else map(probe.__getitem__, chunks)
    ):
        if isinstance(each, UserError):
            raise each
        found |= each
    return found


def named(files: EncodedFiles, broken: Faults) -> str:
    """The first of the broken files, each with what is wrong with it."""
    told = ", ".join(f"{files.name(row)} ({reason})" for row, reason in list(broken.items())[:MOST_NAMED])
    return told + ", ..." * (len(broken) > MOST_NAMED)


def left_out(files: EncodedFiles, broken: Faults) -> str:
    """A note on files that are left out."""
    return f"left out, since they cannot be decoded: {len(broken):,} of {len(files):,} images: {named(files, broken)}"


class _Probe(Dataset):
    """Decodes the files of a list of numbers. An error is returned as a value, because a DataLoader would rebuild it wrongly."""

    def __init__(self, files: EncodedFiles, levels: Range | None) -> None:
        self.files, self.levels = files, levels

    def __getitem__(self, rows: Sequence[int]) -> Faults | UserError:
        found = {}
        for row in rows:
            try:
                open_image(self.files.read(row), "", partial(flatten, levels=self.levels))
            except BrokenImage as error:
                found[row] = error.reason
            except (OSError, *ARCHIVE_ERRORS) as error:
                return unreadable(self.files.name(row), error)
        return found
