"""Digits that move straight and bounce at the walls: computed clips whose every position is known.

A digit keeps to its square of `digit` pixels, which stays whole within the frame. In frame k of a clip of f frames a second its
upper left corner is at fold(start + velocity * k / f), each axis alone, where fold reflects the line at 0 and at the
free length. Positions are fractions of a pixel: a digit is shifted by bilinear interpolation, which moves its centre of mass by
exactly as much. Of two digits the brighter pixel is seen.

A clip follows from its number, in training from (seed, epoch, number): each epoch the same digits take other ways.
"""

import copy
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from diffcli.config import keys_agree
from diffcli.data import mnist
from diffcli.data.clips.rates import FrameRate
from diffcli.data.dataset import DataConfig
from diffcli.data.digits_file import read_digits
from diffcli.data.images import Column, ImageData
from diffcli.data.listing import Split
from diffcli.data.look_alikes import centres_of, group_of
from diffcli.data.naming import no_root
from diffcli.fields import FieldSpec
from diffcli.noise import Domain, Noise, derive

SEED = 13
CPU = torch.device("cpu")


class MovingDigits(DataConfig):
    """Clips of moving digits, grey: 9,000 in `train`, 1,000 of other digits in `test`.

    Fields: clip, fps, image (one frame: the first, in training a random one) and, of one digit, label.
    digits: in a clip. digit: edge of the square of a digit in pixels. speed: lowest and highest, in pixels a second.
    groups: see `look_alikes`; the label is then the group of the digit at rest.
    """

    kind: Literal["moving_digits"] = "moving_digits"
    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 28
    channels: Literal[1, 3] = 1
    frames: PositiveInt | tuple[PositiveInt, ...] = Field(
        16,
        description="frames of a clip; a list: each batch of training has one of these lengths, all else the longest",
    )
    fps: FrameRate | tuple[FrameRate, ...] = Field(
        10.0, description="frames a second; of several values each clip has one, so digits take longer steps at fewer"
    )
    digits: Literal[1, 2] = Field(1, description="digits in a clip; only clips of one have a class")
    digit: PositiveInt = Field(
        14, description="edge in pixels of the square that a digit keeps to, its black border too"
    )
    speed: tuple[float, float] = Field((8.0, 20.0), description="lowest and highest speed of a digit, pixels a second")
    groups: int | None = Field(
        None,
        ge=2,
        le=1000,
        description="in place of the classes so many groups of digits that look alike, found without labels; null: classes",
    )

    @field_validator("fps")
    @classmethod
    def _some(cls, fps: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if fps == ():
            raise ValueError("fps is an empty list; set data.fps=10 for example")
        return fps

    @field_validator("speed")
    @classmethod
    def _rising(cls, speed: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= speed[0] <= speed[1]:
            raise ValueError(
                f"speed is {list(speed)}, not [lowest, highest] of two numbers from 0 on; set data.speed=[8, 20] for example"
            )
        return speed

    @field_validator("frames")
    @classmethod
    def _some_length(cls, frames: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if frames == ():
            raise ValueError("frames is an empty list; set data.frames=16 for example")
        return frames

    @property
    def lengths(self) -> list[int]:
        """The lengths of clips in frames, the longest last."""
        return sorted({self.frames} if isinstance(self.frames, int) else set(self.frames))

    @keys_agree
    def _embedded(self) -> Iterator[str]:
        if self.root is not None:
            yield no_root(self.kind)
        if self.cut_anew:
            yield f"{self.cut_anew} is for image files, and moving digits are computed; leave it out of data"
        if self.digit > min(self.shape[1:]):
            yield (
                f"digit is {self.digit} pixels, more than the {min(self.shape[1:])} of the shorter side of a frame; "
                f"set data.digit={min(self.shape[1:])} or a higher data.size"
            )
        if self.groups and self.digits > 1:
            yield (
                f"groups is {self.groups}, but clips of {self.digits} digits have no label; "
                "set data.groups=null or data.digits=1"
            )

    @property
    def specs(self) -> dict[str, FieldSpec]:
        return super().specs | self._beside

    @property
    def _beside(self) -> dict[str, FieldSpec]:
        channels, *size = self.shape
        return {"clip": FieldSpec("clip", (channels, self.lengths[-1], *size)), "fps": FieldSpec("number")}

    def build(self, split: Split) -> ImageData:
        return self._with_made(MovingImages(self, split))


class Paths(NamedTuple):
    """Where the digits of clips are. corner: upper left of the square, (row, column) in pixels, float64 (B, digits, T, 2).

    which: rows of the split's digits, int64 (B, digits). fps: frames a second, float64 (B,).
    """

    corner: Tensor
    which: Tensor
    fps: Tensor


class MovingImages(ImageData):
    """The clips of a split, computed when they are read. ink: the digits, (N, digit, digit) in [0, 1], not to be changed."""

    def __init__(self, config: MovingDigits, split: Split) -> None:
        labels: Tensor | None
        self.ink, labels, self.numbers = sized_digits(split, config.digit)
        columns: dict[str, Column] = {"clip": _Clips(self, config._beside["clip"]), "fps": _Fps(self)}
        names: tuple[str, ...] | None = mnist.DIGITS
        if config.digits > 1:
            labels, names = None, None
        elif config.groups:
            labels = group_of(self.ink, learned_centres(config.digit, config.groups))
            names = tuple(
                f"group {number} of {config.groups} at {config.digit} pixels" for number in range(config.groups)
            )
        super().__init__(config.shape, labels, names, columns)
        self.config = config

    @property
    def variants(self) -> tuple[ImageData, ...]:
        return tuple(self._of(length) for length in self.config.lengths)

    def _of(self, length: int) -> "MovingImages":
        """The same clips of so many frames, with the same columns beside them."""
        made = copy.copy(self)
        made.config = self.config.model_copy(update={"frames": length})
        own: dict[str, Column] = {"clip": _Clips(made, made.config._beside["clip"]), "fps": _Fps(made)}
        made.columns = {name: own.get(name, column) for name, column in self.columns.items()}
        return made

    def __len__(self) -> int:
        return len(self.ink)

    def paths(self, indices: Tensor, draws: Tensor | None = None) -> Paths:
        """The ways of these clips, int64 (B,); draws as for `read`."""
        config = self.config
        seeds = derive(SEED, Domain.AUGMENT, self.numbers[indices]) if draws is None else draws
        noise = Noise(seeds, CPU, Domain.AUGMENT)
        given = torch.tensor([config.fps] if isinstance(config.fps, float) else config.fps, dtype=torch.float64)
        fps = given[(noise.uniform() * len(given)).long()]
        seconds = torch.arange(config.lengths[-1], dtype=torch.float64) / fps[:, None]  # (B, T)
        room = torch.tensor(self.shape[1:], dtype=torch.float64) - config.digit
        corners, which = [], [indices]
        for number in range(config.digits):
            if number:
                which.append((noise.uniform() * len(self)).long())
            start = torch.stack([noise.uniform(), noise.uniform()], 1) * room
            angle = 2 * torch.pi * noise.uniform()
            speed = config.speed[0] + (config.speed[1] - config.speed[0]) * noise.uniform()
            velocity = speed[:, None] * torch.stack([angle.sin(), angle.cos()], 1)
            corners.append(fold(start[:, None] + velocity[:, None] * seconds[..., None], room))
        return Paths(torch.stack(corners, 1), torch.stack(which, 1), fps)

    def rendered(self, paths: Paths) -> Tensor:
        """The frames of these ways, uint8 (B, C, T, H, W)."""
        placed = [
            shifted(self.ink[paths.which[:, number]], paths.corner[:, number], self.shape[1:])
            for number in range(paths.which.shape[1])
        ]
        frames = torch.stack(placed).amax(0)
        return (frames * 255).round().to(torch.uint8)[:, None].expand(-1, self.shape.channels, -1, -1, -1)

    def pixels(self, indices: Tensor, draws: Tensor | None = None) -> Tensor:
        paths = self.paths(indices, draws)
        frame = torch.zeros_like(indices)
        if draws is not None:
            chance = Noise(draws, CPU, Domain.CHANCE).uniform()
            frame = (chance * self.config.lengths[-1]).long()
        at = paths.corner.gather(2, frame.view(-1, 1, 1, 1).expand(-1, paths.corner.shape[1], 1, 2))
        return self.rendered(paths._replace(corner=at))[:, :, 0]


class _Clips:
    """The field `clip`."""

    def __init__(self, images: MovingImages, spec: FieldSpec) -> None:
        self.images, self.spec = images, spec

    def read(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        """uint8 (B, C, T, H, W)."""
        return self.images.rendered(self.images.paths(indices, draws))


class _Fps:
    """The field `fps`."""

    spec = FieldSpec("number")

    def __init__(self, images: MovingImages) -> None:
        self.images = images

    def read(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        """float32 (B,)."""
        return self.images.paths(indices, draws).fps.float()


@lru_cache(maxsize=4)
def sized_digits(split: Split, edge: int) -> tuple[Tensor, Tensor, Tensor]:
    """Digits (N, edge, edge) in [0, 1], labels int64 (N,), and their numbers among all digits, int64 (N,); not to be changed."""
    digits, labels, numbers = read_digits(split)
    ink = torch.from_numpy(digits).float() / 255
    if edge != ink.shape[-1]:
        ink = F.interpolate(ink, (edge, edge), mode="bilinear", antialias=True)
    return ink[:, 0], torch.from_numpy(labels), torch.from_numpy(numbers)


@lru_cache(maxsize=4)
def learned_centres(edge: int, count: int) -> Tensor:
    """The centres of the groups of the training digits of this size, not to be changed."""
    return centres_of(sized_digits("train", edge)[0], count)


def fold(x: Tensor, length: Tensor) -> Tensor:
    """The line x reflected at 0 and at `length`, which broadcasts with it: the same in [0, length]; 0 where length is 0."""
    return torch.where(length > 0, length - ((x % (2 * length)) - length).abs(), 0.0)


def shifted(ink: Tensor, corner: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, d, d) with their upper left corners at `corner`, (B, T, 2) pixels, on black: float32 (B, T, *size).

    By bilinear interpolation, of single products and sums: a frame is the same to the bit in whatever batch.
    """
    n, frames, edge = len(ink), corner.shape[1], ink.shape[-1] + 1
    whole = corner.floor()
    down, across = (corner - whole).float()[..., None, None].unbind(2)  # (B, T, 1, 1)
    upper = F.pad(ink, (0, 1, 0, 1))[:, None] * (1 - across) + F.pad(ink, (1, 0, 0, 1))[:, None] * across
    lower = F.pad(ink, (0, 1, 1, 0))[:, None] * (1 - across) + F.pad(ink, (1, 0, 1, 0))[:, None] * across
    moved = upper * (1 - down) + lower * down  # (B, T, d + 1, d + 1)
    height, width = size[0] + 1, size[1] + 1  # the last row and column stay black, where the shift ends at the wall
    first = (whole[..., 0] * width + whole[..., 1]).long()
    inner = torch.arange(edge)[:, None] * width + torch.arange(edge)
    places = (first[..., None, None] + inner).view(n * frames, -1)
    canvas = ink.new_zeros(n * frames, height * width).scatter_(1, places, moved.view(n * frames, -1))
    return canvas.view(n, frames, height, width)[..., :-1, :-1]
