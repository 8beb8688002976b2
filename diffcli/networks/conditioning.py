"""The conditioning of a network: three slots, filled from a batch by the conditioners of a task."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Conditioning(NamedTuple):
    """The inputs of a network beside x and the time; an absent slot is None."""

    vector: Tensor | None = None  # (B, D)        joins the time embedding
    tokens: Tensor | None = None  # (B, L, D)     cross-attention
    spatial: Tensor | None = None  # (B, C, *S)   concatenated to the input channels
    seeds: Tensor | None = None  # (B,) int64     one stream of dropout a sample; needed only where dropout trains
    mask: Tensor | None = None  # (B, L) bool     the tokens to read; None: all

    def rows(self, first: int, end: int) -> "Conditioning":
        """The conditions of some samples of a batch."""
        return Conditioning(*(None if slot is None else slot[first:end] for slot in self))

    def windows(self, places: Iterable[tuple[int, tuple[slice, slice]]]) -> "Conditioning":
        """The conditions of windows of samples, each (row of the batch, its rows and columns of positions); all of one size."""
        rows = [row for row, _ in places]
        chosen = Conditioning(*(None if slot is None else torch.stack([slot[row] for row in rows]) for slot in self))
        if self.spatial is None:
            return chosen
        cut = torch.stack([self.spatial[row, :, down, across] for row, (down, across) in places])
        return chosen._replace(spatial=cut)


class CondShape(NamedTuple):
    """Width of each slot that a network will receive; 0 is absent."""

    vector: int = 0
    tokens: int = 0
    spatial: int = 0
