"""Networks from vector to vector: a text embedding to an image embedding directly, or the denoiser that generates one.

Blocks are pre-norm residual MLPs, and the last layer starts at zero: untrained, `Translator` is the identity.
"""

import torch
from torch import Tensor, nn

from diffcli.networks.conditioning import Conditioning
from diffcli.networks.layers import Embedding, zero

WIDEN = 4  # width of a block's hidden layer, in widths of its residual stream
TIME_WIDTH = 256  # of the sinusoid of the time


class TranslatorBlock(nn.Module):
    """x + mlp(norm(x)); modulated by (B, E), x + gate * mlp(norm(x) (1 + scale) + shift), all three 0 at first (adaLN-Zero).

    Source: Peebles & Xie 2022, section 3.2 (arXiv 2212.09748), for vectors.
    """

    def __init__(self, width: int, modulation: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=not modulation)
        self.modulate = zero(nn.Linear(modulation, 3 * width)) if modulation else None
        self.mlp = nn.Sequential(nn.Linear(width, WIDEN * width), nn.GELU(), nn.Linear(WIDEN * width, width))

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        h = self.norm(x)
        if self.modulate is None:
            return x + self.mlp(h)
        shift, scale, gate = self.modulate(modulation).chunk(3, dim=1)  # (B, width) each
        return x + gate * self.mlp(h * (1 + scale) + shift)


class Translator(nn.Module):
    """x + f(x) for x (B, D); f is 0 before training."""

    def __init__(self, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.entry = nn.Linear(dim, width)
        self.blocks = nn.Sequential(*(TranslatorBlock(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = zero(nn.Linear(width, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.head(self.norm(self.blocks(self.entry(x))))


class VectorDenoiser(nn.Module):
    """A denoising network of vectors (B, D, 1, 1); the condition is a vector (B, C) for the first layer and the blocks."""

    def __init__(self, dim: int, width: int, depth: int, condition: int) -> None:
        super().__init__()
        self.embed = Embedding(TIME_WIDTH, width, condition)
        self.entry = nn.Linear(dim + condition, width)
        self.blocks = nn.ModuleList(TranslatorBlock(width, modulation=width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = zero(nn.Linear(width, dim))

    def forward(self, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        assert cond.vector is not None
        modulation = self.embed(time, cond.vector)
        h = self.entry(torch.cat([x.flatten(1), cond.vector.to(x)], dim=1))
        for block in self.blocks:
            h = block(h, modulation)
        return self.head(self.norm(h)).view(x.shape)
