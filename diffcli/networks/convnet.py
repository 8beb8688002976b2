"""A small residual classifier for images of 28x28 to 32x32 pixels, for scores on its features and for classifier guidance.

forward(x (B, C, H, W) in [-1, 1]) -> features (B, D); `head` makes them logits (B, num_classes). A `timed`
one also receives the time of x, as denoising networks do; then x may be noisy.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config, ImageShape
from diffcli.networks.group_norm import GroupNorm
from diffcli.networks.layers import Embedding


class ConvNetConfig(Config):
    """Three sizes, one residual block each, of width x (1, 2, 4) channels; global mean; one linear layer.

    Group norm, not batch norm: so an image's logits, and an update, do not depend on the split of a batch to processes.
    """

    kind: Literal["convnet"] = "convnet"
    width: int = Field(
        32, ge=1, description="channels of the first of three sizes; the others have 2 and 4 times as many"
    )

    def build(self, shape: ImageShape, num_classes: int, timed: bool = False) -> "ConvNet":
        return ConvNet(shape.channels, self.width, num_classes, timed)


class ConvNetBlock(nn.Module):
    """Conv, norm, ReLU, conv, norm, which `emb` values scale and shift where it is not 0; residual; ReLU."""

    def __init__(self, channels: int, out_channels: int, stride: int, emb: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = GroupNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = GroupNorm(out_channels)
        self.skip = nn.Conv2d(channels, out_channels, 1, stride, bias=False) if stride > 1 else nn.Identity()
        self.modulate = nn.Linear(emb, 2 * out_channels) if emb else None

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        """emb: (B, E), None where the block is not modulated."""
        modulation = None if self.modulate is None else self.modulate(emb)
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.skip(x) + self.norm2(self.conv2(h), modulation))


class ConvNet(nn.Module):
    """See the module's docstring. `feature_dim` is D."""

    def __init__(self, channels: int, width: int, num_classes: int, timed: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.feature_dim = 4 * width
        emb = self.feature_dim if timed else 0
        self.time = Embedding(width, emb, vector=0, activation="relu") if timed else None
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=1, padding=1, bias=False),
            GroupNorm(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            ConvNetBlock(width, width, 1, emb),
            ConvNetBlock(width, 2 * width, 2, emb),
            ConvNetBlock(2 * width, 4 * width, 2, emb),
        )
        self.head = nn.Linear(self.feature_dim, num_classes)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, D) float, non-negative; in eval mode a function of each image alone. time: (B,), 0..1000, if it is timed."""
        return self.stages(x, time)[-1].mean(dim=(2, 3))

    def stages(self, x: Tensor, time: Tensor | None = None) -> list[Tensor]:
        """The outputs of the residual blocks for x, (B, width x (1, 2, 4), H / (2, 4, 8), W / (2, 4, 8)), not negative."""
        emb = None if self.time is None else self.time(time, None)
        found = []
        for layer in self.body:
            x = layer(x, emb) if isinstance(layer, ConvNetBlock) else layer(x)
            if isinstance(layer, ConvNetBlock):
                found.append(x)
        return found
