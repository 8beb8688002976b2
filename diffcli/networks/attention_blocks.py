"""Attention blocks: to patches of the map, to the tokens of a condition, or to both (spatial transformer).

Contract: see layers.py. All attention goes through `attend`, with the scale 1 / sqrt(head_dim); no L x L matrix is made here.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from diffcli.networks.dropout import Dropout, MaskBits
from diffcli.networks.frames import of_clips
from diffcli.networks.group_norm import GroupNorm
from diffcli.networks.layers import BlockOptions, Pointwise, Signal, attend, zero
from diffcli.networks.patches import patchify, unpatchify


class PatchAttention(nn.Module):
    """Norm, self-attention among patches of p x p positions, zero projection; residual. With p = 1 it is `Attention`.

    A patch is one item: all its p p C values make its queries, keys and values, C wide each. Sizes that p does not divide
    do not occur in training; they are padded with zeros below and to the right, and cropped after.
    """

    def __init__(self, channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.patch = options.patch
        self.heads = channels // options.head_dim
        self.norm = GroupNorm(channels)
        self.qkv = nn.Linear(channels * self.patch**2, 3 * channels)  # for each head its q, k and v, as in Attention
        self.out = zero(nn.Linear(channels, channels * self.patch**2))

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        height, width = x.shape[2:]
        h = F.pad(self.norm(x), (0, -width % self.patch, 0, -height % self.patch))
        tokens = patchify(h, self.patch)  # (B, L, p p C)
        qkv = self.qkv(tokens).unflatten(2, (self.heads, 3, -1))  # (B, L, heads, 3, D)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)  # (B, heads, L, D) each
        tokens = self.out(attend(q, k, v).transpose(1, 2).flatten(2))
        return x + unpatchify(tokens, self.patch, (h.shape[2], h.shape[3]))[:, :, :height, :width]


class TokenAttention(nn.Module):
    """Cross-attention of items (B, L, width) to a context (B, M, D): q from the items, k and v from the context.

    Items (B T, L, width) of the T frames of a clip read the one context of the clip.
    mask: bool (B, M), the items of the context to read; None: all.
    Source: Rombach et al. 2021, eq. 3 (arXiv 2112.10752): no bias but the output's.
    """

    def __init__(self, width: int, context: int, head_dim: int) -> None:
        super().__init__()
        self.heads = width // head_dim
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context, width, bias=False)
        self.value = nn.Linear(context, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        items = of_clips(x, len(context))
        projected = (self.query(items), self.key(context), self.value(context))  # (B, L or M, width) each
        q, k, v = (z.unflatten(2, (self.heads, -1)).transpose(1, 2) for z in projected)  # (B, heads, L or M, D)
        return self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2)).view_as(x)


class CrossAttentionBlock(nn.Module):
    """Norm, attention of every position to the condition's tokens, zero projection; residual."""

    def __init__(self, channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.attention = TokenAttention(channels, options.tokens, options.head_dim)
        zero(self.attention.out)

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        assert signal.tokens is not None
        h = self.attention(self.norm(x).flatten(2).transpose(1, 2), signal.tokens, signal.mask)  # (B, L, C)
        return x + h.transpose(1, 2).reshape(x.shape)


class Geglu(nn.Module):
    """W2 (a * gelu(b)) with (a, b) = W1 x, four times as wide inside. Source: Shazeer 2020, eq. 6 (arXiv 2002.05202)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 8 * width)
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, bits: MaskBits | None) -> Tensor:
        a, b = self.inner(x).chunk(2, dim=2)
        return self.out(self.dropout(a * F.gelu(b), bits))


class SpatialTransformer(nn.Module):
    """Norm, 1x1; self-attention, cross-attention, GEGLU, each on a residual after a layer norm; zero 1x1; residual.

    Source: Rombach et al. 2021, appendix E.2.1 (arXiv 2112.10752).
    """

    def __init__(self, channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.enter = Pointwise(channels, channels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.attention = TokenAttention(channels, channels, options.head_dim)
        self.cross = TokenAttention(channels, options.tokens, options.head_dim)
        self.feed = Geglu(channels, options.dropout)
        self.leave = zero(Pointwise(channels, channels))

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        assert signal.tokens is not None
        norm1, norm2, norm3 = self.norms
        h = self.enter(self.norm(x)).flatten(2).transpose(1, 2)  # (B, L, C)
        items = norm1(h)
        h = h + self.attention(items, items)
        h = h + self.cross(norm2(h), signal.tokens, signal.mask)
        h = h + self.feed(norm3(h), signal.bits)
        return x + self.leave(h.transpose(1, 2).reshape(x.shape))
