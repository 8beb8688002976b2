"""Usage of codes: whole windows, whatever the batches."""

import torch

from diffcli.networks.bottlenecks import Fsq, Vq
from diffcli.networks.code_usage import CodeUsage


def counts(*of: int) -> torch.Tensor:
    return torch.tensor(of)


def test_without_a_window_one_of_50000_images_is_counted() -> None:
    """As where training data have no length; runs that wrote their window keep it."""
    assert CodeUsage(4, None).window == 50_000
    assert Vq().trained_on(700).window == Fsq().trained_on(700).window == 700
    assert Vq(window=9).trained_on(700).window == 9


def test_a_window_that_is_full_speaks_until_the_next_is() -> None:
    usage = CodeUsage(4, window=10)
    assert usage.terms(2)["usage"].tolist() == [0, 0]
    usage.add(counts(6, 0, 0, 0), 6)
    assert usage.terms(1)["usage"] == 0.25
    usage.add(counts(0, 6, 0, 0), 6)
    assert usage.terms(1)["usage"] == 0.5
    usage.add(counts(0, 0, 1, 0), 1)
    assert usage.terms(1)["usage"] == 0.5
    usage.add(counts(3, 3, 3, 3), 12)
    assert usage.terms(1)["usage"] == 1


def test_perplexity_is_the_number_of_codes_that_would_occur_alike() -> None:
    usage = CodeUsage(8, window=100)
    usage.add(counts(5, 5, 0, 5, 0, 5, 0, 0), 20)
    torch.testing.assert_close(usage.terms(1)["perplexity"], torch.tensor([4.0]))


def test_large_counts_are_exact() -> None:
    usage = CodeUsage(2, window=10**12)
    for _ in range(3):
        usage.add(counts(2**40 + 1, 1), 1)
    assert usage.counts.tolist() == [3 * (2**40 + 1), 3]
