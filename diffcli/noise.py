"""Counter-based random numbers: every draw is a pure function of (key, draw, element).

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") written in integer tensor operations, so
one vectorised call serves a whole batch with a stream of its own for each sample, and the bits are the same on every device,
for any batch split and any number of processes. Nothing here keeps state that a checkpoint would have to save.
"""

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from diffcli.transfer import moved

MASK = 0xFFFFFFFF
ROUNDS = 10
TO_UNIT = 2.0**-32


class Domain(IntEnum):
    """Keeps draws for different purposes apart although they share a seed."""

    NOISE = 0
    LABEL = 1
    TRAIN = 2
    ORDER = 3
    AUGMENT = 4
    DROPOUT = 5
    CHANCE = 6
    PRIOR = 7
    CONDITION = 8
    POSTERIOR = 9
    CODEBOOK = 10
    VARIANT = 11


def philox(key: Tensor, counter: Sequence[Tensor | int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words in [0, 2^32), as int64, for each broadcast (key, counter).

    key: int64, all 64 bits used. counter: four int64 tensors or ints in [0, 2^32) that broadcast with the key.
    Source: Salmon et al. 2011, doi 10.1145/2063384.2063405.
    """
    k0, k1 = key & MASK, (key >> 32) & MASK
    c0, c1, c2, c3 = (
        c if isinstance(c, Tensor) else torch.full((), c, dtype=torch.int64, device=key.device) for c in counter
    )
    for _ in range(ROUNDS):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wraps modulo 2^64: the bits are those of the unsigned product
        c0, c2 = ((p1 >> 32) & MASK) ^ c1 ^ k0, ((p0 >> 32) & MASK) ^ c3 ^ k1
        c1, c3 = p1 & MASK, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def signed64(seed: int) -> int:
    """Any Python integer as the signed 64-bit integer with the same low 64 bits."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >> 63 else seed


def derive(seed: int, domain: Domain, counter: Tensor, other: int = 0) -> Tensor:
    """One 63-bit seed for each counter: independent streams from (seed, domain, counter, other).

    counter: int64, non-negative, any shape; other: int in [0, 2^32). Returns int64 of counter's shape, non-negative.
    """
    key = torch.full((), signed64(seed), dtype=torch.int64, device=counter.device)
    low, high, _, _ = philox(key, (counter & MASK, counter >> 32, other, int(domain)))
    return (((high << 32) | low) & ((1 << 63) - 1)).expand(counter.shape)


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """A random order of 0..n-1 that depends on (seed, epoch, n) alone; int64 (n,)."""
    return derive(seed, Domain.ORDER, torch.arange(n), epoch).argsort(stable=True)


def streams(seeds: Sequence[int]) -> Tensor:
    """Seeds of samples as the field `stream` of a batch: int64 (B,)."""
    return torch.tensor([signed64(seed) for seed in seeds], dtype=torch.int64)


def normal(words: Tensor) -> Tensor:
    """N(0, 1) of uniform words (B, 4, blocks) in [0, 2^32): float32 (B, 4 blocks). Source: Box and Muller 1958."""
    words = words.float()
    radius = words[:, :2].add_(0.5).mul_(TO_UNIT).log_().mul_(-2).clamp_(min=0).sqrt_()
    angle = words[:, 2:].mul_(2 * math.pi * TO_UNIT)
    return torch.cat([radius * angle.cos(), radius * angle.sin_()], dim=1).flatten(1)


class Noise:
    """One stream of random numbers per sample: the numbers of sample i depend on seed i alone.

    Each call is the next draw of every stream; `domain` separates purposes that share a seed, `lane`, in [0, 2^32), the users
    of one purpose, such as the conditioners of a task.
    """

    def __init__(
        self, seeds: Sequence[int] | Tensor, device: torch.device, domain: Domain = Domain.NOISE, lane: int = 0
    ) -> None:
        if not isinstance(seeds, Tensor):
            seeds = streams(seeds)
        self.key = moved(seeds, device)[:, None]  # (B, 1)
        self.domain = domain
        self.lane = lane
        self.draw = 0

    def words(self, blocks: int) -> Tensor:
        """The next draw of every stream: (B, 4, blocks) int64 in [0, 2^32)."""
        counter = torch.arange(blocks, device=self.key.device)[None]
        words = philox(self.key, (counter, self.draw, int(self.domain), self.lane))
        self.draw += 1
        return torch.stack([w.expand(len(self.key), blocks) for w in words], dim=1)

    def __call__(self, like: Tensor) -> Tensor:
        """N(0, 1) with like's shape (B, ...), device and dtype, by Box and Muller 1958."""
        n = math.prod(like.shape[1:])
        return normal(self.words(-(-n // 4)))[:, :n].reshape(like.shape).to(like)

    def unit(self) -> Tensor:
        """U[0, 1) with 24 bits, one a stream: float32 (B,) on the device of the streams, for which nothing waits."""
        return (self.words(1)[:, 0, 0] >> 8).float() * 2.0**-24

    def uniform(self) -> Tensor:
        """U[0, 1) with 53 bits, one a stream: float64 (B,) on the CPU, where schedule arithmetic lives."""
        words = self.words(1)[:, :2, 0].cpu()
        return ((words[:, 0] >> 5).double() * 2.0**26 + (words[:, 1] >> 6).double()) * 2.0**-53


class FrameNoise(Noise):
    """Noise of clips: frame f of a sample depends on its seed and on f alone, however long the clip is.

    Frame f draws from lane f, so that a clip begins as a longer one does, and frame 0 has the noise of an image of that seed.
    """

    def __call__(self, like: Tensor) -> Tensor:
        """N(0, 1) with like's shape (B, C, T, H, W), device and dtype."""
        n, channels, frames, *sides = like.shape
        each = math.prod(sides) * channels
        counter = torch.arange(-(-each // 4), device=self.key.device)
        lanes = self.lane + torch.arange(frames, device=self.key.device)[:, None]
        words = philox(self.key[:, None], (counter, self.draw, int(self.domain), lanes))  # each (B, T, blocks)
        self.draw += 1
        drawn = normal(torch.stack(words, dim=2).flatten(0, 1))[:, :each]
        return drawn.view(n, frames, channels, *sides).transpose(1, 2).to(like)
