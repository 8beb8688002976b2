"""A convolutional network that enlarges a picture in one step: the baseline for diffusion upscalers.

Residual blocks without norms work at the size of the input and a pixel shuffle enlarges; they add to the bicubic picture.
Source: Lim et al. 2017, EDSR (arXiv 1707.02921); Shi et al. 2016, pixel shuffle (arXiv 1609.05158).
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config
from diffcli.networks.layers import zero


class EnlargerConfig(Config):
    """width: channels of the blocks. depth: number of blocks of two convolutions."""

    width: int = Field(64, ge=1, description="channels of the blocks")
    depth: int = Field(8, ge=1, description="blocks of two convolutions")

    def build(self, channels: int, factor: int) -> "Enlarger":
        return Enlarger(self, channels, factor)


class EnlargerBlock(nn.Module):
    """x + conv(relu(conv(x))), (B, width, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class Enlarger(nn.Module):
    """(B, C, h, w) in [-1, 1] -> (B, C, factor h, factor w) about [-1, 1]; untrained it is bicubic enlargement."""

    def __init__(self, config: EnlargerConfig, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.stem = nn.Conv2d(channels, config.width, 3, padding=1)
        self.blocks = nn.Sequential(*(EnlargerBlock(config.width) for _ in range(config.depth)))
        self.head = zero(nn.Conv2d(config.width, channels * factor**2, 3, padding=1))

    def forward(self, low: Tensor) -> Tensor:
        stem = self.stem(low)
        detail = F.pixel_shuffle(self.head(stem + self.blocks(stem)), self.factor)
        return F.interpolate(low, scale_factor=self.factor, mode="bicubic") + detail
