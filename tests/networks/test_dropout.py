"""Dropout as a function of (seed, layer, element)."""

import pytest
import torch
from torch import nn

from diffcli.networks.dropout import Dropout, number_dropouts

SEEDS = torch.tensor([3, 4, 5, 2**62])


def dropped(p: float, seeds: torch.Tensor = SEEDS, shape: tuple[int, ...] = (8, 50, 50)) -> torch.Tensor:
    return Dropout(p)(torch.ones(len(seeds), *shape), seeds)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_share_dropped_is_p_and_the_mean_is_kept(p: float) -> None:
    y = dropped(p)
    n = y[0].numel()
    share = (y == 0).float().mean(dim=(1, 2, 3))
    assert ((share - p).abs() < 5 * (p * (1 - p) / n) ** 0.5 + 2**-16).all()
    torch.testing.assert_close(y[y > 0].max(), torch.tensor(1 / (1 - p)), rtol=1e-3, atol=0)


def test_neighbouring_elements_samples_and_layers_are_independent() -> None:
    mask = (dropped(0.5) > 0).double() - 0.5
    other = Dropout(0.5)
    other.layer = 1
    second = (other(torch.ones(4, 8, 50, 50), SEEDS) > 0).double() - 0.5
    flat = mask.flatten(1)
    pairs = [(flat[:, 1:], flat[:, :-1]), (flat[:, 2:], flat[:, :-2]), (flat[:, 50:], flat[:, :-50])]
    pairs += [(flat[0], flat[1]), (flat[1], flat[2]), (flat, second.flatten(1))]
    for a, b in pairs:
        assert abs(4 * (a * b).mean()) < 5 / a.numel() ** 0.5


def test_a_sample_is_dropped_alike_in_any_batch_and_memory_format() -> None:
    alone, layer = dropped(0.3, SEEDS[2:3]), Dropout(0.3)
    assert torch.equal(alone, dropped(0.3)[2:3])
    wide = torch.ones(4, 8, 50, 50).contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer(wide, SEEDS), dropped(0.3))


def test_evaluation_and_probability_zero_leave_x_alone() -> None:
    x = torch.ones(2, 3)
    assert Dropout(0.0)(x, None) is x
    assert Dropout(0.5).eval()(x, None) is x


def test_training_without_seeds_is_refused() -> None:
    with pytest.raises(RuntimeError, match="seeds"):
        Dropout(0.5)(torch.ones(2, 3), None)


def test_every_layer_of_a_network_gets_a_number_of_its_own() -> None:
    network = nn.Sequential(Dropout(0.1), nn.Sequential(Dropout(0.1), nn.ReLU()), Dropout(0.1))
    number_dropouts(network)
    assert [m.layer for m in network.modules() if isinstance(m, Dropout)] == [0, 1, 2]
