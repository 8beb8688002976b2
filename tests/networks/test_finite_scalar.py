"""Finite scalar quantisation: codes and latents are each other's inverse, and 0 stays 0."""

import math

import pytest
import torch

from diffcli.config import UserError
from diffcli.networks.finite_scalar import Fsq
from tests.networks.waking import normal
from tests.ranks import Alone

LEVELS = [(3,), (4,), (8, 5, 5, 5), (3, 4, 7), (16, 9)]


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_latents_are_inverse_to_each_other(levels: tuple[int, ...]) -> None:
    fsq = Fsq(levels=levels).build(len(levels))
    assert fsq.codes == math.prod(levels) == round(2 ** (fsq.bits or 0))
    codes = torch.arange(fsq.codes).view(1, -1)
    z = fsq.of_codes(codes)
    assert z.shape == (1, len(levels), fsq.codes)
    assert z.abs().max() <= 1
    assert fsq.codes_of(z).equal(codes)
    assert fsq.snapped(z).equal(z)
    assert len(z[0].T.unique(dim=0)) == fsq.codes


@pytest.mark.parametrize("levels", LEVELS)
def test_every_level_is_reached_and_no_other(levels: tuple[int, ...]) -> None:
    fsq = Fsq(levels=levels).build(len(levels))
    h = torch.linspace(-9, 9, 4001).view(1, 1, -1).expand(1, len(levels), -1)
    coded = fsq(h, None)
    for channel, level in enumerate(levels):
        found = (coded.z[0, channel] * (level // 2)).unique()
        assert found.tolist() == list(range(-(level // 2), level - level // 2))
    assert fsq.of_codes(coded.codes).equal(coded.z)


@pytest.mark.parametrize("levels", LEVELS)
def test_0_goes_to_0(levels: tuple[int, ...]) -> None:
    fsq = Fsq(levels=levels).build(len(levels))
    h = torch.zeros(1, len(levels), 2, 2)
    assert not fsq(h, None).z.any()
    assert fsq.latent(h, None).abs().max() < 1e-6


def test_the_rounding_passes_the_gradient_of_the_bound() -> None:
    fsq = Fsq(levels=(8, 5)).build(2)
    h, weight = normal(2, 2, 3, 3).requires_grad_(), normal(2, 2, 3, 3, seed=1)
    (through,) = torch.autograd.grad((fsq(h, None).z * weight).sum(), h)
    (bound,) = torch.autograd.grad((fsq.latent(h, None) * weight).sum(), h)
    torch.testing.assert_close(through, bound)
    assert through.all()


def test_a_diffused_latent_out_of_range_is_snapped_into_it() -> None:
    fsq = Fsq(levels=(4, 5)).build(2)
    z = fsq.snapped(torch.tensor([[[-9.0, 9.0], [-9.0, 9.0]]]))
    assert z.tolist() == [[[-1.0, 0.5], [-1.0, 1.0]]]


def test_usage_counts_what_occurred() -> None:
    fsq = Fsq(levels=(3, 3)).build(2)
    h = torch.zeros(2, 2, 4, 4)
    h[1] = 9
    for part in h.split(1):
        fsq.remember(fsq(part, None), part)
    fsq.update(Alone())
    terms = fsq(h, None).terms
    torch.testing.assert_close(terms["usage"], torch.full((2,), 2 / 9))
    torch.testing.assert_close(terms["perplexity"], torch.full((2,), 2.0))


def test_levels_and_channels_must_agree() -> None:
    with pytest.raises(UserError, match=r"task.network.latent is 4, but task.bottleneck.levels names 2 channels") as e:
        Fsq(levels=(8, 5)).build(4)
    assert "task.network.latent=2" in e.value.hint
