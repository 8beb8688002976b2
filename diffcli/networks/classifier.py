"""A small residual classifier for 28x28 to 32x32 images: it labels samples, and its features score them offline.

forward(x (B, C, H, W) in [-1, 1]) -> logits (B, num_classes); features(x) -> (B, D), the layer before the logits.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config, ImageShape
from diffcli.networks.layers import GroupNorm


class ConvNetConfig(Config):
    """Three sizes, one residual block each, of width x (1, 2, 4) channels; global mean; one linear layer.

    Group norm, not batch norm: an image's logits, and so an update, do not depend on how a batch was dealt to processes.
    """

    kind: Literal["convnet"] = "convnet"
    width: int = Field(32, ge=1)

    def build(self, shape: ImageShape, num_classes: int) -> "ConvNet":
        return ConvNet(shape.channels, self.width, num_classes)


class Residual(nn.Module):
    """Conv, norm, ReLU, conv, norm; residual; ReLU."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = GroupNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = GroupNorm(out_channels)
        self.skip = nn.Conv2d(channels, out_channels, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.skip(x) + self.norm2(self.conv2(h)))


class ConvNet(nn.Module):
    """See the module's docstring. `feature_dim` is D."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.feature_dim = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=1, padding=1, bias=False),
            GroupNorm(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            Residual(width, width, 1),
            Residual(width, 2 * width, 2),
            Residual(2 * width, 4 * width, 2),
        )
        self.head = nn.Linear(self.feature_dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, D) float, non-negative; in eval mode a function of each image alone."""
        return self.body(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
