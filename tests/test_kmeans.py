"""K-means against loops and known answers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffcli import kmeans as module
from diffcli.kmeans import counts_of, factors, kmeans, nearest, sums_of
from tests.networks.waking import normal


def uniform(k: int, seed: int = 0) -> Tensor:
    return normal(k, seed=seed).double().mul(1 / 2**0.5).erf().add(1).div(2)


def brute(rows: Tensor, centres: Tensor) -> Tensor:
    return (rows.double()[:, None] - centres.double()).square().sum(-1).argmin(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 20), st.integers(1, 9), st.sampled_from([0.0, 100.0]), st.integers(0, 99))
def test_the_nearest_centre_is_that_of_brute_force_also_far_from_0(
    n: int, k: int, dim: int, offset: float, seed: int
) -> None:
    rows, centres = normal(n, dim, seed=seed) + offset, normal(k, dim, seed=seed + 100) + offset
    found = nearest(rows, centres)
    distances = (rows.double()[:, None] - centres.double()).norm(dim=2)
    assert (distances[torch.arange(n), found] <= distances.amin(1) + 1e-5).all()


def test_autocast_and_pieces_change_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, centres = normal(501, 5), normal(64, 5, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nearest(rows, centres).equal(brute(rows, centres))
    monkeypatch.setattr(module, "PIECE", 64 * 7)
    assert nearest(rows, centres).equal(brute(rows, centres))


def test_products_of_split_factors_are_those_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tensor cores make of the factors, done by hand: 10 bits of mantissa are left of each."""

    class OfAGpu(Tensor):
        device = torch.device("cuda")

    def cut(x: Tensor) -> Tensor:
        bits = x.as_subclass(Tensor).view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()

    a, b = normal(30, 8), normal(20, 8, seed=1)
    exact = a.double() @ b.double().T
    split = cut(factors(a.as_subclass(OfAGpu), 2)) @ cut(factors(b.as_subclass(OfAGpu), 1)).T
    assert (split - exact).abs().max() < 4e-6
    assert (cut(a) @ cut(b).T - exact).abs().max() > 1e-4, "and would not be, were they not split"


def test_sums_and_counts_are_those_of_each_code() -> None:
    rows, codes = normal(50, 3), torch.arange(50) * 7 % 5
    for code in range(6):
        mine = codes == code
        torch.testing.assert_close(sums_of(rows, codes, 6)[code], rows[mine].sum(0))
        assert counts_of(codes, 6)[code] == mine.sum()


def test_it_finds_clusters_that_lie_apart() -> None:
    middles = 100 * normal(8, 4)
    rows = (middles[:, None] + normal(8, 30, 4, seed=1)).flatten(0, 1)
    found = kmeans(rows, uniform(8), rounds=3)
    order = nearest(middles, found)
    assert order.sort().values.tolist() == list(range(8))
    torch.testing.assert_close(found[order], rows.view(8, 30, 4).mean(1))


def test_a_round_makes_the_distances_no_larger() -> None:
    rows = normal(300, 4)

    def distance(rounds: int) -> Tensor:
        centres = kmeans(rows, uniform(16), rounds)
        return (rows - centres[nearest(rows, centres)]).square().sum()

    distances = torch.stack([distance(rounds) for rounds in range(6)])
    assert (distances.diff() <= 1e-3).all()
    assert distances[-1] < 0.9 * distances[0]


def test_centres_are_drawn_in_proportion_to_the_squared_distance() -> None:
    rows = torch.tensor([[0.0], [0.0], [1.0], [3.0]])
    second = [kmeans(rows, torch.tensor([0.0, (i + 0.5) / 100]).double(), 0)[1].item() for i in range(100)]
    assert (second.count(0), second.count(1), second.count(3)) == (0, 10, 90)


def test_fewer_different_rows_than_centres_are_no_trouble() -> None:
    rows = torch.tensor([[1.0, 2.0]] * 6 + [[5.0, 5.0]] * 3)
    centres = kmeans(rows, uniform(4), rounds=2)
    assert centres.isfinite().all()
    assert {tuple(c) for c in centres.tolist()} == {(1.0, 2.0), (5.0, 5.0)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensor_cores_round_no_distance_and_sums_are_the_same_bits_every_time() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        rows, centres = normal(20_000, 16).cuda(), normal(512, 16, seed=1).cuda()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            codes = nearest(rows, centres)
        distances = (rows.double()[:, None] - centres.double()).square().sum(-1)
        excess = distances.gather(1, codes[:, None])[:, 0] - distances.amin(1)
        assert excess.max() < 1e-4, "by TF32 alone it is about 1e-2"
        first, *others = (sums_of(rows, codes, 512) for _ in range(5))
        assert all(first.equal(other) for other in others)
        torch.testing.assert_close(first.cpu(), sums_of(rows.cpu(), codes.cpu(), 512), atol=1e-3, rtol=1e-4)
    finally:
        torch.set_float32_matmul_precision(before)
