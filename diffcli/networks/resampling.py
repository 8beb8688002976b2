"""How the levels of a U-Net are joined, as a preset names it: `RESAMPLERS` maps a name to what halves or doubles the size.

Contract: (B, C, H, W) goes down to (B, C, H/2, W/2), rounded up, and up to whatever `size` is asked for.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

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

    def __init__(self, channels: int, resample: Resample) -> None:
        super().__init__()
        self.resample = resample
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, signal: Signal, size: Size | None = None) -> Tensor:
        size = size or (-(-x.shape[2] // 2), -(-x.shape[3] // 2))
        return self.conv(F.interpolate(x, size=size, mode="bilinear", align_corners=False))


RESAMPLERS: dict[Resampling, Callable[[int, BlockOptions, Resample], nn.Module]] = {
    "residual": lambda channels, options, way: ResBlock(channels, channels, options, way),  # ADM
    "conv": lambda channels, options, way: ConvResample(channels, way, options.down_padding),  # Ho et al. 2020
    "pool": lambda channels, options, way: PoolResample(way),
    "interpolate": lambda channels, options, way: InterpolateResample(channels, way),
}
