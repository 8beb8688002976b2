"""Convolutional residual blocks beside ADM's: weight-standardised, ConvNeXt, and the VGG, DenseNet and Inception designs.

Contract: see layers.py. VGG, DenseNet and Inception define the `body` (B, C, H, W) -> (B, D, H, W);
`Residual` makes a block of it: y = skip(x) + W body(x) with a 1x1 convolution W that starts at zero. Wherever the published
blocks have batch normalisation these have group normalisation, modulated once or more by time and condition.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcli.networks.dropout import Dropout
from diffcli.networks.frames import TimeLayers
from diffcli.networks.group_norm import GroupNorm
from diffcli.networks.layers import ACTIVATIONS, BlockOptions, Pointwise, ResBlock, Signal, modulation, zero

LAYERS = 4  # of a dense block, each a quarter as wide as what the block gives


def projection(channels: int, out_channels: int) -> nn.Module:
    """The skip connection: the identity, or a 1x1 convolution if the width changes."""
    return Pointwise(channels, out_channels) if channels != out_channels else nn.Identity()


class StandardizedConv(nn.Conv2d):
    """A 3x3 convolution by gain (w - mean(w)) / (std(w) sqrt(n)), mean and std over the n weights of each output.

    The output does not depend on the weights' offset and scale; `gain` (C',) gives the scale back.
    Source: Qiao et al. 2019 (arXiv 1903.10520); gain and 1 / sqrt(n) of Brock et al. 2021, eq. 1 (arXiv 2102.06171).
    """

    def __init__(self, channels: int, out_channels: int, gain: float = 1.0) -> None:
        super().__init__(channels, out_channels, 3, padding=1)
        self.gain = nn.Parameter(torch.full((out_channels,), gain))

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight.flatten(1)  # (C', n)
        var, mean = torch.var_mean(w, dim=1, correction=0, keepdim=True)
        w = (w - mean) * (var * w.shape[1] + 1e-10).rsqrt() * self.gain[:, None]
        return F.conv2d(x, w.view_as(self.weight), self.bias, padding=1)


class WsResBlock(ResBlock):
    """ADM's residual block with weight-standardised convolutions; the second starts with gain 0.

    Source: Kolesnikov et al. 2019 (arXiv 1912.11370): group norm, weight standardisation, activation before convolution.
    """

    def __init__(self, channels: int, out_channels: int, options: BlockOptions) -> None:
        super().__init__(channels, out_channels, options)
        self.conv1 = StandardizedConv(channels, out_channels)
        self.conv2 = StandardizedConv(out_channels, out_channels, gain=0.0)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]  # built with a bias


class ConvNext(nn.Module):
    """7x7 depthwise convolution, modulated layer norm, 1x1 to 4 times the width, activation, zero 1x1; residual.

    Source: Liu et al. 2022, fig. 4 (arXiv 2201.03545), with GELU if `activation` says so; the zero layer replaces its
    layer scale, and time and condition modulate the norm.
    """

    def __init__(self, channels: int, out_channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.act = ACTIVATIONS[options.activation]
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.temporal = TimeLayers(options.over_time, channels)
        self.modulate = modulation(options, channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = Pointwise(channels, 4 * out_channels)
        self.dropout = Dropout(options.dropout)
        self.out = zero(Pointwise(4 * out_channels, out_channels))
        self.skip = projection(channels, out_channels)

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        h = self.temporal.after(0, self.depthwise(x), signal.frames)
        h = h.movedim(1, 3)  # (B, H, W, C): the norm is over the channels of each position
        modulation = self.modulate(signal.emb)[:, None, None]  # (B, 1, 1, 2C or C), read as GroupNorm reads it
        if modulation.shape[3] == h.shape[3]:
            h = self.norm(h + modulation)
        else:
            scale, shift = modulation.chunk(2, dim=3)
            h = self.norm(h) * (1 + scale) + shift
        h = self.act(self.expand(h.movedim(3, 1)))
        return self.skip(x) + self.out(self.dropout(h, signal.bits))


class Residual(nn.Module):
    """skip(x) + W body(x, signal), W a 1x1 convolution that starts at zero; `features` is the body's width."""

    def __init__(self, body: nn.Module, channels: int, features: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.body = body
        self.dropout = Dropout(dropout)
        self.out = zero(Pointwise(features, out_channels))
        self.skip = projection(channels, out_channels)

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        return self.skip(x) + self.out(self.dropout(self.body(x, signal), signal.bits))


class Vgg(nn.Module):
    """Convolution, modulated norm, activation, twice.

    Source: Simonyan & Zisserman 2014, table 1 (arXiv 1409.1556).
    """

    def __init__(self, channels: int, out_channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.act = ACTIVATIONS[options.activation]
        widths = (channels, out_channels)
        self.convs = nn.ModuleList(nn.Conv2d(width, out_channels, 3, padding=1) for width in widths)
        self.norms = nn.ModuleList(GroupNorm(out_channels) for _ in widths)
        self.modulations = nn.ModuleList(modulation(options, out_channels) for _ in widths)
        self.temporal = TimeLayers(options.over_time, out_channels, out_channels)

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        for i, (conv, norm, modulate) in enumerate(zip(self.convs, self.norms, self.modulations, strict=True)):
            x = self.act(norm(self.temporal.after(i, conv(x), signal.frames), modulate(signal.emb)))
        return x


class Dense(nn.Module):
    """Four times: modulated norm, activation, 3x3 convolution to `growth` channels, joined to all that came before.

    Source: Huang et al. 2016, eq. 2 (arXiv 1608.06993).
    """

    def __init__(self, channels: int, growth: int, options: BlockOptions) -> None:
        super().__init__()
        self.act = ACTIVATIONS[options.activation]
        widths = [channels + i * growth for i in range(LAYERS)]
        self.norms = nn.ModuleList(GroupNorm(width) for width in widths)
        self.modulations = nn.ModuleList(modulation(options, width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1) for width in widths)
        self.temporal = TimeLayers(options.over_time, *[growth] * LAYERS)

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        for i, (norm, modulate, conv) in enumerate(zip(self.norms, self.modulations, self.convs, strict=True)):
            h = conv(self.act(norm(x, modulate(signal.emb))))
            x = torch.cat([x, self.temporal.after(i, h, signal.frames)], dim=1)
        return x


class Inception(nn.Module):
    """Side by side, `width` channels each: 1x1; 1x1, 3x3; 1x1, 3x3, 3x3; 3x3 mean, 1x1. Then modulated norm, activation.

    Source: Szegedy et al. 2014, fig. 2b (arXiv 1409.4842), with 5x5 as two 3x3 and the mean of Szegedy et al. 2015, fig. 5
    (arXiv 1512.00567).
    """

    def __init__(self, channels: int, width: int, options: BlockOptions) -> None:
        super().__init__()
        self.act = ACTIVATIONS[options.activation]
        self.reduce = nn.ModuleList(Pointwise(channels, width) for _ in range(4))  # one at the head of each branch
        self.conv3 = nn.Conv2d(width, width, 3, padding=1)
        self.conv5 = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.modulate = modulation(options, 4 * width)
        self.norm = GroupNorm(4 * width)
        self.temporal = TimeLayers(options.over_time, *[width] * 3)

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        mean = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        one, three, five, pooled = (conv(h) for conv, h in zip(self.reduce, (x, x, x, mean), strict=True))
        three = self.temporal.after(0, self.conv3(self.act(three)), signal.frames)
        for i, conv in enumerate(self.conv5, start=1):
            five = self.temporal.after(i, conv(self.act(five)), signal.frames)
        return self.act(self.norm(torch.cat([one, three, five, pooled], dim=1), self.modulate(signal.emb)))


def vgg(channels: int, out_channels: int, options: BlockOptions) -> Residual:
    """VGG's pair of layers with a residual connection, which VGG itself lacks."""
    return Residual(Vgg(channels, out_channels, options), channels, out_channels, out_channels, options.dropout)


def dense(channels: int, out_channels: int, options: BlockOptions) -> Residual:
    """A dense block and its transition, the closing 1x1 convolution."""
    growth = math.ceil(out_channels / LAYERS)
    features = channels + LAYERS * growth
    return Residual(Dense(channels, growth, options), channels, features, out_channels, options.dropout)


def inception(channels: int, out_channels: int, options: BlockOptions) -> Residual:
    """An inception module with about `out_channels` features."""
    width = math.ceil(out_channels / 4)
    return Residual(Inception(channels, width, options), channels, 4 * width, out_channels, options.dropout)
