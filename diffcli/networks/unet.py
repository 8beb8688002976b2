"""The U-Net of the ADM / improved-DDPM line: forward(x (B, C, H, W), time (B,), cond) -> (B, out, H, W), and so for clips.

A level's `blocks` run in order and are grouped into stages: a stage starts at every block that can change the width. The
encoder keeps its output after each stage; the decoder has one stage more at each level and concatenates the kept outputs. Any H
and W work: sizes round up on the way down, and the way up returns to the size of the skip. Source: Dhariwal & Nichol 2021
(arXiv 2105.05233); Nichol & Dhariwal 2021 (arXiv 2102.09672).
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from math import gcd
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import UserError
from diffcli.fields import check_buckets, misfit
from diffcli.networks.attention_blocks import SpatialTransformer
from diffcli.networks.blocks import BLOCKS, BlockName, stages
from diffcli.networks.conditioning import Conditioning, CondShape, joined_by
from diffcli.networks.dropout import mask_bits, number_dropouts
from diffcli.networks.frames import folded, frames_of, of_each_frame, unfolded
from diffcli.networks.group_norm import GroupNorm, set_norms
from diffcli.networks.layers import (
    Activation,
    BlockOptions,
    Embed,
    Embedding,
    HeadOrder,
    Padding,
    Resample,
    Signal,
    Size,
    zero,
)
from diffcli.networks.levels import Level, Stage
from diffcli.networks.network import divisors, largest_divisor, listed
from diffcli.networks.resampling import REACHES, RESAMPLERS, Resampling, reach
from diffcli.networks.saving import SAVE_MEMORY, run
from diffcli.networks.temporal import ConvTemporalConfig, MapAttention, NetworkOverTime


class UNetConfig(NetworkOverTime):
    """width x mult[i] channels at level i, each level half the size of the one before."""

    kind: Literal["unet"] = "unet"
    width: int = Field(128, ge=1, description="channels of the first level")
    mult: tuple[int | float, ...] = Field((1, 2, 2, 2), min_length=1, description="channels of each level / width")
    blocks: tuple[BlockName, ...] = Field(
        ("res", "attention", "res", "attention"), min_length=1, description="of each level, in their order"
    )
    middle: tuple[BlockName, ...] = Field(("res", "attention", "res"), description="blocks at the smallest size")
    attend_at: tuple[int, ...] = Field(
        (16,), description="longer sides of feature maps, in training, that have attention"
    )
    head_dim: int = Field(64, ge=1, description="channels of an attention head")
    heads: int | None = Field(None, ge=1, description="heads of every attention, whatever its width; null: by head_dim")
    fold: int = Field(
        1, ge=1, description="pixels along an edge that become the channels of one position before the first layer"
    )
    patch: int = Field(2, ge=1, description="side of the squares of patch_attention, in positions of the feature map")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of activations dropped in training")
    resample: Resampling = Field("residual", description="how the size is halved and doubled")
    activation: Activation = Field("silu", description="of the blocks; the head and the time embedding have SiLU")
    embed: Embed = Field("scale_shift", description="how time and condition enter: after a norm, or added before it")
    save_memory: bool = Field(False, description=SAVE_MEMORY)
    temporal: ConvTemporalConfig | None = Field(None, description="layers over time, for clips; null: for images")
    # only for imported weights
    qkv: HeadOrder = Field("by_head", description="rows of attention; by_part: OpenAI's use_new_attention_order")
    groups: int = Field(32, ge=1, description="a norm of C channels has gcd(groups, C) groups")
    norm_eps: float = Field(1e-5, gt=0, description="added to the variance in group norms")
    transformer_eps: float | None = Field(
        None, gt=0, description="of the norm before a spatial_transformer; null: norm_eps"
    )
    max_period: float = Field(10_000, gt=1, description="longest period of the time's sinusoids")
    time_scale: float = Field(1.0, gt=0, description="times 0..1000 become 0..1000 * this, for foreign weights")
    down_padding: Padding = Field("both", description="where zeros stand on the way down, for resample conv")

    @property
    def multiple(self) -> int:
        return self.fold

    @property
    def shift(self) -> int:
        return self.fold << (len(self.mult) - 1)

    def reach(self, shape: tuple[int, ...]) -> int | None:
        levels = [self.blocks_at(size) for size in self.sizes(max(shape[-2:]) // self.fold)]
        blocks = [list(chain(*stages, *stages, stages[-1])) for stages in levels]  # encoder, decoder
        blocks[-1].extend(self.middle)
        found = reach([[BLOCKS[name].reach for name in names] for names in blocks], REACHES[self.resample])
        return None if found is None else self.fold * (found + 2) + self.fold - 1  # stem and head see one more each

    def build(self, shape: tuple[int, ...], out_channels: int, cond: CondShape) -> "UNet":
        channels, height, width = shape[0], *shape[-2:]
        if any(m <= 0 or self.width * m % 1 for m in self.mult):
            hint = f"each level's multiple of task.network.width {self.width} gives a whole number of channels above 0"
            raise UserError(f"task.network.mult is {list(self.mult)}", hint)
        self.check_fold((height, width))
        sizes = self.sizes(max(height, width) // self.fold)
        self.check_attention(sizes)
        self.check_heads(sizes)
        self.check_patches(sizes, self.sizes(min(height, width) // self.fold))
        self.check_tokens(sizes, cond.tokens)
        self.check_time(sizes)
        mixing = [width for name, width, _ in self.placed(sizes) if BLOCKS[name].mixes]
        self.check_over_time([width // self.heads if self.heads else self.head_dim for width in mixing])
        return UNet(self, channels, out_channels, cond, sizes)

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [int(self.width * m) for m in self.mult]

    def sizes(self, size: int) -> list[int]:
        """The feature-map size at each level, for images whose longer side is `size`."""
        sizes = [size]
        for _ in self.mult[1:]:
            sizes.append(-(-sizes[-1] // 2))
        return sizes

    def blocks_at(self, size: int) -> list[list[BlockName]]:
        """The stages of the level of this size, without blocks that are not used there."""
        attends = size in self.attend_at
        return [[n for n in names if attends or not BLOCKS[n].heads] for names in stages(self.blocks)]

    def placed(self, sizes: list[int]) -> Iterator[tuple[BlockName, int, int]]:
        """(name, channels, size) of every block in use, of each level and of the middle."""
        for width, size in zip(self.widths, sizes, strict=True):
            yield from ((name, width, size) for names in self.blocks_at(size) for name in names)
        yield from ((name, self.widths[-1], sizes[-1]) for name in self.middle)

    def check_fold(self, size: Size) -> None:
        if fault := misfit(size, self.fold, f"task.network.fold {self.fold}"):
            near = "x".join(map(str, fault[1]))
            raise UserError(
                f"the network is given {fault[0]}",
                f"use images of {near}, or set task.network.fold to a divisor of both sides",
            )

    def check_buckets(self, sizes: Sequence[Size]) -> None:
        check_buckets(sizes, lambda size: misfit(size, self.fold, f"task.network.fold {self.fold}"))

    def check_attention(self, sizes: list[int]) -> None:
        """Checks that `attend_at` names sizes that occur, and only together with attention blocks."""
        for size in self.attend_at:
            if size not in sizes:
                raise UserError(
                    f"task.network.attend_at names {size}, a size that never occurs at the training size {sizes[0]}",
                    f"choose among {listed(sizes)}",
                )
        attending = [name for name in self.blocks if BLOCKS[name].heads]
        if attending and not self.attend_at:
            raise UserError(
                f"task.network.blocks names {attending[0]}, which acts at the sizes of task.network.attend_at, but that is []",
                f"set task.network.attend_at to some of {listed(sizes)}, or leave {attending[0]} out of task.network.blocks",
            )
        if self.attend_at and not attending:
            raise UserError(
                f"task.network.attend_at is {list(self.attend_at)}, but of task.network.blocks {list(self.blocks)} none attends",
                "set task.network.attend_at=[], or put attention into task.network.blocks",
            )

    def check_heads(self, sizes: list[int]) -> None:
        for name, channels, _ in self.placed(sizes):
            if BLOCKS[name].heads and self.heads and channels % self.heads:
                raise UserError(
                    f"task.network.heads is {self.heads}, which does not divide the {channels} channels of {name}",
                    f"choose a divisor, such as --set task.network.heads={largest_divisor(channels, self.heads)}",
                )
            if BLOCKS[name].heads and not self.heads and channels % self.head_dim:
                raise UserError(
                    f"task.network.head_dim is {self.head_dim}, which does not divide the {channels} channels of {name}",
                    f"choose a divisor, such as --set task.network.head_dim={largest_divisor(channels, self.head_dim)}",
                )

    def check_patches(self, sizes: list[int], shorter: list[int]) -> None:
        """Checks that patches tile maps of the training size, whose other side is `shorter`; others are padded and cropped."""
        other = dict(zip(sizes, shorter, strict=True))
        maps = [(name, size) for name, _, size in self.placed(sizes) if BLOCKS[name].patches]
        for name, size in maps:
            if self.patch >= size:
                raise UserError(
                    f"task.network.patch is {self.patch}, but {name} acts on maps of size {size}: one patch is all there is",
                    f"set task.network.patch below {size}, or leave {name} out there (attend_at, middle)",
                )
            if gcd(size, other[size]) % self.patch:
                smallest = min(size for _, size in maps)
                common = divisors(gcd(*(gcd(size, other[size]) for _, size in maps)))
                raise UserError(
                    f"task.network.patch is {self.patch}, which does not divide the maps of {name}, {size}x{other[size]} "
                    "at the training size",
                    f"choose a divisor of all its maps: {listed(d for d in common if d < max(2, smallest))}; "
                    f"or leave {name} out there (attend_at, middle)",
                )

    def check_tokens(self, sizes: list[int], width: int) -> None:
        """Checks that tokens and blocks that read them occur together. width: of the tokens of the conditioners; 0 is none."""
        readers = [name for name, _, _ in self.placed(sizes) if BLOCKS[name].tokens]
        known = " or ".join(name for name, kind in BLOCKS.items() if kind.tokens)
        if readers and not width:
            raise UserError(
                f"task.network.blocks or .middle names {readers[0]}, but no conditioner gives tokens to attend to",
                "put one that does into task.conditioners (kind text, or kind class with tokens: 4), or take the block out",
            )
        if width and not readers:
            raise UserError(
                f"the conditioners give tokens {width} wide, but no block of task.network reads them",
                f"put {known} into task.network.middle, or into task.network.blocks with a size in attend_at",
            )

    def check_time(self, sizes: list[int]) -> None:
        """Checks that a block receives the time; a norm with one channel in a group would remove what was added before it."""
        if self.resample != "residual" and not any(BLOCKS[name].hears for name, _, _ in self.placed(sizes)):
            raise UserError(
                f"task.network.blocks is {list(self.blocks)} and middle {list(self.middle)}: no block receives the time",
                f"put one of {', '.join(name for name, kind in BLOCKS.items() if kind.hears)} into task.network.middle",
            )
        if self.embed == "add" and all(self.groups % width == 0 for width in self.widths):
            raise UserError(
                f"task.network.embed is 'add', but at widths of at most {self.groups} channels each group of a norm holds "
                "one channel and removes what is added to it: no block would receive the time",
                "set task.network.embed=scale_shift, or take a larger width or a smaller task.network.groups",
            )


class UNet(nn.Module):
    """See the module's docstring; built by `UNetConfig`, whose `sizes` are those of the levels."""

    def __init__(self, config: UNetConfig, channels: int, out_channels: int, cond: CondShape, sizes: list[int]) -> None:
        super().__init__()
        self.config = config
        self.options = BlockOptions(
            emb=4 * config.width,
            tokens=cond.tokens,
            head_dim=config.head_dim,
            qkv=config.qkv,
            down_padding=config.down_padding,
            patch=config.patch,
            dropout=config.dropout,
            activation=config.activation,
            embed=config.embed,
            over_time=config.temporal.follower if config.temporal else None,
        )
        widths, first = config.widths, min(config.width, config.widths[0])  # the stem of ADM at 512x512 is narrower
        self.embedding = Embedding(
            config.width, self.options.emb, cond.vector, config.activation, config.max_period, config.time_scale
        )
        pixels = config.fold**2  # that become one position
        self.stem = nn.Conv2d((channels + cond.spatial) * pixels, first, 3, padding=1)
        kept = [first]  # the widths of what the encoder keeps
        self.down = nn.ModuleList(self.encoder(widths, sizes, kept))
        self.kept_widths = tuple(kept)
        self.middle = self.stage(config.middle, widths[-1], widths[-1])
        self.up = nn.ModuleList(self.decoder(widths, sizes, kept))
        self.norm = GroupNorm(widths[0])
        self.head = zero(nn.Conv2d(widths[0], out_channels * pixels, 3, padding=1))
        set_norms(self, config.groups, config.norm_eps)
        for module in self.modules():
            if isinstance(module, SpatialTransformer) and config.transformer_eps is not None:
                module.norm.eps = config.transformer_eps
        number_dropouts(self)

    def encoder(self, widths: list[int], sizes: list[int], kept: list[int]) -> Iterator[Level]:
        width = kept[-1]
        for i, (out, size) in enumerate(zip(widths, sizes, strict=True)):
            made = []
            for names in self.config.blocks_at(size):
                made.append(self.stage(names, width, out))
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
            names_of_stages = self.config.blocks_at(size)
            for names in [*names_of_stages, names_of_stages[-1]]:  # one more than the encoder: level i keeps n + 1
                made.append(self.stage(names, width + kept.pop(), out))
                width = out
            yield Level(made, self.resample(out, "up") if i else None)

    def stage(self, names: Sequence[BlockName], channels: int, out: int) -> Stage:
        """A stage of blocks `out` wide; a number of heads determines their dimension."""
        heads, over = self.config.heads, self.config.temporal
        options = self.options._replace(head_dim=out // heads) if heads else self.options
        if over is None or not over.attention:
            return Stage(names, channels, out, options)
        return Stage(names, channels, out, options, lambda width: MapAttention(width, over, options.head_dim))

    def resample(self, channels: int, way: Resample) -> nn.Module:
        return RESAMPLERS[self.config.resample](channels, self.options, way)

    def forward(self, x: Tensor, time: Tensor, cond: Conditioning = Conditioning()) -> Tensor:
        like, fold = x, self.config.fold
        signal = self.signal(time, cond)._replace(frames=frames_of(x))
        signal = signal._replace(emb=of_each_frame(signal.emb, signal.frames))
        *kept, h = joined_by(self.encode(x, signal, cond), cond.residuals)
        for level in cast(Iterable[Level], self.up):
            for stage in level.stages:
                h = self.run(stage, torch.cat([h, kept.pop()], dim=1), signal)
            if level.resample is not None:
                h = level.resample(h, signal, image_size(kept[-1]))
        out = self.head(F.silu(self.norm(h)))
        return unfolded(out if fold == 1 else F.pixel_shuffle(out, fold), like)

    def signal(self, time: Tensor, cond: Conditioning) -> Signal:
        """What every block is told beside x."""
        return Signal(self.embedding(time, cond.vector), mask_bits(cond.seeds), cond.tokens, cond.mask)

    def encode(self, x: Tensor, signal: Signal, cond: Conditioning, hint: Tensor | None = None) -> list[Tensor]:
        """All that the decoder reads: what is kept, in the order in which it is made, `kept_widths` wide, and last the middle.

        hint: (B, C, H, W) as the stem gives it, to which it is added.
        """
        x = folded(x if cond.spatial is None else torch.cat([x, cond.spatial], dim=1))
        h = self.stem(x if self.config.fold == 1 else F.pixel_unshuffle(x, self.config.fold))
        h = h if hint is None else h + hint
        kept = [h]
        for level in cast(Iterable[Level], self.down):
            for stage in level.stages:
                h = self.run(stage, h, signal)
                kept.append(h)
            if level.resample is not None:
                h = level.resample(h, signal)
                kept.append(h)
        return [*kept, self.run(self.middle, h, signal)]

    def run(self, layer: nn.Module, *inputs: object) -> Tensor:
        return run(layer, *inputs, save_memory=self.config.save_memory)


def image_size(x: Tensor) -> Size:
    """(H, W) of images (B, C, H, W) or clips (B, C, T, H, W)."""
    return x.shape[-2], x.shape[-1]
