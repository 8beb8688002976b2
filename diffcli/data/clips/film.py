"""Which frames of a film a clip consists of: a pure function of its time stamps, of the preset and of one number in [0, 1).

A film is shown frame by frame: a frame stays until the next one begins. With `fps`, frame j of a clip is what is shown at
start + j * stride / fps, so films of a variable rate are resampled by their time stamps. Without, it is every stride-th frame
of the film. Starts lie on the grid of the frames, and each start from which the whole clip lies in the film is equally likely.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from diffcli.data.pixels import BrokenImage

TOLERANCE = 0.002  # seconds: containers round time stamps to milliseconds
ROUNDING = 1e-6  # of a frame
MIDDLE = 0.5
STARTS = 1 << 16  # starts that a draw tells apart


class BrokenClip(BrokenImage):
    """A clip that cannot be read; `reason` says why, `name` which."""

    what = "clip"
    remedy = (
        "delete or replace it; or, with data.kind=clips, skip all such: --set data.broken=leave_out; "
        "where it is too short, a lower data.frames or data.stride takes it"
    )

    def __init__(self, name: str, reason: str, remedy: str = remedy) -> None:
        self.remedy = remedy
        super().__init__(name, reason)


class NoFrames(Exception):
    """A film that is too short, or none: its text is the reason."""


class Timing(NamedTuple):
    """How a clip is cut out of a film. frames: its number of frames; fps: None is that of the film, before `stride`."""

    frames: int
    fps: float | None = None
    stride: int = 1

    def shown_rate(self, rate: float) -> float:
        """Frames per second of the clip itself."""
        return (self.fps or rate) / self.stride

    def __str__(self) -> str:
        at = "" if self.fps is None else f" at {self.fps:g} a second"
        return f"{self.frames} frames{at}" + (f", every {self.stride}. of them" if self.stride > 1 else "")


class Shot(NamedTuple):
    """A frame of a film: when it is shown, for how long, both in seconds, and how to get its picture, mode L or RGB."""

    time: float
    seconds: float
    picture: Callable[[], Image.Image]


Number = TypeVar("Number", float, Tensor)
Fitting = Callable[[Image.Image], np.ndarray]
"""Makes a frame, uint8 (C, H, W), of a picture."""


class Film(ABC):
    """Frames in time. seconds: its length according to its header; rate: frames per second, on average."""

    seconds: float
    rate: float

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width as stored."""

    def measured(self) -> float:
        """Its length in seconds by the time stamps of all of its frames, where a header may be wrong."""
        return self.seconds

    @abstractmethod
    def shots(self, start: float) -> Iterator[Shot]:
        """The frames from the one that is shown at `start`, in seconds, to the last. Raises NoFrames or errors of the decoder."""


class Take(NamedTuple):
    """The frames of a clip, uint8 (C, H, W) each, and their number per second."""

    frames: list[np.ndarray]
    fps: float


def taken(film: Film, timing: Timing, share: float, fitted: Fitting) -> Take:
    """A clip out of a film. share: where among the possible starts, in [0, 1). fitted: makes a frame of each picture.

    Raises NoFrames where the film is too short.
    """
    seconds = film.seconds
    if starts(seconds, film.rate, timing) <= 0:
        seconds = film.measured()
    for _ in range(2):
        frames, end = _from(film, timing, start_of(film, timing, share, seconds), fitted)
        if len(frames) == timing.frames:
            return Take(frames, timing.shown_rate(film.rate))
        seconds = min(end, seconds)  # a header may count the sound, which goes on behind the last frame
    raise too_short(film, timing, seconds)


def start_of(film: Film, timing: Timing, share: float, seconds: float) -> float:
    """The start of a clip in seconds. Raises NoFrames where a film of this length has none."""
    count = math.ceil(starts(seconds, film.rate, timing))
    if count < 1:
        raise too_short(film, timing, seconds)
    return min(int(share * count), count - 1) / (timing.fps or film.rate)


def starts(seconds: Number, rate: Number, timing: Timing) -> Number:
    """How many starts a film of this length and rate has, before it is rounded up: above 0 where it is long enough."""
    grid = timing.fps or rate
    span = (timing.frames - 1) * timing.stride / grid
    return (seconds - span - TOLERANCE) * grid - ROUNDING


def too_short(film: Film, timing: Timing, seconds: float) -> NoFrames:
    rate = timing.fps or film.rate
    shown = math.floor(seconds * rate + ROUNDING + TOLERANCE * rate)
    needed = (timing.frames - 1) * timing.stride + 1
    return NoFrames(
        f"it is too short: {shown} frame{'s' * (shown != 1)} at {rate:g} a second, where a clip needs {needed}"
    )


def share_of(draw: int) -> float:
    """Where a clip begins, in [0, 1), from bits 17 to 32 of a sample's draw, which are not those of its crop."""
    return (draw >> 17) % STARTS / STARTS


def _from(film: Film, timing: Timing, start: float, fitted: Fitting) -> tuple[list[np.ndarray], float]:
    """The frames from `start` on, fewer where the film ends before, and the time of its end, if it was seen."""
    frames: list[np.ndarray] = []
    held: Shot | None = None
    for number, shot in enumerate(film.shots(start)):
        if timing.fps is None:
            if number % timing.stride == 0:
                frames.append(fitted(shot.picture()))
        elif held is not None:
            _hold(frames, held, shot.time - start, timing, fitted)
        held = shot
        if len(frames) == timing.frames:
            return frames, math.inf
    if held is None:
        raise NoFrames("it holds no frame")
    end = held.time + held.seconds
    if timing.fps is not None:
        _hold(frames, held, end - start, timing, fitted)
    return frames, end


def _hold(frames: list[np.ndarray], held: Shot, until: float, timing: Timing, fitted: Fitting) -> None:
    """Adds the picture of a frame for each time of the clip at which it is shown; `until`: when the next one begins."""
    assert timing.fps is not None
    kept: np.ndarray | None = None
    while len(frames) < timing.frames and len(frames) * timing.stride / timing.fps < until - TOLERANCE:
        kept = fitted(held.picture()) if kept is None else kept
        frames.append(kept)
