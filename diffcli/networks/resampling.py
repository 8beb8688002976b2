"""Resampling between the levels of a U-Net: `RESAMPLERS` maps the name in a preset to modules that halve or double the size.

Contract: (B, C, H, W) goes down to (B, C, H/2, W/2), rounded up, and up to the given `size`.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from diffcli.networks.frames import TimeLayers
from diffcli.networks.layers import BlockOptions, ConvResample, Resample, ResBlock, Signal, Size, enlarge, halve

Resampling = Literal["residual", "conv", "pool", "interpolate"]


class PoolResample(nn.Module):
    """Without weights: 2x2 means down, nearest neighbour up."""

    def __init__(self, resample: Resample) -> None:
        super().__init__()
        self.resample = resample

    def forward(self, x: Tensor, signal: Signal, size: Size | None = None) -> Tensor:
        return halve(x) if size is None else enlarge(x, size)


class InterpolateResample(nn.Module):
    """Bilinear interpolation either way, then a 3x3 convolution (up: Odena et al. 2016, against checkerboards)."""

    def __init__(self, channels: int, options: BlockOptions, resample: Resample) -> None:
        super().__init__()
        self.resample = resample
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.temporal = TimeLayers(options.over_time, channels)

    def forward(self, x: Tensor, signal: Signal, size: Size | None = None) -> Tensor:
        size = size or (-(-x.shape[2] // 2), -(-x.shape[3] // 2))
        h = self.conv(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
        return self.temporal.after(0, h, signal.frames)


RESAMPLERS: dict[Resampling, Callable[[int, BlockOptions, Resample], nn.Module]] = {
    "residual": lambda channels, options, way: ResBlock(channels, channels, options, way),  # ADM
    "conv": ConvResample,  # Ho et al. 2020
    "pool": lambda channels, options, way: PoolResample(way),
    "interpolate": InterpolateResample,
}


class Reach(NamedTuple):
    """The reach of both directions of a resampling together, in positions of the coarse map and of the fine one."""

    coarse: int
    fine: int


REACHES: dict[Resampling, Reach] = {
    "residual": Reach(2, 2),
    "conv": Reach(1, 1),
    "pool": Reach(0, 0),
    "interpolate": Reach(2, 1),
}


def reach(levels: Sequence[Sequence[int | None]], between: Reach) -> int | None:
    """The reach of a network of such levels, in positions of the first. levels: that of each block, in positions of its level.

    None if a block depends on every position. Two positions of a level are one of the next, so that a window of r positions
    about one of the next is within 2 r + 1 of each of its two.
    """
    far = 0
    for i, blocks in reversed(list(enumerate(levels))):
        if None in blocks:
            return None
        far += sum(block for block in blocks if block is not None)
        far = far if i == 0 else 2 * (far + between.coarse) + 1 + between.fine
    return far
