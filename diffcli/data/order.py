"""The order of the images of a run, a pure function of seed and step, so that no position must be saved.

A run is one endless stream of samples. Position p = (step - 1) * batch_size + i lies in epoch p // N and reads image
permutation(seed, epoch, N)[p % N]. Random choices for an image in an epoch derive from (seed, epoch, index). A batch may
straddle two epochs, and a set may be smaller than a batch. Where images have buckets, an epoch is whole batches of one bucket
each instead.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffcli import noise
from diffcli.config import UserError
from diffcli.data.buckets import Framing
from diffcli.data.images import ImageData, Share
from diffcli.noise import Domain

BLOCK = 4096  # steps whose parts are chosen at once
PART_SEEDS, MIXING = 1, 2  # purposes of random numbers of a mixture
SEED_BITS, WORD = 63, 10  # of a derived number: its bits, and those that a share in [0, 1) does not need


class StepRows(NamedTuple):
    """The rows of one rank in one step; all (b,), b its share of the batch."""

    indices: Tensor  # int64: which image
    positions: Tensor  # int64: place in the endless stream
    draws: Tensor | None  # int64: random bits of each sample in its epoch; bit 0 mirrors it if the preset flips
    variant: int | None = None  # which of the data's `variants` reads them; None: the data themselves


class RowOrder(Protocol):
    """The rows of a run, a pure function of the position."""

    def rows(self, first: int, last: int) -> StepRows:
        """Positions first <= p < last, all within one batch."""


class IndexOrder:
    """The endless order of a data set of n images; remembers the permutation of one epoch."""

    def __init__(self, seed: int, n: int) -> None:
        self.seed, self.n = seed, n
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def order(self, epoch: int) -> Tensor:
        """int64 (n,): the permutation of an epoch."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, noise.permutation(self.seed, epoch, self.n)
        return self._order

    def rows(self, first: int, last: int) -> StepRows:
        """Positions first <= p < last."""
        indices = [torch.empty(0, dtype=torch.int64)]  # a share may be empty
        draws = [torch.empty(0, dtype=torch.int64)]
        for epoch in range(first // self.n, -(-last // self.n)):
            start = epoch * self.n
            index = self.order(epoch)[max(first - start, 0) : last - start]
            indices.append(index)
            draws.append(epoch_draws(self.seed, epoch, index))
        return StepRows(torch.cat(indices), torch.arange(first, last), torch.cat(draws))


class BucketOrder:
    """The endless order of a set in buckets, in batches of one bucket each.

    In an epoch the images of each bucket, in the order of the epoch's permutation, are cut into whole batches, and the batches
    of all buckets shuffled; up to batch_size - 1 images of a bucket are left out in an epoch, others in the next one.
    Raises UserError if images would never be seen because their bucket has less than a batch of them.
    """

    def __init__(self, seed: int, framing: Framing, batch_size: int) -> None:
        assert framing.bucket is not None
        self.seed, self.bucket, self.batch_size = seed, framing.bucket, batch_size
        self.counts: list[int] = self.bucket.bincount(minlength=len(framing.buckets)).tolist()
        for (height, width), count in zip(framing.buckets, self.counts, strict=True):
            if 0 < count < batch_size:
                raise UserError(
                    f"data.buckets: {count} images are nearest to {height}x{width}, less than a batch of {batch_size}",
                    f"take [{height}, {width}] out, so that they go to the next bucket, or lower train.batch_size",
                )
        self.batches = sum(count // batch_size for count in self.counts)  # in an epoch
        self._epoch, self._order = -1, torch.empty(0, batch_size, dtype=torch.int64)

    def order(self, epoch: int) -> Tensor:
        """int64 (batches, batch_size): the images of each batch of an epoch."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self._order

    def _shuffled(self, epoch: int) -> Tensor:
        images = noise.permutation(self.seed, epoch, len(self.bucket))
        groups = images[self.bucket[images].argsort(stable=True)].split(self.counts)
        whole = torch.cat([group[: len(group) // self.batch_size * self.batch_size] for group in groups])
        counters = torch.arange(self.batches) + len(self.bucket)  # those that the images' permutation leaves
        shuffled = noise.derive(self.seed, Domain.ORDER, counters, epoch).argsort(stable=True)
        return whole.view(-1, self.batch_size)[shuffled]

    def rows(self, first: int, last: int) -> StepRows:
        """Positions first <= p < last, all within one batch."""
        step = first // self.batch_size
        epoch, number = divmod(step, self.batches)
        start = step * self.batch_size
        index = self.order(epoch)[number][first - start : last - start]
        return StepRows(index, torch.arange(first, last), epoch_draws(self.seed, epoch, index))


class VariantOrder:
    """The order of a set whose batches come in several variants, such as lengths of clips, each equally often on average."""

    def __init__(self, seed: int, data: ImageData, batch_size: int) -> None:
        self.whole = IndexOrder(seed, len(data))
        self.seed, self.count, self.batch_size = seed, len(data.variants), batch_size

    def rows(self, first: int, last: int) -> StepRows:
        """Positions first <= p < last, all within one batch."""
        chosen = noise.derive(self.seed, Domain.VARIANT, torch.tensor(first // self.batch_size))
        return self.whole.rows(first, last)._replace(variant=int(chosen) % self.count)


class MixOrder:
    """The order of a mixture: each batch is the next one of a part, chosen by its weight among the parts active in that step."""

    def __init__(self, seed: int, parts: Sequence[Share], batch_size: int) -> None:
        self.seed, self.parts, self.batch_size = seed, parts, batch_size
        numbers = torch.arange(len(parts))
        seeds = noise.derive(seed, Domain.VARIANT, numbers, PART_SEEDS).tolist()
        self.orders = [order_of(part.data, own, batch_size) for part, own in zip(parts, seeds, strict=True)]
        counts = [len(part.data.variants) for part in parts]
        self.offsets = [sum(counts[:i]) for i in range(len(counts))]  # of the variants of each part
        self.before = [torch.zeros(len(parts), dtype=torch.int64)]  # batches of each part before each block of steps
        self._number, self._block = -1, torch.empty(0, dtype=torch.int64)

    def chosen(self, steps: Tensor) -> Tensor:
        """int64 (n,): the part of each step, int64 (n,), counted from 0."""
        words = noise.derive(self.seed, Domain.VARIANT, steps, MIXING) >> WORD
        share = words.double() / (1 << (SEED_BITS - WORD))  # [0, 1)
        weights = torch.stack([self._weight(part, steps + 1) for part in self.parts]).cumsum(0)
        return (share * weights[-1] >= weights[:-1]).sum(0)

    def rows(self, first: int, last: int) -> StepRows:
        """Positions first <= p < last, all within one batch."""
        step = first // self.batch_size
        part, number = self.place(step)
        shift = (number - step) * self.batch_size
        own = self.orders[part].rows(first + shift, last + shift)
        return own._replace(positions=torch.arange(first, last), variant=self.offsets[part] + (own.variant or 0))

    def place(self, step: int) -> tuple[int, int]:
        """The part of a step, counted from 0, and how many batches of it came before."""
        block, at = divmod(step, BLOCK)
        while len(self.before) <= block:
            counts = self._of(len(self.before) - 1).bincount(minlength=len(self.parts))
            self.before.append(self.before[-1] + counts)
        choices = self._of(block)
        part = int(choices[at])
        return part, int(self.before[block][part] + (choices[:at] == part).sum())

    def _of(self, block: int) -> Tensor:
        if block != self._number:
            self._number, self._block = block, self.chosen(torch.arange(block * BLOCK, (block + 1) * BLOCK))
        return self._block

    def _weight(self, part: Share, steps: Tensor) -> Tensor:
        active = steps >= part.first
        if part.last is not None:
            active &= steps <= part.last
        return active.double() * part.weight


def order_of(data: ImageData, seed: int, batch_size: int) -> RowOrder:
    """The order in which a run reads its data."""
    if data.parts:
        return MixOrder(seed, data.parts, batch_size)
    if len(data.variants) > 1:
        return VariantOrder(seed, data, batch_size)
    return BucketOrder(seed, data.framing, batch_size) if data.framing.buckets else IndexOrder(seed, len(data))


def epoch_size(data: ImageData, batch_size: int) -> int:
    """Samples that an epoch deals: all of them, or the whole batches that the buckets give."""
    if data.parts:
        return sum(epoch_size(part.data, batch_size) for part in data.parts)
    framing = data.framing
    return BucketOrder(0, framing, batch_size).batches * batch_size if framing.buckets else len(data)


def epoch_draws(seed: int, epoch: int, index: Tensor) -> Tensor:
    """Random bits of images in an epoch, int64 (B,), which depend on (seed, epoch, index) alone."""
    return noise.derive(seed, Domain.AUGMENT, index, epoch)


def share(batch_size: int, rank: int, world: int) -> tuple[int, int]:
    """The contiguous part [first, last) of a global batch that a rank takes."""
    return rank * batch_size // world, (rank + 1) * batch_size // world
