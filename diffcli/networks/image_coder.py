"""The two halves of a first stage: `ImageEncoder` maps an image to a latent, `ImageDecoder` maps it back.

Both are levels of residual blocks, each half the size of the one before (or twice, in the decoder), and a middle of two blocks
around one attention with a single head. Residual branches end in zeros at first, so both halves start as their plain
convolutions. The last layers of both do not, since zeros there would block all gradients. Source: Esser et al. 2020 (arXiv
2012.09841), Rombach et al. 2021 (arXiv 2112.10752), whose published weights fit.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from diffcli.networks.dropout import Dropout, MaskBits
from diffcli.networks.group_norm import GroupNorm
from diffcli.networks.layers import Attention, EnlargingConv, Pointwise, zero
from diffcli.networks.saving import run


class CoderOptions(NamedTuple):
    """Options of both halves. widths: channels of each level, the finest first."""

    widths: tuple[int, ...]
    depth: int
    attends: tuple[bool, ...]  # of each level
    middle_blocks: int
    middle_attention: bool
    vector: int
    dropout: float
    save_memory: bool


class Aside(NamedTuple):
    """The inputs of every block beside x."""

    vector: Tensor | None = None  # (B, V)
    bits: MaskBits | None = None  # what dropout follows from


class CoderBlock(nn.Module):
    """Norm, SiLU, conv; norm (scaled and shifted by the vector, where there is one), SiLU, dropout, conv; residual."""

    def __init__(self, channels: int, out_channels: int, options: CoderOptions) -> None:
        super().__init__()
        self.norm1 = GroupNorm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.modulate = zero(nn.Linear(options.vector, 2 * out_channels)) if options.vector else None
        self.norm2 = GroupNorm(out_channels)
        self.dropout = Dropout(options.dropout)
        self.conv2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = Pointwise(channels, out_channels) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, aside: Aside) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.norm2(h, None if self.modulate is None else self.modulate(aside.vector))
        return self.skip(x) + self.conv2(self.dropout(F.silu(h), aside.bits))


class Halving(nn.Module):
    """A convolution with stride 2, zeros after the last row and column alone: (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Doubling(nn.Module):
    """Nearest neighbour, then a convolution: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = EnlargingConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, (2 * x.shape[2], 2 * x.shape[3]))


class CoderLevel(nn.Module):
    """Blocks at one size, each followed by an attention if the level attends, then `resample`, if there is one."""

    def __init__(
        self,
        channels: Sequence[int],
        options: CoderOptions,
        attends: bool,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.save_memory = options.save_memory
        self.blocks = nn.ModuleList(CoderBlock(a, b, options) for a, b in pairwise(channels))
        self.attentions = nn.ModuleList(Attention(b, head_dim=b) for b in channels[1:] if attends)
        self.resample = resample

    def forward(self, x: Tensor, aside: Aside) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = self.run(block, x, aside)
            if i < len(self.attentions):
                x = self.run(self.attentions[i], x)
        return x if self.resample is None else self.resample(x)

    def run(self, layer: nn.Module, *inputs: object) -> Tensor:
        return run(layer, *inputs, save_memory=self.save_memory)


def middle(options: CoderOptions) -> CoderLevel:
    """Two blocks or none, and an attention between them where there is one."""
    channels = [options.widths[-1]] * (options.middle_blocks + 1)
    level = CoderLevel(channels, options, attends=options.middle_attention)
    del level.attentions[1:]
    return level


class ImageEncoder(nn.Module):
    """(B, channels, H, W) -> (B, out_channels, H/f, W/f)."""

    def __init__(self, channels: int, out_channels: int, options: CoderOptions) -> None:
        super().__init__()
        widths, last = options.widths, len(options.widths) - 1
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            CoderLevel(
                [widths[max(i - 1, 0)]] + [width] * options.depth,
                options,
                options.attends[i],
                Halving(width) if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.middle = middle(options)
        self.norm = GroupNorm(widths[-1])
        self.head = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor, aside: Aside = Aside()) -> Tensor:
        h = self.stem(x)
        for level in self.levels:
            h = level(h, aside)
        return self.head(F.silu(self.norm(self.middle(h, aside))))


class ImageDecoder(nn.Module):
    """(B, channels, h, w) -> (B, out_channels, f h, f w). `levels` stand in the order in which they run, the coarsest first."""

    def __init__(self, channels: int, out_channels: int, options: CoderOptions) -> None:
        super().__init__()
        widths, last = options.widths, len(options.widths) - 1
        self.stem = nn.Conv2d(channels, widths[-1], 3, padding=1)
        self.middle = middle(options)
        self.levels = nn.ModuleList(
            CoderLevel(
                [widths[min(i + 1, last)]] + [widths[i]] * (options.depth + 1),
                options,
                options.attends[i],
                Doubling(widths[i]) if i else None,
            )
            for i in reversed(range(len(widths)))
        )
        self.norm = GroupNorm(widths[0])
        self.head = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, z: Tensor, aside: Aside = Aside()) -> Tensor:
        h = self.middle(self.stem(z), aside)
        for level in self.levels:
            h = level(h, aside)
        return self.head(F.silu(self.norm(h)))
