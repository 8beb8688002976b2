"""The encoder of a U-Net as a classifier of noisy images: its last level, pooled by attention, gives the features.

forward(x (B, C, H, W) in [-1, 1], time (B,)) -> features (B, D); `head` makes them logits (B, num_classes).
Source: Dhariwal & Nichol 2021, section 4 and appendix H (arXiv 2105.05233), and the layout of their code.
"""

from collections.abc import Iterable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config, ImageShape
from diffcli.networks.blocks import BlockName
from diffcli.networks.conditioning import CondShape
from diffcli.networks.group_norm import GroupNorm
from diffcli.networks.layers import HeadOrder, Signal
from diffcli.networks.levels import Level
from diffcli.networks.unet import UNet, UNetConfig


class TrunkConfig(Config):
    """The levels of a U-Net on the way down and its middle; the keys are those of `UNetConfig`."""

    kind: Literal["trunk"] = "trunk"
    width: int = Field(128, ge=1, description="channels that mult counts in")
    mult: tuple[int | float, ...] = Field((1, 2, 3, 4), min_length=1, description="channels of each level / width")
    blocks: tuple[BlockName, ...] = Field(("res", "attention") * 4, min_length=1, description="of each level, in order")
    attend_at: tuple[int, ...] = Field((32, 16, 8), description="feature-map sizes where positions attend")
    head_dim: int = Field(64, ge=1, description="channels of a head of attention")
    qkv: HeadOrder = Field("by_head", description="order of the rows of attention's first layer")

    @property
    def unet(self) -> UNetConfig:
        """The U-Net of which it is the encoder."""
        return UNetConfig.model_validate(self.model_dump(exclude={"kind"}) | {"resample": "residual"})

    def build(self, shape: ImageShape, num_classes: int, timed: bool = False) -> "Trunk":
        return Trunk(self.unet.build(tuple(shape), 1, CondShape()), shape, num_classes)


class Trunk(nn.Module):
    """See the module's docstring; built by `TrunkConfig`. Without a time it takes the image for a clean one."""

    def __init__(self, unet: UNet, shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        unet.up, unet.head = nn.ModuleList(), nn.Identity()  # type: ignore[assignment]
        channels = unet.config.widths[-1]
        unet.norm = GroupNorm(channels)
        smallest = [unet.config.sizes(side)[-1] for side in (shape.height, shape.width)]
        self.num_classes, self.feature_dim = num_classes, channels
        self.unet = unet
        self.pool = AttentionPool(channels, unet.config.head_dim, smallest[0] * smallest[1])
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, D). time: (B,), 0..1000."""
        pooled: Tensor = self.pool(F.silu(self.unet.norm(self.stages(x, time)[-1])))
        return pooled

    def stages(self, x: Tensor, time: Tensor | None = None) -> list[Tensor]:
        """The output of each level for x, (B, width x mult[i], H / 2^i, W / 2^i), and last that of the middle."""
        times = x.new_zeros(len(x), dtype=torch.float32) if time is None else time
        signal, found = Signal(self.unet.embedding(times, None)), []
        h = self.unet.stem(x)
        for level in cast(Iterable[Level], self.unet.down):
            for stage in level.stages:
                h = stage(h, signal)
            found.append(h)
            if level.resample is not None:
                h = level.resample(h, signal)
        return [*found, self.unet.middle(h, signal)]


class AttentionPool(nn.Module):
    """(B, C, H, W) -> (B, C): the mean of all positions attends to them and itself, each with a learned position embedding.

    Source: Radford et al. 2021, section 2.4 (arXiv 2103.00020).
    """

    def __init__(self, channels: int, head_dim: int, length: int) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.position = nn.Parameter(torch.randn(channels, length + 1) / channels**0.5)  # of the mean, then of each
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        tokens = torch.cat([flat.mean(2, keepdim=True), flat], dim=2) + self.position  # (B, C, L + 1)
        q, k, v = (
            self.qkv(tokens.mT).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, heads, L + 1, D) each
        return F.scaled_dot_product_attention(q[:, :, :1], k, v).flatten(1)
