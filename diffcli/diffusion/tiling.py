"""One picture predicted in overlapping tiles: a function from a windowed Denoise to a Denoise, so samplers see one x.

At every evaluation the tiles of a picture are predicted and blended with weights that sum to exactly one at each position, so
that all of them agree on one x. Of the overlap of two tiles the outer quarters belong to one tile alone, and in the half
between them one fades into the other: a network whose outputs depend on no position farther than a quarter of the overlap
predicts what it would of the whole picture.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoise, Prediction
from diffcli.transfer import moved

GRAIN = 256  # weights along an axis are multiples of 1 / this: their sums and products are exact in float32


class Window(NamedTuple):
    """A rectangle of positions."""

    rows: slice
    columns: slice

    def of(self, x: Tensor) -> Tensor:
        """(..., H, W) -> its part in the window."""
        return x[..., self.rows, self.columns]


class Piece(NamedTuple):
    """A window of one sample of a batch."""

    row: int
    window: Window


Windowed = Callable[[Tensor, Tensor, Sequence[Piece]], Prediction]
"""(pieces of x_t (P, C, h, w), t () or (P,), where they lie) -> Prediction of the pieces."""


class Tiles(NamedTuple):
    """How pictures are cut. All lengths in positions of diffusion space.

    size: (height, width) of a tile at most. overlap: of two neighbours at least, below both sides. step: tiles begin at multiples
    of this, but for the last of a side that is none; at least that much of a tile overlaps with no other. at_once: tiles in one
    evaluation of the network.
    """

    size: tuple[int, int]
    overlap: int
    step: int = 1
    at_once: int = 64

    def count(self, size: Sequence[int]) -> int:
        """How many tiles a picture (H, W) is predicted in; 1 where it is no larger than a tile."""
        return math.prod(len(self.starts(side, tile)) for side, tile in zip(size, self.size, strict=True))

    def starts(self, side: int, tile: int) -> list[int]:
        """Where the tiles along a side begin: evenly spread, the first at 0, the last ending where the side ends."""
        if side <= tile:
            return [0]
        room, stride = math.ceil((side - tile) / self.step), (tile - self.overlap) // self.step
        moves = math.ceil(room / stride)
        return [min(self.step * (i * room // moves), side - tile) for i in range(moves + 1)]


def tiled(windowed: Windowed, tiles: Tiles) -> Denoise:
    """Predicts pictures (B, C, H, W) in tiles, `tiles.at_once` in a batch, and blends them; those that fit a tile whole."""

    def blended(x: Tensor, t: Tensor) -> Prediction:
        sides = x.shape[2:]
        cuts = [
            [slice(start, min(start + tile, side)) for start in tiles.starts(side, tile)]
            for side, tile in zip(sides, tiles.size, strict=True)
        ]
        weights = [
            [moved(weight, x.device) for weight in fading([(cut.start, cut.stop) for cut in along])] for along in cuts
        ]
        pieces = [Piece(row, Window(*pair)) for row in range(len(x)) for pair in product(*cuts)]
        shares = list(product(*weights)) * len(x)
        parts: list[Tensor | None] = [None] * len(Prediction._fields)
        for first in range(0, len(pieces), tiles.at_once):
            some = pieces[first : first + tiles.at_once]
            cut = torch.stack([piece.window.of(x[piece.row]) for piece in some])
            own = torch.stack([t[piece.row] for piece in some]) if t.ndim else t
            for i, values in enumerate(windowed(cut, own, some)):
                if values is None:
                    continue
                whole = parts[i] = (
                    values.new_zeros(len(x), *values.shape[1:2], *sides) if parts[i] is None else parts[i]
                )
                assert whole is not None
                for value, piece, (down, across) in zip(values, some, shares[first:], strict=False):
                    piece.window.of(whole[piece.row]).add_(value * down[:, None] * across)
        x0, eps, var_frac = parts
        assert x0 is not None
        assert eps is not None
        return Prediction(x0, eps, var_frac)

    return blended


def fading(spans: Sequence[tuple[int, int]]) -> list[Tensor]:
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
