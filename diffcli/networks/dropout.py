"""Dropout whose mask is a pure function of (sample's seed, layer, element): exact on resume, equal for any batch split.

Bits are made once a forward: an integer hash spreads the seed of each sample over as many elements as the largest layer has.
Layer l reads them times SPREAD^l, modulo 2^32: one multiplication for a uniform word of its own. Any two layers l, m then see
pairs (u, SPREAD^(m - l) u) of a lattice, and SPREAD is chosen such that none of these lattices has a short vector: to within
3e-5, what two layers drop is independent. The seeds of training come out of Philox; see noise.py.
"""

import torch
from torch import Tensor, nn

from diffcli.networks.memory_format import memory_format

SPREAD = 0x9C842B6B  # 8015 is the length of the shortest vector dual to any of 512 lattices; the best possible is about 70,000
LAYERS = 512  # for which SPREAD was tried
LEVELS = 2**32  # of the probability


class MaskBits:
    """The random words of one forward, for all its dropout layers. seeds: (B,) int64, one stream a sample.

    Of x (B T, ...) with T frames a sample, each frame has words of its own, which do not depend on T.
    """

    def __init__(self, seeds: Tensor) -> None:
        self.seeds = seeds
        self.words: Tensor | None = None  # (B, n), of the largest layer so far
        self.shaped: dict[tuple[int | bool, ...], Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """Uniform int32 words for x (B, ...), in x's memory format; elements count in logical order whatever that is."""
        layout = memory_format(x)
        key = (*x.shape[1:], layout is torch.contiguous_format)
        if key not in self.shaped:
            n = x.numel() // len(self.seeds)
            if self.words is None or n > self.words.shape[1]:
                self.words = hashed(self.seeds, n)
            self.shaped[key] = self.words[:, :n].reshape(x.shape).contiguous(memory_format=layout)
        return self.shaped[key]


class Dropout(nn.Module):
    """Zeroes each element with probability p in training and divides the rest by 1 - p; identity in eval."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropped = round(p * LEVELS)
        self.layer = 0  # `number_dropouts` gives every layer of a network its own stream

    def forward(self, x: Tensor, bits: MaskBits | None) -> Tensor:
        """x: (B, ...). bits: needed only if elements are dropped."""
        if not self.training or not self.dropped:
            return x
        if bits is None:
            raise RuntimeError("dropout trains, so it needs Conditioning.seeds: one int64 for each sample")
        words = bits.like(x) * signed32(pow(SPREAD, self.layer, LEVELS))
        return x * (words >= self.dropped - LEVELS // 2) * (LEVELS / (LEVELS - self.dropped))


def mask_bits(seeds: Tensor | None) -> MaskBits | None:
    """The words of one forward; None without seeds, as in sampling."""
    return None if seeds is None else MaskBits(seeds)


def hashed(seeds: Tensor, n: int) -> Tensor:
    """Uniform int32 (B, n): element i of a sample depends on its seed and on i alone."""
    key = mixed(seeds)
    first, second = key.int()[:, None], (key >> 32).int()[:, None]  # int() keeps the low 32 bits
    h = torch.arange(n, dtype=torch.int32, device=seeds.device) + first
    h = (h ^ shift_right(h, 16)).mul_(0x7FEB352D)  # lowbias32 (Wellons 2018), a second key between its rounds
    h = h.bitwise_xor_(shift_right(h, 15)).add_(second).mul_(signed32(0x846CA68B))
    return h.bitwise_xor_(shift_right(h, 16))


def mixed(seeds: Tensor) -> Tensor:
    """int64 (B,) whose bits all depend on all bits of the seeds, so that neighbouring seeds are unrelated.

    Source: Stafford 2011, mix 13, as in splitmix64.
    """
    z = (seeds ^ ((seeds >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def shift_right(h: Tensor, bits: int) -> Tensor:
    """Logical shift of int32, where torch's own keeps the sign."""
    return (h >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def signed32(word: int) -> int:
    """The int32 with the bits of an unsigned 32-bit word."""
    return word - (1 << 32) if word >> 31 else word


def number_dropouts(network: nn.Module) -> None:
    """Number the dropout layers of a network in order, so that no two share a mask."""
    layers = (module for module in network.modules() if isinstance(module, Dropout))
    for layer, module in enumerate(layers):
        module.layer = layer
