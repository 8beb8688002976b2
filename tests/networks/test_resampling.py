"""Going down a level and up again, in every way that a preset can name."""

import pytest
import torch
import torch.nn.functional as F

from diffcli.networks.layers import BlockOptions, Signal, enlarge, halve
from diffcli.networks.resampling import RESAMPLERS, Resampling
from tests.networks.waking import normal, wake

OPTIONS, SIGNAL = BlockOptions(emb=4), Signal(normal(2, 4, seed=1))


@pytest.mark.parametrize("name", sorted(RESAMPLERS))
@pytest.mark.parametrize("size", [(1, 1), (4, 6), (5, 3), (8, 7)])
def test_sizes_round_up_on_the_way_down_and_return_on_the_way_up(name: Resampling, size: tuple[int, int]) -> None:
    down, up = (wake(RESAMPLERS[name](8, OPTIONS, way)) for way in ("down", "up"))
    small = down(normal(2, 8, *size), SIGNAL)
    assert small.shape == (2, 8, -(-size[0] // 2), -(-size[1] // 2))
    assert up(small, SIGNAL, size).shape == (2, 8, *size)


def test_pooling_has_no_weights_and_undoes_what_enlarging_did() -> None:
    down, up = (RESAMPLERS["pool"](8, OPTIONS, way) for way in ("down", "up"))
    assert not [*down.parameters(), *up.parameters()]
    x = normal(2, 8, 6, 4)
    assert torch.equal(down(x, SIGNAL), halve(x))
    assert torch.equal(up(x, SIGNAL, (11, 8)), enlarge(x, (11, 8)))
    torch.testing.assert_close(down(up(x, SIGNAL, (12, 8)), SIGNAL), x)


def test_bilinear_interpolation_keeps_a_slope_and_halves_by_means() -> None:
    down, up = (RESAMPLERS["interpolate"](8, OPTIONS, way) for way in ("down", "up"))
    x = normal(2, 8, 6, 4)
    torch.testing.assert_close(down(x, SIGNAL), F.conv2d(halve(x), down.conv.weight, down.conv.bias, padding=1))
    with torch.no_grad():
        up.conv.weight.zero_()
        up.conv.weight[range(8), range(8), 1, 1] = 1  # the convolution that changes nothing
        up.conv.bias.zero_()
    slope = torch.arange(6.0).expand(2, 8, 4, 6)
    wanted = torch.arange(12.0) / 2 - 0.25
    torch.testing.assert_close(up(slope, SIGNAL, (8, 12))[0, 0, 3, 1:-1], wanted[1:-1])
