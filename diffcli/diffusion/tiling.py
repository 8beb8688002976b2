"""One picture predicted in overlapping tiles: a function from a windowed Denoise to a Denoise, so samplers see one x.

At every evaluation the tiles of a picture are predicted and blended with weights that sum to exactly one at each position, so
that all of them agree on one x. Of the overlap of two tiles the outer quarters belong to one tile alone, and in the half
between them one fades into the other: a network whose outputs depend on no position farther than a quarter of the overlap
predicts what it would of the whole picture. Exact tiles do not fade: each predicts the positions that are its own, which lie
about half of the overlap inside of it, and their networks are told what they would know of the whole (see `Settle`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoise, Prediction
from diffcli.transfer import moved

Span = tuple[int, int]  # from the first position to that after the last
GRAIN = 256  # weights along an axis are multiples of 1 / this: their sums and products are exact in float32


class Window(NamedTuple):
    """A rectangle of positions."""

    rows: slice
    columns: slice

    def of(self, x: Tensor) -> Tensor:
        """(..., H, W) -> its part in the window."""
        return x[..., self.rows, self.columns]


class Piece(NamedTuple):
    """A window of one sample of a batch. own: the part of the window, counted in it, that is in no other piece's."""

    row: int
    window: Window
    own: Window


Windowed = Callable[[Tensor, Tensor, Sequence[Piece]], Prediction]
"""(pieces of x_t (P, C, h, w), t () or (P,), where they lie) -> Prediction of the pieces."""

Settle = Callable[[Callable[[], Iterator[Callable[[], object]]]], AbstractContextManager[None]]
"""A context within which layers know what they must of the whole, by passes over all pieces: calls that predict a batch each."""


class Tiles(NamedTuple):
    """The tiles of pictures. All lengths are in positions of diffusion space.

    size: (height, width) of a tile at most. overlap: of two neighbours at least, below both sides. step: tiles begin at multiples
    of this, but for the last of a side that is none; at least that much of a tile overlaps with no other. at_once: tiles in one
    evaluation of the network. exact: they predict what the whole would; sides of pictures and tiles are multiples of `step`.
    """

    size: tuple[int, int]
    overlap: int
    step: int = 1
    at_once: int = 64
    exact: bool = False

    def count(self, size: Sequence[int]) -> int:
        """The number of tiles of a picture (H, W); 1 if it is no larger than a tile."""
        return math.prod(len(self.starts(side, tile)) for side, tile in zip(size, self.size, strict=True))

    def starts(self, side: int, tile: int) -> list[int]:
        """The starts of the tiles along a side: evenly spread, the first at 0, the last one ending at the end of the side."""
        if side <= tile:
            return [0]
        room, stride = math.ceil((side - tile) / self.step), (tile - self.overlap) // self.step
        moves = math.ceil(room / stride)
        return [min(self.step * (i * room // moves), side - tile) for i in range(moves + 1)]


def tiled(windowed: Windowed, tiles: Tiles, settle: Settle | None = None) -> Denoise:
    """Predicts pictures (B, C, H, W) in tiles, `tiles.at_once` in a batch, and blends them; those that fit a tile whole.

    settle: of exact tiles.
    """

    def blended(x: Tensor, t: Tensor) -> Prediction:
        spans = [
            [(start, min(start + tile, side)) for start in tiles.starts(side, tile)]
            for side, tile in zip(x.shape[2:], tiles.size, strict=True)
        ]
        owned = [owning(along, tiles.step) for along in spans]
        weights = [
            [moved(weight, x.device) for weight in (sharing(along, own) if tiles.exact else fading(along))]
            for along, own in zip(spans, owned, strict=True)
        ]
        pieces = [
            Piece(row, window, own)
            for row in range(len(x))
            for window, own in zip(*map(windows, (spans, owned)), strict=True)
        ]
        shares = list(product(*weights)) * len(x)
        batches = [slice(first, first + tiles.at_once) for first in range(0, len(pieces), tiles.at_once)]

        def predicted(batch: slice) -> Prediction:
            some = pieces[batch]
            cut = torch.stack([piece.window.of(x[piece.row]) for piece in some])
            return windowed(cut, torch.stack([t[piece.row] for piece in some]) if t.ndim else t, some)

        parts: list[Tensor | None] = [None] * 3
        with nullcontext() if settle is None else settle(lambda: (partial(predicted, batch) for batch in batches)):
            for batch in batches:
                p = predicted(batch)
                for i, values in enumerate((p.x0, p.eps, p.var_frac)):
                    if values is None:
                        continue
                    whole = parts[i] = (
                        values.new_zeros(len(x), *values.shape[1:2], *x.shape[2:]) if parts[i] is None else parts[i]
                    )
                    assert whole is not None
                    for value, piece, (down, across) in zip(values, pieces[batch], shares[batch], strict=True):
                        piece.window.of(whole[piece.row]).add_(value * down[:, None] * across)
        x0, eps, var_frac = parts
        assert x0 is not None
        assert eps is not None
        return Prediction(x0, eps, var_frac)

    return blended


def windows(spans: Sequence[Sequence[Span]]) -> list[Window]:
    """Every pair of spans of rows and of columns."""
    return [Window(slice(*down), slice(*across)) for down, across in product(*spans)]


def owning(spans: Sequence[Span], step: int) -> list[Span]:
    """The range that each tile along an axis owns, in coordinates of the tile: borders are in the middle of the overlap.

    That is a multiple of `step` where the tiles begin and end at such; the middle is rounded down.
    """
    parted = [(start + end) // 2 // step * step for (_, end), (start, _) in pairwise(spans)]
    edges = [spans[0][0], *parted, spans[-1][1]]
    return [(first - start, end - start) for (start, _), (first, end) in zip(spans, pairwise(edges), strict=True)]


def sharing(spans: Sequence[Span], own: Sequence[Span]) -> list[Tensor]:
    """The weights along an axis of tiles that do not fade, each float32 (end - start,): 1 of its own positions."""
    places = [torch.arange(end - start) for start, end in spans]
    return [((first <= at) & (at < end)).float() for at, (first, end) in zip(places, own, strict=True)]


def fading(spans: Sequence[Span]) -> list[Tensor]:
    """The weights along an axis of tiles (start, end), in order, each float32 (end - start,): at every position their sum is 1.

    Each tile fades in, in the middle half of its overlap with the one before, as that one fades out.
    """
    places = torch.arange(spans[-1][1], dtype=torch.float64) + 0.5
    entries = [torch.ones_like(places)]
    for (_, end), (start, _) in pairwise(spans):
        low, high = start + (end - start) / 4, end - (end - start) / 4
        share = ((places - low) / max(high - low, 1e-6)).clamp(0, 1)
        entries.append((share * GRAIN).round() / GRAIN)
    entries.append(torch.zeros_like(places))
    return [
        (entry - following)[start:end].float()
        for (start, end), (entry, following) in zip(spans, pairwise(entries), strict=True)
    ]
