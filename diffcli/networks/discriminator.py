"""The discriminator of adversarial first stages: it judges overlapping patches, each by one logit.

Group norm, not the batch norm of its source: so a logit depends on its image alone, and a step does not depend on the split of
its batch to micro-batches and processes.
"""

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config
from diffcli.networks.group_norm import GroupNorm

LAST = 3  # least pixels of a side for the two layers of stride 1
WIDEST = 8  # of a layer, in widths of the first
SPREAD_OF_WEIGHTS = 0.02  # standard deviation at first, as published


class PatchDiscriminatorConfig(Config):
    """`depth` layers halve the size: a logit sees 16, 34, 70, 142 pixels of each side for depth 1, 2, 3, 4."""

    kind: Literal["patch"] = "patch"
    width: int = Field(64, ge=1, description="channels of the first layer")
    depth: int = Field(
        3, ge=1, description="layers that halve the size: a logit sees 16, 34, 70 or 142 pixels for 1 to 4"
    )

    @property
    def least(self) -> int:
        """The least shorter side of images: it leaves 3 pixels for the last two layers, which take one each."""
        return int(LAST * 2**self.depth)

    def build(self, channels: int) -> "PatchDiscriminator":
        return PatchDiscriminator(channels, self.width, self.depth)


def deepest(side: int) -> int:
    """The largest depth for images with this shorter side; 0: none fits."""
    return max(0, (side // LAST).bit_length() - 1)


class PatchDiscriminator(nn.Module):
    """(B, C, H, W) in [-1, 1] -> logits (B, 1, h, w): positive is real.

    Source: Isola et al. 2016, appendix (arXiv 1611.07004), as Esser et al. 2020 use it (arXiv 2012.09841).
    """

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * min(2**i, WIDEST) for i in range(depth + 1)]
        self.stem = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=1 if i == depth else 2, padding=1, bias=False)
            for i, (a, b) in enumerate(pairwise(widths), start=1)
        )
        self.norms = nn.ModuleList(GroupNorm(b) for b in widths[1:])
        self.head = nn.Conv2d(widths[-1], 1, 4, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=SPREAD_OF_WEIGHTS)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.stem(x), 0.2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.leaky_relu(norm(conv(h)), 0.2)
        return self.head(h)
