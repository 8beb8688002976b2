"""Dropout as a function of (seed, layer, element)."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from diffcli import preset as presets
from diffcli.networks.dropout import LAYERS, SPREAD, Dropout, MaskBits, hashed, number_dropouts
from tests.counting import META, count
from tests.networks.waking import normal

SEEDS = torch.tensor([3, 4, 5, 2**62])


def layer(p: float, number: int = 0) -> Dropout:
    made = Dropout(p)
    made.layer = number
    return made


def dropped(p: float, seeds: Tensor = SEEDS, shape: tuple[int, ...] = (8, 50, 50), number: int = 0) -> Tensor:
    return layer(p, number)(torch.ones(len(seeds), *shape), MaskBits(seeds))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_share_dropped_is_p_and_the_mean_is_kept(p: float) -> None:
    y = dropped(p)
    n = y[0].numel()
    share = (y == 0).float().mean(dim=(1, 2, 3))
    assert ((share - p).abs() < 5 * (p * (1 - p) / n) ** 0.5 + 2**-16).all()
    torch.testing.assert_close(y[y > 0].max(), torch.tensor(1 / (1 - p)), rtol=1e-6, atol=0)


def test_neighbouring_elements_and_samples_are_independent() -> None:
    mask = (dropped(0.5) > 0).double() - 0.5
    flat = mask.flatten(1)
    pairs = [(flat[:, lag:], flat[:, :-lag]) for lag in (1, 2, 50, 2500)]
    pairs += [
        (flat[i, lag:], flat[j, : flat.shape[1] - lag]) for i, j in combinations(range(4), 2) for lag in (0, 1, 2)
    ]
    for a, b in pairs:
        assert abs(4 * (a * b).mean()) < 5 / a.numel() ** 0.5


def chi_square(a: Tensor, b: Tensor, p: float) -> float:
    """Of the four outcomes of two events of probability p, against independence; of 3 degrees of freedom."""
    found = torch.stack([(a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()]).double()
    expected = torch.tensor([p * p, p * (1 - p), p * (1 - p), (1 - p) ** 2], dtype=torch.float64) * a.numel()
    return float(((found - expected).square() / expected).sum())


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_layers_drop_independently_pair_by_pair(p: float) -> None:
    """Neighbours and the worst pairs of the lattice test below; 25 is exceeded by chance once in 65,000 tests."""
    numbers = [0, 1, 2, 3, 10, 57, 100, LAYERS - 1]
    masks = [dropped(p, torch.arange(8) + 100, (64, 32, 32), number) == 0 for number in numbers]
    for a, b in combinations(masks, 2):
        assert chi_square(a, b, p) < 25


def test_no_two_of_many_layers_see_a_lattice_with_a_short_vector() -> None:
    """The spectral test of linear congruential generators; Source: Knuth, volume 2, section 3.3.4."""
    ratio, shortest = 1, float("inf")
    for _ in range(LAYERS):
        ratio = ratio * SPREAD % 2**32
        u, v = (2**32, 0), (-ratio % 2**32, 1)
        while True:  # Gauss reduces the basis
            u, v = sorted((u, v), key=lambda w: w[0] ** 2 + w[1] ** 2)
            square = u[0] ** 2 + u[1] ** 2
            share = (2 * (u[0] * v[0] + u[1] * v[1]) + square) // (2 * square)
            if share == 0:
                break
            v = (v[0] - share * u[0], v[1] - share * u[1])
        shortest = min(shortest, square**0.5)
    assert shortest > 8000


def test_the_words_are_uniform_in_every_bit() -> None:
    words = hashed(torch.arange(64), 4096)
    for bit in range(32):
        share = float(((words >> bit) & 1).double().mean())
        assert abs(share - 0.5) < 5 * 0.5 / words.numel() ** 0.5


def test_a_sample_is_dropped_alike_in_any_batch_and_memory_format() -> None:
    alone = dropped(0.3, SEEDS[2:3])
    assert torch.equal(alone, dropped(0.3)[2:3])
    wide = torch.ones(4, 8, 50, 50).contiguous(memory_format=torch.channels_last)
    y = layer(0.3)(wide, MaskBits(SEEDS))
    assert torch.equal(y, dropped(0.3))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_a_layer_drops_alike_whichever_sizes_came_before_it() -> None:
    """The words grow with the largest layer."""
    bits = MaskBits(SEEDS)
    after = [layer(0.3, 1)(torch.ones(4, *shape), bits) for shape in ((2, 5, 5), (8, 50, 50), (2, 5, 5))]
    assert torch.equal(after[0], after[2])
    assert torch.equal(after[1], dropped(0.3, number=1))
    assert torch.equal(after[0].flatten(1), after[1].flatten(1)[:, :50])


def test_the_gradient_passes_where_x_did() -> None:
    x = normal(4, 8, 5, 5).requires_grad_()
    y = layer(0.3)(x, MaskBits(SEEDS))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, (y != 0).float() / 0.7)


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


def test_a_training_forward_of_cifar10_takes_at_most_a_tenth_more_operations_with_dropout() -> None:
    """22 layers; each was about 195 operations, 5,725 in all against 1,391."""
    preset = presets.load("cifar10")
    with META:
        task = preset.task.build(preset.specs).train()
    fields = {"image": torch.zeros(2, 3, 32, 32, device=META), "position": torch.arange(2), "stream": torch.arange(2)}
    with_dropout = count(lambda: task(fields, "main")).total
    for module in task.modules():
        if isinstance(module, Dropout):
            module.dropped = 0
    assert with_dropout <= 1.1 * count(lambda: task(fields, "main")).total
