"""DiT and SiT, written down from the papers and the names in their published state dicts.

Source: Peebles & Xie 2022 (arXiv 2212.09748), figure 3; Ma et al. 2024 (SiT, arXiv 2401.08740). Their time is an index for DiT,
and runs from noise at 0 to data at 1 for SiT, which regresses the velocity data - noise and ignores its outputs for a variance.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """After a layer norm without parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def positions(width: int, side: int) -> Tensor:
    """(1, side^2, width): sines and cosines of the column, then of the row."""
    omega = 10_000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(torch.arange(side).double(), torch.arange(side).double(), indexing="ij")
    parts = [f(axis.reshape(-1, 1) * omega) for axis in (column, row) for f in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=1).float()[None]


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weight = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(width // self.heads), dim=-1)
        return self.proj((weight @ v).transpose(1, 2).reshape(n, length, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(x, shift1, scale1))
        h = F.gelu(self.mlp.fc1(modulate(x, shift2, scale2)), approximate="tanh")
        return x + gate2[:, None] * self.mlp.fc2(h)


class ReferenceDiT(nn.Module):
    """forward(x (B, C, H, H), time (B,), label (B,)); label = classes is no class. velocity: SiT."""

    def __init__(
        self, channels: int, side: int, width: int, depth: int, heads: int, classes: int, velocity: bool
    ) -> None:
        super().__init__()
        patch = 2
        self.velocity, self.patch, self.side = velocity, patch, side // patch
        self.x_embedder, self.t_embedder, self.y_embedder, self.final_layer = (nn.Module() for _ in range(4))
        self.x_embedder.proj = nn.Conv2d(channels, width, patch, stride=patch)
        self.t_embedder.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.y_embedder.embedding_table = nn.Embedding(classes + 1, width)
        self.pos_embed = nn.Parameter(positions(width, self.side), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_layer.linear = nn.Linear(width, patch**2 * 2 * channels)
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        angle = time[:, None].double() * 10_000 ** (-torch.arange(128, dtype=torch.float64) / 128)
        c = self.t_embedder.mlp(torch.cat([angle.cos(), angle.sin()], dim=1).float())
        c = c + self.y_embedder.embedding_table(label)
        h = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            h = block(h, c)
        h = self.final_layer.linear(modulate(h, *self.final_layer.adaLN_modulation(c).chunk(2, dim=1)))
        h = h.reshape(len(x), self.side, self.side, self.patch, self.patch, -1)
        h = h.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, *x.shape[2:])
        return h.chunk(2, dim=1)[0] if self.velocity else h
