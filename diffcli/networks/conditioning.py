"""The conditioning of a network: three slots, filled from a batch by the conditioners of a task."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Hint(NamedTuple):
    """What one branch of control is told, and how much it counts; see control.py."""

    picture: Tensor  # (B, C, H, W) in [0, 1]   over the pixels of the image
    scale: float = 1.0


class Conditioning(NamedTuple):
    """The inputs of a network beside x and the time; an absent slot is None."""

    vector: Tensor | None = None  # (B, D)        joins the time embedding
    tokens: Tensor | None = None  # (B, L, D)     cross-attention
    spatial: Tensor | None = None  # (B, C, *S)   concatenated to the input channels
    seeds: Tensor | None = None  # (B,) int64     one stream of dropout a sample; needed only where dropout trains
    mask: Tensor | None = None  # (B, L) bool     the tokens to read; None: all
    hints: tuple[Hint | None, ...] | None = None  # one for each branch of control; None: the branch is not run
    residuals: tuple[Tensor, ...] | None = None  # added to what the network keeps on its way, each of that shape

    def rows(self, first: int, end: int) -> "Conditioning":
        """The conditions of some samples of a batch."""
        return self._each(lambda slot: slot[first:end])

    def windows(self, places: Iterable[tuple[int, tuple[slice, slice]]], pixels: int = 1) -> "Conditioning":
        """The conditions of windows of samples, each (row of the batch, its rows and columns of positions); all of one size.

        pixels: along the edge of a position; hints are cut where their pixels lie.
        """
        cut = list(places)
        chosen = self._each(lambda slot: torch.stack([slot[row] for row, _ in cut]))

        def part(lying: Tensor, factor: int) -> Tensor:
            """(B, C, H, W) -> the windows of it. factor: of its positions along the edge of one of x."""
            pieces = []
            for row, window in cut:
                down, across = (slice(side.start * factor, side.stop * factor) for side in window)
                pieces.append(lying[row, :, down, across])
            return torch.stack(pieces)

        spatial = None if self.spatial is None else part(self.spatial, 1)
        hints = self.hints and tuple(each and Hint(part(each.picture, pixels), each.scale) for each in self.hints)
        return chosen._replace(spatial=spatial, hints=hints)

    def stretches(self, places: Iterable[tuple[int, slice]]) -> "Conditioning":
        """The conditions of stretches of clips, each (row of the batch, its frames); all of one length."""
        cut = list(places)
        chosen = self._each(lambda slot: torch.stack([slot[row] for row, _ in cut]))
        if self.spatial is None:
            return chosen
        return chosen._replace(spatial=torch.stack([self.spatial[row, :, frames] for row, frames in cut]))

    def _each(self, pick: Callable[[Tensor], Tensor]) -> "Conditioning":
        """With every tensor changed in the same way."""
        found = {name: getattr(self, name) for name in ("vector", "tokens", "spatial", "seeds", "mask")}
        return Conditioning(
            **{name: None if slot is None else pick(slot) for name, slot in found.items()},
            hints=self.hints and tuple(each and Hint(pick(each.picture), each.scale) for each in self.hints),
            residuals=self.residuals and tuple(map(pick, self.residuals)),
        )


class CondShape(NamedTuple):
    """Width of each slot that a network will receive; 0 is absent."""

    vector: int = 0
    tokens: int = 0
    spatial: int = 0


def joined_by(kept: Sequence[Tensor], residuals: Sequence[Tensor] | None) -> list[Tensor]:
    """What a network keeps on its way, with what `Conditioning.residuals` add to it."""
    if residuals is None:
        return list(kept)
    return [own + added for own, added in zip(kept, residuals, strict=True)]
