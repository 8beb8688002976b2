"""Optimal-transport coupling: the same noises, never farther from their images, along straighter paths."""

import itertools

import pytest
import torch
from torch import Tensor

from diffcli.diffusion.coupling import paired
from diffcli.noise import Noise


def batch(n: int, spread: float = 1.0, shape: tuple[int, ...] = (2, 3, 3)) -> tuple[Tensor, Tensor]:
    """(eps, x0), each (n, *shape)."""
    noise = Noise(range(n), torch.device("cpu"))
    return noise(torch.empty(n, *shape)), spread * noise(torch.empty(n, *shape)) + 0.2


def cost(eps: Tensor, x0: Tensor) -> float:
    return float((x0 - eps).double().square().sum())


@pytest.mark.parametrize("n", [1, 2, 6])
def test_the_pairs_are_the_closest_of_all_permutations(n):
    eps, x0 = batch(n)
    best = min(cost(eps[list(order)], x0) for order in itertools.permutations(range(n)))
    assert cost(paired(eps, x0), x0) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("n", [3, 64])
def test_the_noises_are_those_drawn_in_another_order_and_never_farther(n):
    eps, x0 = batch(n)
    again = paired(eps, x0)
    assert torch.equal(again.flatten(1).sort(0).values, eps.flatten(1).sort(0).values)
    assert cost(again, x0) < cost(eps, x0)
    assert torch.equal(paired(eps, x0), again)


def test_the_pairs_are_those_of_float32_where_networks_run_in_bf16():
    eps, x0 = batch(128, shape=(3, 16, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = paired(eps, x0)
    assert torch.equal(autocast, paired(eps, x0))


def test_one_sample_keeps_its_noise():
    eps, x0 = batch(1)
    assert torch.equal(paired(eps, x0), eps)


def test_noise_that_is_closest_already_stays():
    eps, _ = batch(16)
    assert torch.equal(paired(eps, 2 * eps + 1), eps)


def test_paths_to_two_clusters_no_longer_cross():
    """Data at -2 and 2: paired as drawn, half of the straight paths cross the middle; coupled, almost none does."""
    n = 200
    eps, _ = batch(n, shape=(1, 1, 1))
    x0 = torch.where(torch.arange(n) % 2 == 0, -2.0, 2.0)[:, None, None, None]
    crossing = [float((e.sign() != x0.sign()).double().mean()) for e in (eps, paired(eps, x0))]
    assert crossing[0] > 0.4
    assert crossing[1] < 0.1
    told = [float(torch.corrcoef(torch.stack([e.flatten(), x0.flatten()]))[0, 1]) for e in (eps, paired(eps, x0))]
    assert (
        abs(told[0]) < 0.2
    )  # at t = 1 the noise says nothing of its image, so the ideal velocity is a mean of both clusters
    assert told[1] == pytest.approx((2 / torch.pi) ** 0.5, abs=0.03)  # now its sign says it all, and one step would do
