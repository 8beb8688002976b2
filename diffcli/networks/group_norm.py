"""Group normalisation, modulated by time and condition, in the way that is fastest on each device and in each memory layout."""

import math

import torch
from torch import Tensor, nn

from diffcli.networks.memory_format import memory_format


class GroupNorm(nn.Module):
    """Group normalisation with gcd(32, channels) groups; optionally modulated by time and condition.

    With 2C values: y = norm(x) (1 + scale) + shift (ADM's AdaGN). With C values: y = norm(x + modulation) (Ho et al. 2020).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = math.gcd(32, channels)
        self.eps = 1e-5
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """x: (B, C, *S). modulation: (B, 2C), (B, C), or None for the plain norm. The result has x's memory format."""
        if modulation is not None and modulation.shape[1] == x.shape[1]:
            x, modulation = x + modulation.unflatten(1, (-1, *[1] * (x.ndim - 2))), None
        layout = memory_format(x)
        if x.device.type != "cpu" and layout is not torch.contiguous_format:
            return self.last(x, modulation)
        if slow_on_cpu(x):
            return self(x.contiguous(), modulation).contiguous(memory_format=layout)
        if modulation is None:
            return torch.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        scale, shift = modulation.unflatten(1, (-1, *[1] * (x.ndim - 2))).chunk(2, dim=1)  # (B, C, 1, 1) each
        # the compiler fuses the modulation itself, and would take a number of groups for a constant
        if torch.compiler.is_compiling() or layout is not torch.contiguous_format:
            y = torch.group_norm(x, self.groups, self.weight, self.bias, self.eps)
            return torch.addcmul(shift, y, 1 + scale)
        # the whole batch as one image with B x C channels: the modulation is then the norm's own gain and offset, which
        # saves two passes over x forward and four backward
        gain, offset = self.modulated(scale.flatten(1), shift.flatten(1))
        y = torch.group_norm(x.flatten(0, 1)[None], len(x) * self.groups, gain.flatten(), offset.flatten(), self.eps)
        return y.view(x.shape)

    def modulated(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and offset of each sample, (B, C) each, from scale and shift (B, C)."""
        return self.weight * (1 + scale), self.bias * (1 + scale) + shift

    def last(self, x: Tensor, modulation: Tensor | None) -> Tensor:
        """For channels last on CUDA, where torch's kernel would copy: statistics in float32, then one scale and shift.

        torch's kernel for the CPU supports that layout and is faster than this.
        """
        h = (x if x.dtype == torch.float64 else x.float()).unflatten(1, (self.groups, -1))  # (B, G, C / G, *S)
        var, mean = torch.var_mean(h, dim=tuple(range(2, h.ndim)), correction=0, keepdim=True)
        gain, offset = self.weight[None], self.bias[None]
        if modulation is not None:
            gain, offset = self.modulated(*modulation.chunk(2, dim=1))
        each = (self.groups, -1, *[1] * (x.ndim - 2))
        gain, offset = gain.to(h).unflatten(1, each), offset.to(h).unflatten(1, each)  # (B or 1, G, C / G, 1, 1)
        gain = gain * (var + self.eps).rsqrt()
        return torch.addcmul(offset - mean * gain, h, gain).flatten(1, 2).to(x.dtype)


def slow_on_cpu(x: Tensor) -> bool:
    """Whether torch's norm of x on the CPU takes longer than two copies: in half precision, channels last, of few positions.

    Below 1,024 positions its kernel for channels last reads single values; in the contiguous layout it is 10 to 20 times as fast.
    """
    half = x.dtype in (torch.bfloat16, torch.float16)
    few = x.shape[2:].numel() < 1024
    return half and few and memory_format(x) is not torch.contiguous_format and not torch.compiler.is_compiling()


def set_norms(network: nn.Module, groups: int, eps: float) -> None:
    """Gives every norm of a network gcd(groups, its channels) groups and this epsilon."""
    for module in network.modules():
        if isinstance(module, GroupNorm):
            module.groups = math.gcd(groups, len(module.weight))
            module.eps = eps
