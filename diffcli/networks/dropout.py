"""Dropout whose mask is a pure function of (sample's seed, layer, element): exact on resume, equal for any batch split.

A full Philox draw for every activation would cost more than the network, so Philox gives each (sample, layer) two key
words, and a 32-bit integer hash (two multiplications) spreads them over the elements.
"""

import torch
from torch import Tensor, nn

from diffcli.noise import Domain, Noise

TO_INT32 = 2**31
LEVELS = 2**16  # each 32-bit hash serves two elements, so the probability is kept to 1 / 65536


class Dropout(nn.Module):
    """Zeroes each element with probability p in training and divides the rest by what is kept; identity in eval."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropped = round(p * LEVELS)
        self.layer = 0  # `number_dropouts` gives every layer of a network its own stream

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        """x: (B, ...). seeds: (B,) int64; read only where something is dropped."""
        if not self.training or not self.dropped:
            return x
        if seeds is None:
            raise RuntimeError("dropout trains, so it needs Conditioning.seeds: one int64 for each sample")
        # elements are counted in logical order, so the mask does not depend on the memory format
        bits = self.mask_bits(seeds, x[0].numel()).view(x.shape)
        return x * (bits >= self.dropped - LEVELS // 2).to(x.dtype).mul_(LEVELS / (LEVELS - self.dropped))

    def mask_bits(self, seeds: Tensor, n: int) -> Tensor:
        """Uniform int16 (B, n), one for each element of each sample."""
        noise = Noise(seeds, seeds.device, Domain.DROPOUT)
        noise.draw = self.layer
        first, second, *_ = (noise.words(1) - TO_INT32).int().unbind(1)  # (B, 1) each
        h = torch.arange((n + 1) // 2, dtype=torch.int32, device=seeds.device) + first
        h = (h ^ shift_right(h, 16)).mul_(0x7FEB352D)  # lowbias32 (Wellons 2018), a second key between its rounds
        h = h.bitwise_xor_(shift_right(h, 15)).add_(second).mul_(signed32(0x846CA68B))
        return h.bitwise_xor_(shift_right(h, 16)).view(torch.int16)[:, :n]


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
