"""Which frames of a clip are given: `none`, `first:K`, `last:K`, `ends:K` or `random:SHARE`, in presets as on the command line.

Of a clip of T frames at most T - 1 are given, so that one is left to draw: of an image, which is a clip of one frame, none.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

PatternKind = Literal["none", "first", "last", "ends", "random"]
KINDS: tuple[PatternKind, ...] = get_args(PatternKind)
COUNTED = ("first", "last", "ends")  # with a number of frames
FORMS = "write none, first:K, last:K, ends:K (K frames, 1 if left out) or random:SHARE (0.5 if left out)"
SHARE = 0.5  # of frames that `random` gives


class FramePattern(NamedTuple):
    """number: of frames at an end, of `ends` at both. share: of frames, each given by itself, of `random`."""

    kind: PatternKind
    number: int = 0
    share: float = 0.0

    def __str__(self) -> str:
        if self.kind in COUNTED:
            return f"{self.kind}:{self.number}"
        return f"random:{self.share:g}" if self.kind == "random" else "none"

    def mask(self, frames: int) -> Tensor:
        """The given frames of a clip, bool (T,) on the CPU; of `random` none, since they differ from clip to clip."""
        place = torch.arange(frames)
        most = max(frames - 1, 0)
        first = min(self.number, most) if self.kind in ("first", "ends") else 0
        last = min(self.number, most - first) if self.kind in ("last", "ends") else 0
        return (place < first) | (place >= frames - last)

    def covers(self, other: "FramePattern") -> bool:
        """Whether clips that were given by this pattern show a network what `other` gives."""
        return self.kind == "random" or self == other


def frame_pattern(text: str) -> FramePattern:
    """The pattern that a text names. Raises ValueError("problem; hint")."""
    name, colon, option = text.partition(":")
    kind = next((each for each in KINDS if each == name), None)
    if kind is None or (kind == "none" and colon):
        raise ValueError(f"'{text}' names no frames; {FORMS}")
    if kind == "none":
        return FramePattern(kind)
    if kind == "random":
        share = _number(option) if colon else SHARE
        if share is None or not 0 < share < 1:
            raise ValueError(f"'{text}': '{option}' is no share between 0 and 1; {FORMS}")
        return FramePattern(kind, share=share)
    if colon and not (option.isascii() and option.isdecimal() and int(option) > 0):
        raise ValueError(f"'{text}': '{option}' is no number of frames from 1 on; {FORMS}")
    return FramePattern(kind, number=int(option) if colon else 1)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
