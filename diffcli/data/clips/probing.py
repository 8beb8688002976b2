"""Finds the clips that cannot be read, by reading the first and the last clip of each film."""

from collections.abc import Sequence

from diffcli.config import UserError
from diffcli.data.broken import Faults, probed
from diffcli.data.clips.clip_data import ClipData
from diffcli.data.clips.film import BrokenClip

CHUNK = 8  # films that a worker reads at once
WORTH_WORKERS = 128  # films; fewer are read faster than worker processes start
ENDS = (0.0, 1 - 1e-9)  # where the first and the last clip begin


class ClipProbe:
    """Reads the ends of films by number."""

    def __init__(self, data: ClipData) -> None:
        self.data = data

    def __call__(self, rows: Sequence[int]) -> Faults | UserError:
        found: Faults = {}
        for row in rows:
            try:
                for share in ENDS:
                    self.data.take(row, share)
            except BrokenClip as error:
                found[row] = error.reason
            except UserError as error:
                return error
        return found


def broken_clips(data: ClipData) -> Faults:
    """The clips that cannot be read, or are too short; what is damaged between the ends of a film shows when it is read."""
    return probed(ClipProbe(data), len(data), CHUNK, WORTH_WORKERS)
