"""The U-Net of the ADM / improved-DDPM line: forward(x (B, C, H, W), time (B,), cond) -> (B, out, H, W).

A level's `blocks` run in order and are grouped into stages: a stage starts at every block that can change the width. The
encoder keeps its output after each stage; the decoder has one stage more a level and concatenates what was kept. Any H and
W work: sizes round up on the way down, and the way up returns to the size of the skip.
Source: Dhariwal & Nichol 2021 (arXiv 2105.05233); Nichol & Dhariwal 2021 (arXiv 2102.09672).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import ImageShape, UserError
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.networks.dropout import number_dropouts
from diffcli.networks.layers import (
    Attention,
    ConvResample,
    Embedding,
    GroupNorm,
    Pointwise,
    Resample,
    ResBlock,
    Signal,
    Size,
    zero,
)
from diffcli.networks.network import NetworkConfig

BlockName = Literal["res", "attention"]


class UNetConfig(NetworkConfig):
    """width x mult[i] channels at level i, each level half the size of the one before."""

    kind: Literal["unet"] = "unet"
    width: int = Field(128, ge=1)
    mult: tuple[int, ...] = Field((1, 2, 2, 2), min_length=1)
    blocks: tuple[BlockName, ...] = Field(("res", "attention", "res", "attention"), min_length=1)
    attend_at: tuple[int, ...] = (16,)  # feature-map sizes (longer side) at the training size where `attention` acts
    head_dim: int = Field(64, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    resample: Literal["residual", "conv"] = "residual"  # residual: inside a ResBlock (ADM); conv: Ho et al. 2020

    def build(self, shape: ImageShape, out_channels: int, cond: CondShape) -> "UNet":
        if cond.tokens:
            raise UserError(
                f"task.network.kind 'unet' takes no tokens, but the conditioners give {cond.tokens} wide ones",
                "use conditioners of the vector or spatial slot, such as {kind: class}",
            )
        if any(m < 1 for m in self.mult):
            raise UserError(f"task.network.mult is {list(self.mult)}", "each level's multiple of width is at least 1")
        sizes = self.sizes(max(shape.height, shape.width))
        self.check_attention(sizes)
        return UNet(self, shape.channels, out_channels, cond, sizes)

    def sizes(self, size: int) -> list[int]:
        """The feature-map size at each level, for images whose longer side is `size`."""
        sizes = [size]
        for _ in self.mult[1:]:
            sizes.append(-(-sizes[-1] // 2))
        return sizes

    def check_attention(self, sizes: list[int]) -> None:
        for size in self.attend_at:
            if size not in sizes:
                raise UserError(
                    f"task.network.attend_at names {size}, a size that never occurs at the training size {sizes[0]}",
                    f"choose among {', '.join(map(str, sizes))}",
                )
        attended = [self.width * m for m, s in zip(self.mult, sizes, strict=True) if s in self.attend_at]
        for channels in [*attended, self.width * self.mult[-1]]:  # the middle always attends
            if channels % self.head_dim:
                raise UserError(
                    f"task.network.head_dim is {self.head_dim}, which does not divide the {channels} channels attended",
                    f"choose a divisor, such as --set task.network.head_dim={largest_divisor(channels, self.head_dim)}",
                )


def largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of n up to limit."""
    return next(d for d in range(min(n, limit), 0, -1) if n % d == 0)


class BlockKind(NamedTuple):
    """How a block of one name is made, and where it may stand."""

    build: Callable[[int, int, int, UNetConfig], nn.Module]  # (channels, out_channels, emb_dim, config)
    changes_width: bool  # starts a stage; the others keep their width
    everywhere: bool  # False: only at the sizes of attend_at


BLOCKS: dict[BlockName, BlockKind] = {
    "res": BlockKind(lambda c, out, emb, cfg: ResBlock(c, out, emb, cfg.dropout), True, True),
    "attention": BlockKind(lambda c, out, emb, cfg: Attention(c, cfg.head_dim), False, False),
}


def stages(blocks: tuple[BlockName, ...]) -> list[list[BlockName]]:
    """[res, attention, res] -> [[res, attention], [res]]: each stage after the first starts where width may change."""
    grouped: list[list[BlockName]] = [[]]
    for name in blocks:
        if BLOCKS[name].changes_width and grouped[-1]:
            grouped.append([])
        grouped[-1].append(name)
    return grouped


class Stage(nn.Module):
    """Blocks in order; the first takes the width from `channels` to `out_channels`, by a 1x1 projection if it must."""

    def __init__(
        self, names: list[BlockName], channels: int, out_channels: int, emb_dim: int, config: UNetConfig
    ) -> None:
        super().__init__()
        starts = bool(names) and BLOCKS[names[0]].changes_width
        project = channels != out_channels and not starts
        self.project = Pointwise(channels, out_channels) if project else None
        widths = [channels if starts else out_channels] + [out_channels] * len(names)
        self.blocks = nn.ModuleList(
            BLOCKS[name].build(width, out_channels, emb_dim, config) for name, width in zip(names, widths, strict=False)
        )

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        if self.project is not None:
            x = self.project(x)
        for block in self.blocks:
            x = block(x, signal)
        return x


class Level(nn.Module):
    """The stages at one size, and the resampling that leads to the next size, where there is one."""

    def __init__(self, stages: list[Stage], resample: nn.Module | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.resample = resample


class UNet(nn.Module):
    """See the module's docstring; built by `UNetConfig`, whose `sizes` are those of the levels."""

    def __init__(self, config: UNetConfig, channels: int, out_channels: int, cond: CondShape, sizes: list[int]) -> None:
        super().__init__()
        self.config = config
        self.emb_dim = 4 * config.width
        widths = [config.width * m for m in config.mult]
        self.embedding = Embedding(config.width, self.emb_dim, cond.vector)
        self.stem = nn.Conv2d(channels + cond.spatial, config.width, 3, padding=1)
        kept = [config.width]  # the widths of what the encoder keeps
        self.down = nn.ModuleList(self.encoder(widths, sizes, kept))
        self.middle = Stage(["res", "attention", "res"], widths[-1], widths[-1], self.emb_dim, config)
        self.up = nn.ModuleList(self.decoder(widths, sizes, kept))
        self.norm = GroupNorm(widths[0])
        self.head = zero(nn.Conv2d(widths[0], out_channels, 3, padding=1))
        number_dropouts(self)

    def encoder(self, widths: list[int], sizes: list[int], kept: list[int]) -> Iterator[Level]:
        width = kept[-1]
        for i, (out, size) in enumerate(zip(widths, sizes, strict=True)):
            made = []
            for names in self.stages_at(size):
                made.append(Stage(names, width, out, self.emb_dim, self.config))
                kept.append(out)
                width = out
            last = i == len(widths) - 1
            if not last:
                kept.append(out)
            yield Level(made, None if last else self.resample(out, "down"))

    def decoder(self, widths: list[int], sizes: list[int], kept: list[int]) -> Iterator[Level]:
        width = widths[-1]
        for i, (out, size) in reversed(list(enumerate(zip(widths, sizes, strict=True)))):
            made = []
            names_of_stages = self.stages_at(size)
            for names in [*names_of_stages, names_of_stages[-1]]:  # one more than the encoder: level i keeps n + 1
                made.append(Stage(names, width + kept.pop(), out, self.emb_dim, self.config))
                width = out
            yield Level(made, self.resample(out, "up") if i else None)

    def stages_at(self, size: int) -> list[list[BlockName]]:
        """The stages of a level, without the blocks that do not act at its size."""
        attends = size in self.config.attend_at
        return [[n for n in names if attends or BLOCKS[n].everywhere] for names in stages(self.config.blocks)]

    def resample(self, channels: int, direction: Resample) -> nn.Module:
        if self.config.resample == "conv":
            return ConvResample(channels, direction)
        return ResBlock(channels, channels, self.emb_dim, self.config.dropout, direction)

    def forward(self, x: Tensor, time: Tensor, cond: Conditioning = Conditioning()) -> Tensor:
        signal = Signal(self.embedding(time, cond.vector), cond.seeds)
        h = self.stem(x if cond.spatial is None else torch.cat([x, cond.spatial], dim=1))
        kept = [h]
        for level in cast(Iterable[Level], self.down):
            for stage in level.stages:
                h = stage(h, signal)
                kept.append(h)
            if level.resample is not None:
                h = level.resample(h, signal)
                kept.append(h)
        h = self.middle(h, signal)
        for level in cast(Iterable[Level], self.up):
            for stage in level.stages:
                h = stage(torch.cat([h, kept.pop()], dim=1), signal)
            if level.resample is not None:
                h = level.resample(h, signal, image_size(kept[-1]))
        return self.head(F.silu(self.norm(h)))


def image_size(x: Tensor) -> Size:
    """(H, W) of (B, C, H, W)."""
    return x.shape[2], x.shape[3]
