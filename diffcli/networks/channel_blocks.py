"""Channel attention: class-driven channel attention and efficient channel attention.

Contract: see layers.py. Both start as the identity and do not depend on positions.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from diffcli.networks.group_norm import GroupNorm
from diffcli.networks.layers import BlockOptions, Pointwise, Signal, attend, zero


class ClassAttention(nn.Module):
    """Attention over channels whose queries and keys come from time and condition alone.

    y = x + W (A norm(x)),  A_cd = softmax over d of q_c k_d,  q = W_q emb, k = W_k emb, each (B, C): one number a channel,
    so the scale 1 / sqrt(head dim) is 1. `emb` holds the class where there is one and the time always. W starts at zero.
    """

    def __init__(self, channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.query = nn.Linear(options.emb, channels)
        self.key = nn.Linear(options.emb, channels)
        self.out = zero(Pointwise(channels, channels))

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        q, k = (layer(signal.emb)[:, None, :, None] for layer in (self.query, self.key))  # (B, 1, C, 1): C items
        v = self.norm(x).flatten(2)[:, None]  # (B, 1, C, L)
        h = attend(q, k, v.to(q.dtype))[:, 0]  # (B, C, L)
        return x + self.out(h.reshape(x.shape))


class PositionMean(nn.Module):
    """The mean over all positions: (B, C, H, W) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class ChannelAttention(nn.Module):
    """Efficient channel attention: y = x * 2 sigmoid(conv(mean of x over positions)), a 1-D convolution over channels.

    Twice the published gate, and the kernel starts at zero, so that an untrained block is the identity, not x / 2.
    Source: Wang et al. 2020, eq. 9 and 12 (arXiv 1910.03151).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = PositionMean()
        size = eca_kernel(channels)
        self.conv = zero(nn.Conv1d(1, 1, size, padding=size // 2, bias=False))

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        mean = self.mean(x)[:, None]  # (B, 1, C)
        gate = 2 * F.sigmoid(self.conv(mean))[:, 0]  # (B, C)
        return x * gate[:, :, None, None]


def eca_kernel(channels: int) -> int:
    """The odd kernel size for C channels: |log2(C) / 2 + 1 / 2|, or the next odd number."""
    return int((math.log2(channels) + 1) / 2) | 1
