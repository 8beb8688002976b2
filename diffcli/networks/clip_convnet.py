"""A small residual classifier of clips, whose convolutions see neighbouring frames: its features know motion.

forward(x (B, C, T, H, W) in [-1, 1]) -> features (B, D); `head` makes them logits (B, num_classes). Any T: time is never
halved, and the mean is over all frames. Source: R3D of Tran et al. 2018 (arXiv 1711.11248), made small.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config
from diffcli.networks.group_norm import GroupNorm


class ClipConvNetConfig(Config):
    """Three sizes, one residual block each, of width x (1, 2, 4) channels; 3x3x3 convolutions; mean; one linear layer."""

    kind: Literal["clip_convnet"] = "clip_convnet"
    width: int = Field(
        16, ge=1, description="channels of the first of three sizes; the others have 2 and 4 times as many"
    )

    def build(self, channels: int, num_classes: int) -> "ClipConvNet":
        return ClipConvNet(channels, self.width, num_classes)


class ClipConvNetBlock(nn.Module):
    """Conv, norm, ReLU, conv, norm; residual; ReLU. stride: over rows and columns."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        over = (1, stride, stride)
        self.conv1 = nn.Conv3d(channels, out_channels, 3, over, padding=1, bias=False)
        self.norm1 = GroupNorm(out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = GroupNorm(out_channels)
        self.skip = nn.Conv3d(channels, out_channels, 1, over, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.skip(x) + self.norm2(self.conv2(h)))


class ClipConvNet(nn.Module):
    """See the module's docstring. `feature_dim` is D."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.feature_dim = 4 * width
        self.body = nn.Sequential(
            nn.Conv3d(channels, width, 3, padding=1, bias=False),
            GroupNorm(width),
            nn.ReLU(),
            nn.MaxPool3d((1, 2, 2)),
            ClipConvNetBlock(width, width, 1),
            ClipConvNetBlock(width, 2 * width, 2),
            ClipConvNetBlock(2 * width, 4 * width, 2),
        )
        self.head = nn.Linear(self.feature_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) float, not negative; in eval mode a function of each clip alone."""
        return self.body(x).mean(dim=(2, 3, 4))
