"""Tiles: cut so that they cover, blended so that a local network predicts what it would of the whole picture."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.diffusion.denoiser import Prediction
from diffcli.diffusion.tiling import Piece, Tiles, fading, tiled

HALF = torch.tensor(0.5, dtype=torch.float64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def local(radius: int, seen: list[int] | None = None):
    """A windowed denoiser that looks `radius` positions far, by a convolution that pads with zeros where a window ends."""
    kernel = noise(2, 2, 2 * radius + 1, 2 * radius + 1, seed=7) / (2 * radius + 1)

    def predict(x: Tensor, t: Tensor, pieces: Sequence[Piece]) -> Prediction:
        if seen is not None:
            seen.append(len(pieces))
        y = F.conv2d(x, kernel, padding=radius).tanh()
        return Prediction(y, x - y * t.float().view(-1, 1, 1, 1))

    return predict


@pytest.mark.parametrize("side", [16, 20, 23, 40, 64, 101])
@pytest.mark.parametrize(("tile", "overlap"), [(16, 4), (16, 0), (16, 12), (17, 5)])
def test_tiles_cover_a_side_overlap_enough_and_weigh_one_in_all(side: int, tile: int, overlap: int) -> None:
    starts = Tiles((tile, tile), overlap).starts(side, tile)
    spans = [(start, min(start + tile, side)) for start in starts]
    assert spans[0][0] == 0
    assert spans[-1][1] == side
    assert all(a[1] - b[0] >= overlap for a, b in pairwise(spans))
    total = torch.zeros(side)
    for (start, end), weight in zip(spans, fading(spans), strict=True):
        assert weight.min() >= 0
        total[start:end] += weight
    assert torch.equal(total, torch.ones(side))


def test_tiles_begin_where_the_network_lets_them() -> None:
    for side in range(16, 200, 4):
        starts = Tiles((16, 16), 5, step=4).starts(side, 16)
        assert all(start % 4 == 0 for start in starts)
        assert all(b - a <= 8 for a, b in pairwise(starts)), "less than 5 positions overlap"
        assert starts[-1] == side - 16


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_a_network_that_looks_no_farther_than_a_quarter_of_the_overlap_predicts_what_it_would_of_the_whole(
    radius: int,
) -> None:
    x, tiles = noise(2, 2, 30, 45), Tiles((16, 16), 8)
    predict = local(radius)
    whole, parts = predict(x, HALF, []), tiled(predict, tiles)(x, HALF)
    torch.testing.assert_close(parts.x0, whole.x0, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.eps, whole.eps, rtol=0, atol=1e-5)
    assert parts.var_frac is None


def test_a_network_that_looks_farther_does_not() -> None:
    x, predict = noise(1, 2, 32, 32), local(4)
    assert (tiled(predict, Tiles((16, 16), 8))(x, HALF).x0 - predict(x, HALF, []).x0).abs().max() > 1e-2


def test_what_every_window_says_alike_is_what_the_whole_says() -> None:
    value = torch.tensor([0.3, -0.7])[None, :, None, None]

    def constant(x: Tensor, t: Tensor, pieces: Sequence[Piece]) -> Prediction:
        return Prediction(value.expand_as(x), -value.expand_as(x), value.expand_as(x).abs())

    said = tiled(constant, Tiles((16, 16), 6))(noise(1, 2, 50, 33), HALF)
    for part, expected in zip(said[:3], (value, -value, value.abs()), strict=True):
        assert part is not None
        torch.testing.assert_close(part, expected.expand_as(part), rtol=0, atol=1e-6)


def test_batches_of_tiles_change_nothing_and_hold_no_more_than_they_may() -> None:
    x, seen = noise(3, 2, 40, 40), list[int]()
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    tiles = Tiles((16, 16), 4)
    one, many = (tiled(local(1, seen), tiles._replace(at_once=n))(x, t) for n in (1, 100))
    torch.testing.assert_close(one.eps, many.eps, rtol=0, atol=1e-6)
    assert max(seen[:-1]) == 1
    assert seen[-1] == 3 * tiles.count((40, 40)) == len(seen) - 1
    alone = tiled(local(1), tiles)(x[1:2], t[1:2])
    torch.testing.assert_close(alone.eps, one.eps[1:2], rtol=0, atol=1e-6)


def test_a_picture_smaller_than_a_tile_is_predicted_whole() -> None:
    x, seen, tiles = noise(2, 2, 12, 16), list[int](), Tiles((16, 16), 8)
    said = tiled(local(3, seen), tiles)(x, HALF)
    assert torch.equal(said.x0, local(3)(x, HALF, []).x0)
    assert (seen, tiles.count((12, 16))) == ([2], 1)
    assert tiles.count((12, 24)) == 2
