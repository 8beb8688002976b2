"""The layers that convolutional denoisers are made of, and the blocks of the ADM line: residual block, attention, resampling.

Contract: a block maps x (B, C, H, W) to (B, C', H', W'), any H and W, and receives all else in `Signal`. Every block
ends in a zero-initialised layer on a true residual, so that an untrained block is the identity (or its projection).
Source: Dhariwal & Nichol 2021 (arXiv 2105.05233), the "ADM" line of Ho et al. 2020 (arXiv 2006.11239).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcli.networks.dropout import Dropout, MaskBits
from diffcli.networks.frames import Frames, TimeLayers
from diffcli.networks.group_norm import GroupNorm
from diffcli.networks.memory_format import memory_format

Resample = Literal["down", "up"]
Size = tuple[int, int]
Activation = Literal["silu", "gelu", "relu", "relu6", "leaky_relu"]
Embed = Literal["scale_shift", "add"]
HeadOrder = Literal["by_head", "by_part"]
Padding = Literal["both", "end"]
Layer = TypeVar("Layer", bound=nn.Module)
UNFUSED_LENGTH = 512
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,  # slope 0.01 below 0
}


class BlockOptions(NamedTuple):
    """Options of every block of a network, beside its widths."""

    emb: int  # width of Signal.emb
    tokens: int = 0  # width of Signal.tokens; 0: there are none
    head_dim: int = 64
    qkv: HeadOrder = "by_head"  # in the layer of `attention`
    down_padding: Padding = "both"  # of ConvResample
    patch: int = 2  # side of the patches of patch_attention, in positions
    dropout: float = 0.0
    activation: Activation = "silu"
    embed: Embed = "scale_shift"
    over_time: Callable[[int], nn.Module] | None = None  # makes the layer over time that follows a convolution


class Signal(NamedTuple):
    """The inputs of every block of a network beside x."""

    emb: Tensor  # (B, E)   time and condition, already through the activation
    bits: MaskBits | None = None  # what dropout follows from
    tokens: Tensor | None = None  # (B, M, D)   tokens for cross-attention
    mask: Tensor | None = None  # (B, M) bool   the tokens to read; None: all
    frames: Frames | None = None  # of clips, whose tokens and mask have one row for all of their frames


def zero(layer: Layer) -> Layer:
    """The layer with all its parameters 0, for the end of a residual branch."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def sinusoid(time: Tensor, dim: int, max_period: float = 10_000) -> Tensor:
    """(B,) -> (B, dim): cosines, then sines, of `time` (0..999) at geometric frequencies from 1 to about 1 / max_period.

    Source: Vaswani et al. 2017, section 3.5 (arXiv 1706.03762), in the order of the ADM code; an odd dim ends in a 0.
    """
    half = dim // 2
    frequency = torch.exp(torch.arange(half, device=time.device) * (-math.log(max_period) / max(half, 1)))
    angle = time.float()[:, None] * frequency  # (B, half)
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, dim % 2))


class Embedding(nn.Module):
    """Time, and the condition vector if there is one, as one vector (B, dim) that every block projects.

    Its last activation is that of the blocks; between the two layers for the time it is SiLU.
    """

    def __init__(
        self,
        width: int,
        dim: int,
        vector: int,
        activation: Activation = "silu",
        max_period: float = 10_000,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.width = width
        self.max_period = max_period
        self.time_scale = time_scale
        self.act = ACTIVATIONS[activation]
        self.time = nn.Sequential(nn.Linear(width, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.vector = nn.Linear(vector, dim) if vector else None

    def forward(self, time: Tensor, vector: Tensor | None) -> Tensor:
        emb = self.time(sinusoid(time * self.time_scale, self.width, self.max_period))
        if self.vector is not None:
            emb = emb + self.vector(vector)
        return self.act(emb)  # (B, dim)


def modulation(options: BlockOptions, channels: int) -> nn.Linear:
    """Projects Signal.emb to the modulation of a norm; the width selects its form, see `GroupNorm`."""
    return nn.Linear(options.emb, channels * (2 if options.embed == "scale_shift" else 1))


class Pointwise(nn.Conv2d):
    """A 1x1 convolution; on the CPU it is a matrix product, which is faster than oneDNN's convolution.

    The result has the memory layout of x.
    """

    def __init__(self, channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor, *, onto: Tensor | None = None) -> Tensor:
        """onto: (B, C', H, W) to which the result is added."""
        if onto is not None and self.bias is None and x.device.type == "cpu" and x.is_contiguous():
            weight = self.weight.flatten(1).expand(len(x), -1, -1)
            return torch.baddbmm(onto.flatten(2), weight, x.flatten(2)).unflatten(2, x.shape[2:])
        return self.product(x) if onto is None else onto + self.product(x)

    def product(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        if memory_format(x) is torch.channels_last:
            return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)
        weight = self.weight.flatten(1).expand(len(x), -1, -1)  # (B, C', C)
        if self.bias is None:
            return torch.bmm(weight, x.flatten(2)).unflatten(2, x.shape[2:])
        return torch.baddbmm(self.bias[:, None], weight, x.flatten(2)).unflatten(2, x.shape[2:])


class PositionLinear(nn.Conv1d):
    """A linear layer on items (B, L, C) -> (B, L, C'), its weight kept as the 1x1 convolution (C', C, 1) that it is."""

    def __init__(self, channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[:, :, 0], self.bias)


def halve(x: Tensor) -> Tensor:
    """2x2 means; an odd last row or column is the mean of the existing values, so sizes round up."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


def enlarge(x: Tensor, size: Size) -> Tensor:
    """Nearest neighbour to `size` (rows, columns), which is twice x's or one less: the inverse of `halve`'s rounding."""
    return F.interpolate(x, size=size, mode="nearest")


def enlarged_conv(x: Tensor, conv: nn.Conv2d, size: Size) -> Tensor:
    """conv(enlarge(x, size)) for a 3x3 convolution with padding 1.

    Twice the size is one transposed convolution: each output sees 2x2 different inputs only, so 4 of 9 multiplications do.
    """
    if size != (2 * x.shape[2], 2 * x.shape[3]):
        return F.conv2d(enlarge(x, size), conv.weight, conv.bias, padding=1)
    w = F.pad(conv.weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))  # (C, C', 5, 5)
    w = w[..., 1:, :] + w[..., :-1, :]
    w = w[..., 1:] + w[..., :-1]  # (C, C', 4, 4): the kernel on a grid of 2x2 equal values
    return F.conv_transpose2d(x, w, conv.bias, stride=2, padding=1)


class EnlargingConv(nn.Conv2d):
    """`enlarged_conv` as a layer: (B, C, h, w) -> (B, C', *size), size twice that of x or one less."""

    def __init__(self, channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor, size: Size) -> Tensor:  # type: ignore[override]  # what calls it knows where it goes
        return enlarged_conv(x, self, size)


class ResBlock(nn.Module):
    """Norm, activation, conv; modulated norm, activation, dropout, zero conv; residual. Optionally resamples inside (ADM)."""

    def __init__(
        self, channels: int, out_channels: int, options: BlockOptions, resample: Resample | None = None
    ) -> None:
        super().__init__()
        self.resample = resample
        self.act = ACTIVATIONS[options.activation]
        self.norm1 = GroupNorm(channels)
        plain = resample != "up"
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1) if plain else EnlargingConv(channels, out_channels)
        self.modulate = modulation(options, out_channels)
        self.norm2 = GroupNorm(out_channels)
        self.dropout = Dropout(options.dropout)
        self.conv2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = Pointwise(channels, out_channels) if channels != out_channels else nn.Identity()
        self.temporal = TimeLayers(options.over_time, out_channels, out_channels)

    def forward(self, x: Tensor, signal: Signal, size: Size | None = None) -> Tensor:
        """size: if the block enlarges, the (H', W') to reach."""
        h = self.act(self.norm1(x))
        if self.resample == "up":
            assert size is not None
            h, x = self.conv1(h, size), enlarge(x, size)
        elif self.resample == "down":
            h, x = self.conv1(halve(h)), halve(x)
        else:
            h = self.conv1(h)
        h = self.norm2(self.temporal.after(0, h, signal.frames), self.modulate(signal.emb))
        h = self.dropout(self.act(h), signal.bits)
        return self.skip(x) + self.temporal.after(1, self.conv2(h), signal.frames)


class ConvResample(nn.Module):
    """The plain alternative of Ho et al. 2020: a stride-2 convolution down, nearest neighbour and a convolution up.

    padding: on the way down zeros on both sides, or (TensorFlow's rule for even sizes) only after the last row and column.
    """

    def __init__(self, channels: int, options: BlockOptions, resample: Resample) -> None:
        super().__init__()
        self.resample = resample
        self.pad_end = resample == "down" and options.down_padding == "end"
        around = 0 if self.pad_end else 1
        down = resample == "down"
        self.conv = (
            nn.Conv2d(channels, channels, 3, stride=2, padding=around) if down else EnlargingConv(channels, channels)
        )
        self.temporal = TimeLayers(options.over_time, channels)

    def forward(self, x: Tensor, signal: Signal, size: Size | None = None) -> Tensor:
        if self.resample == "up":
            assert size is not None
            return self.temporal.after(0, self.conv(x, size), signal.frames)
        h = self.conv(F.pad(x, (0, 1 + x.shape[3] % 2, 0, 1 + x.shape[2] % 2)) if self.pad_end else x)
        return self.temporal.after(0, h, signal.frames)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of q (B, heads, L, D) to k and v (B, heads, M, D), the result (B, heads, L, D).

    mask: bool (B, M) over the items of k and v, at least one True in each row; False items are not read. bias: added to the
    products, of a shape that broadcasts to (B, heads, L, M); there is no mask beside it.

    On the CPU in bf16 torch's fused kernel is slow, most of all backwards, so up to a few hundred positions two matrix products
    and a softmax take its place; longer sequences would need too much memory that way. Compiled, that gains backwards alone.
    """
    read = bias if mask is None else mask[:, None, None]  # (B, 1, 1, M), the same for every head and query
    gains = q.requires_grad or not torch.compiler.is_compiling()
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and gains
    if not slow or q.shape[-2] > UNFUSED_LENGTH:
        return F.scaled_dot_product_attention(q, k, v, read)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if bias is not None:
        scores = scores + bias
    return (scores if mask is None else scores.masked_fill(~mask[:, None, None], -torch.inf)).softmax(dim=-1) @ v


class Attention(nn.Module):
    """Norm, self-attention over all positions in heads of `head_dim`, zero projection; residual.

    order: whether `qkv` gives for each head its q, k and v, or all q, then all k, then all v.
    """

    def __init__(self, channels: int, head_dim: int, order: HeadOrder = "by_head") -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.norm = GroupNorm(channels)
        self.by_part = order == "by_part"
        self.qkv = PositionLinear(channels, 3 * channels)
        self.out = zero(PositionLinear(channels, channels))

    def forward(self, x: Tensor, signal: Signal | None = None) -> Tensor:
        h = self.norm(x).flatten(2).mT  # (B, L, C)
        qkv = self.qkv(h)
        if self.by_part:
            q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, D) each
        else:
            q, k, v = qkv.unflatten(2, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        h = self.out(attend(q, k, v).transpose(1, 2).flatten(2))  # (B, L, C)
        return x + h.mT.unflatten(2, x.shape[2:])
