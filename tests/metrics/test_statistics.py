"""Streamed moments, the Frechet distance's known answers, and statistics files."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffcli.config import UserError
from diffcli.metrics.statistics import FeatureMoments, Statistics, frechet
from diffcli.noise import Noise


def features(seed: int, n: int, dim: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return Noise([seed], torch.device("cpu"))(torch.empty(1, n, dim, dtype=torch.float64))[0] * scale + shift


def covariance(seed: int, dim: int) -> Tensor:
    return features(seed, 3 * dim, dim).T.cov()


def gather(x: Tensor, sizes: list[int]) -> Statistics:
    moments = FeatureMoments()
    for batch in x.split(sizes):
        moments.update(batch)
    return moments.statistics()


def test_moments_are_mean_and_unbiased_covariance():
    x = features(0, 200, 7)
    found = gather(x, [200])
    torch.testing.assert_close(found.mu, x.mean(0))
    torch.testing.assert_close(found.sigma, x.T.cov())
    assert found.n == 200


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=5), seed=st.integers(0, 100))
def test_moments_do_not_depend_on_batches_or_order(cuts: list[int], seed: int):
    x = features(seed, 60, 5)
    edges = [0, *sorted(cuts), 60]
    whole = gather(x, [60])
    split = gather(x.flip(0), [b - a for a, b in pairwise(edges)])
    torch.testing.assert_close(whole.mu, split.mu, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.sigma, split.sigma, rtol=0, atol=1e-12)


def test_moments_survive_a_mean_far_larger_than_the_spread():
    x = features(1, 500, 3)
    far = gather(x + 1e7, [100] * 5)
    torch.testing.assert_close(far.sigma, x.T.cov(), rtol=1e-6, atol=1e-6)


def test_moments_keep_a_state_of_constant_size():
    moments = FeatureMoments()
    sizes = set()
    for i in range(4):
        moments.update(features(i, 1000, 16).float())
        sizes.add(sum(t.numel() for t in moments.sums or ()))
    assert sizes == {16 + 16 + 256}


def test_a_covariance_of_one_image_is_refused():
    moments = FeatureMoments()
    moments.update(torch.ones(1, 3))
    with pytest.raises(ValueError, match="at least 2"):
        moments.statistics()


def test_frechet_of_commuting_covariances_is_the_closed_form():
    mu1, mu2 = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    s1, s2 = torch.tensor([4.0, 9.0, 1.0]), torch.tensor([1.0, 16.0, 0.0])
    expected = 1 + 9 + sum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in zip(s1.tolist(), s2.tolist(), strict=True))
    assert frechet(mu1, s1.diag(), mu2, s2.diag()) == pytest.approx(expected, abs=1e-9)


def test_frechet_of_two_by_two_covariances_is_the_closed_form():
    # tr (S1 S2)^(1/2) of 2x2 matrices: sqrt(tr(S1 S2) + 2 sqrt(det(S1 S2)))
    s1, s2 = covariance(1, 2), covariance(2, 2)
    product = s1 @ s2
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = (s1.trace() + s2.trace() - 2 * root).item()
    assert frechet(torch.zeros(2), s1, torch.zeros(2), s2) == pytest.approx(expected, abs=1e-9)


def test_frechet_of_equal_sets_is_zero():
    for n in (400, 20):  # full rank, and fewer images than dimensions
        x = features(3, n, 64)
        a, b = gather(x, [n]), gather(x.flip(0), [n // 2, n - n // 2])
        assert frechet(a.mu, a.sigma, b.mu, b.sigma) == pytest.approx(0, abs=1e-5)


def test_frechet_is_symmetric_and_unchanged_by_rotation():
    (mu1, s1), (mu2, s2) = ((features(i, 1, 20)[0], covariance(i, 20)) for i in (1, 2))
    turn = torch.linalg.qr(features(9, 20, 20)).Q
    forward = frechet(mu1, s1, mu2, s2)
    assert frechet(mu2, s2, mu1, s1) == pytest.approx(forward, rel=1e-9)
    assert frechet(turn @ mu1, turn @ s1 @ turn.T, turn @ mu2, turn @ s2 @ turn.T) == pytest.approx(forward, rel=1e-9)


def test_frechet_agrees_with_torchmetrics():
    import diffcli.torchvision_compat  # noqa: F401, I001
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Identity(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    oracle = FrechetInceptionDistance(Identity(), input_img_size=(32,))
    oracle.set_dtype(torch.float64)
    real, fake = features(1, 300, 32), features(2, 250, 32, scale=1.3, shift=0.2)
    for side, x in ((True, real), (False, fake)):
        for batch in x.split(50):
            oracle.update(batch, real=side)
    a, b = gather(real, [100, 200]), gather(fake, [250])
    assert frechet(a.mu, a.sigma, b.mu, b.sigma) == pytest.approx(oracle.compute().item(), rel=1e-6)


def test_statistics_come_back_from_their_file(tmp_path):
    given_ = Statistics(torch.ones(3), torch.eye(3), 17, "an extractor", "a layer")
    path = tmp_path / "ref.npz"
    given_.save(path)
    found = Statistics.load(path)
    assert found[2:] == (17, "an extractor", "a layer")
    assert torch.equal(found.mu, given_.mu.double())
    assert torch.equal(found.sigma, given_.sigma.double())
    assert found.mu.dtype == torch.float64


def test_statistics_of_another_tool_have_only_mu_and_sigma(tmp_path):
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(4, np.float32), sigma=np.eye(4), mu_s=np.zeros(2))
    assert Statistics.load(tmp_path / "foreign.npz")[2:] == (None, None, None)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mu": np.zeros(3)}, "has no array sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, "do not fit"),
        ({"mu": np.zeros(3, int), "sigma": np.eye(3)}, "do not fit"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "not finite"),
        ({"mu": np.array([None, 1]), "sigma": np.eye(2)}, "cannot be read"),
    ],
)
def test_statistics_that_cannot_be_are_refused(tmp_path, arrays, said):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=said) as error:
        Statistics.load(path)
    assert str(path) in error.value.problem
    assert "mu (D,)" in error.value.hint


def test_a_truncated_statistics_file_is_refused(tmp_path):
    path = tmp_path / "ref.npz"
    Statistics(torch.ones(30), torch.eye(30)).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read"):
        Statistics.load(path)
