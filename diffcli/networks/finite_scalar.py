"""Finite scalar quantisation: every channel of the latent is rounded to one of a few levels, and there is no codebook.

Channel i takes L_i equally spaced values in [-1, 1]; the code of a position is the number that its levels spell, the first
channel the fastest digit. Source: Mentzer et al. 2023, section 3.1 and appendix A (arXiv 2309.15505).
"""

import math
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import UserError
from diffcli.kmeans import counts_of
from diffcli.networks.bottleneck import Bottleneck, Coded, Gathers, nothing
from diffcli.networks.code_usage import CodeUsage, CountedConfig

MARGIN = 1e-3  # of the outermost levels' half width that tanh never reaches


class Grid(NamedTuple):
    """Constants of the levels of each channel, (C, 1, ...) each, to combine with maps (B, C, *S)."""

    levels: Tensor  # int64   L
    width: Tensor  # int64   L // 2: levels are -width..L - 1 - width
    place: Tensor  # int64   of its digit in a code
    half: Tensor
    offset: Tensor
    shift: Tensor


class FiniteScalarQuantiser(Bottleneck):
    """levels: L of each channel, at least 3.

    h is bounded by half * tanh(h + shift) - offset with half = (L - 1) / 2: offset is 1/2 for even L, else 0, and shift is such
    that 0 goes to 0. (The paper's listing has tan where the inverse of tanh belongs: its 0 is not quite 0.) Rounding gives L
    integers about 0; z is that over L // 2. The rounding passes gradients as they are.
    """

    levels: Tensor  # (C,) int64

    def __init__(self, levels: tuple[int, ...], window: int | None) -> None:
        super().__init__()
        self.inputs = self.channels = len(levels)
        self.codes = math.prod(levels)
        self.bits = math.log2(self.codes)
        self.register_buffer("levels", torch.tensor(levels))
        self.usage = CodeUsage(self.codes, window)
        self.seen: list[Tensor] = []  # (b, *S) codes of each micro-batch since the last update

    def grid(self, axes: int) -> Grid:
        """For maps with so many axes, batch and channels among them."""
        levels = self.levels.view(-1, *[1] * (axes - 2))
        half = (levels - 1) / 2 * (1 - MARGIN)
        offset = (1 - levels % 2) / 2
        return Grid(levels, levels // 2, levels.cumprod(0) // levels, half, offset, (offset / half).atanh())

    def bounded(self, h: Tensor) -> Tensor:
        """h (B, C, *S) between the outermost levels, one apart."""
        grid = self.grid(h.ndim)
        return grid.half * (h.float() + grid.shift).tanh() - grid.offset

    def forward(self, h: Tensor, noise: Tensor | None) -> Coded:
        bounded = self.bounded(h)
        level = bounded.detach().round()
        z = (level + (bounded - bounded.detach())) / self.grid(h.ndim).width
        return Coded(z, nothing(h), self.usage.terms(len(h)) if self.training else {}, self.coded(level))

    def latent(self, h: Tensor, noise: Tensor | None) -> Tensor:
        return self.bounded(h) / self.grid(h.ndim).width

    def snapped(self, z: Tensor) -> Tensor:
        return self.level(z) / self.grid(z.ndim).width

    def level(self, z: Tensor) -> Tensor:
        """The integers nearest to latents z (B, C, *S), from -(L // 2) to L - 1 - L // 2."""
        grid = self.grid(z.ndim)
        return (z.float() * grid.width).round().clamp(-grid.width, grid.levels - 1 - grid.width)

    def coded(self, level: Tensor) -> Tensor:
        """Codes (B, *S) int64 of levels (B, C, *S); NaN counts as level 0, so that every code is valid."""
        grid = self.grid(level.ndim)
        return ((level.nan_to_num(0).long() + grid.width) * grid.place).sum(dim=1)

    def codes_of(self, z: Tensor) -> Tensor:
        """Codes (B, *S) int64, below `codes`, of latents z (B, C, *S)."""
        return self.coded(self.level(z))

    def of_codes(self, codes: Tensor) -> Tensor:
        """The latents (B, C, *S) of codes (B, *S), as inputs of the decoder."""
        grid = self.grid(codes.ndim + 1)
        return (codes[:, None] // grid.place % grid.levels - grid.width) / grid.width

    def remember(self, coded: Coded, h: Tensor) -> None:
        assert coded.codes is not None
        self.seen.append(coded.codes)

    def update(self, ranks: Gathers) -> None:
        if self.seen:
            codes = ranks.gather(torch.cat(self.seen))
            self.seen.clear()
            self.usage.add(counts_of(codes, self.codes), len(codes))


class Fsq(CountedConfig):
    """Every channel rounded to one of its levels."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=3)], ...] = Field(
        (8, 5, 5, 5), min_length=1, description="levels of each channel"
    )

    def build(self, latent: int, positions: int | None = None) -> FiniteScalarQuantiser:
        if latent != len(self.levels):
            raise UserError(
                f"task.network.latent is {latent}, but task.bottleneck.levels names {len(self.levels)} channels",
                f"use --set task.network.latent={len(self.levels)}, or name the levels of {latent} channels",
            )
        return FiniteScalarQuantiser(self.levels, self.window)
