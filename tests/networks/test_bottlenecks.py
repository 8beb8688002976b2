"""What every bottleneck keeps, and the KL of a normal posterior."""

import math

import pytest
import torch

from diffcli.networks.bottleneck import as_maps, as_rows
from diffcli.networks.bottlenecks import LOG_VARIANCE, AnyBottleneck, Fsq, Gaussian, Identity, Kl, Vq
from diffcli.networks.memory_format import memory_format
from tests.networks.waking import normal
from tests.ranks import Alone

BOTTLENECKS = [
    Identity(),
    Kl(),
    Vq(codes=8),
    Vq(codes=8, codebook="gradient", estimator="rotation"),
    Fsq(levels=(3, 4)),
]


@pytest.mark.parametrize("config", BOTTLENECKS, ids=lambda b: b.kind)
def test_what_is_diffused_is_snapped_to_what_the_decoder_was_given(config: AnyBottleneck) -> None:
    bottleneck = config.build(2)
    h = normal(3, bottleneck.inputs, 4, 5)
    coded = bottleneck(h, None)
    latent = bottleneck.latent(h, None)
    assert latent.shape == coded.z.shape == (3, bottleneck.channels, 4, 5)
    assert config.inputs(2) == bottleneck.inputs
    assert bottleneck.snapped(latent).allclose(coded.z, atol=1e-6)
    assert (coded.codes is None) == (bottleneck.bits is None)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("config", [b for b in BOTTLENECKS if b.build(2).bits is not None], ids=lambda b: b.kind)
def test_a_latent_that_is_no_number_has_a_code_and_is_told_by_what_the_decoder_is_given(
    config: AnyBottleneck, value: float
) -> None:
    """A run that diverged shall stop for its loss, not for a code that there is not."""
    bottleneck, h = config.build(2), normal(3, 2, 4, 5)
    h[1, :, 2, 3] = value
    coded = bottleneck(h, None)
    assert coded.codes is not None
    assert coded.codes.min() >= 0
    assert coded.codes.max() < 2**bottleneck.bits - 0.5
    assert coded.z.isfinite().all() == (config.kind == "fsq" and math.isinf(value)), "tanh of infinity is 1"
    bottleneck.remember(coded, h)
    bottleneck.update(Alone())
    assert all(state.isfinite().all() for state in bottleneck.state_dict().values())


@pytest.mark.parametrize("config", BOTTLENECKS, ids=lambda b: b.kind)
def test_an_image_is_coded_alike_in_any_batch(config: AnyBottleneck) -> None:
    bottleneck = config.build(2).eval()
    h, noise = normal(3, bottleneck.inputs, 4, 5), normal(3, 2, 4, 5, seed=1)
    whole, one = bottleneck(h, noise), bottleneck(h[1:2], noise[1:2])
    assert whole.z[1:2].equal(one.z)
    assert whole.loss[1:2].equal(one.loss)
    assert all(whole.terms[name][1:2].equal(term) for name, term in one.terms.items())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("config", BOTTLENECKS, ids=lambda b: b.kind)
def test_the_decoder_is_given_the_memory_format_of_the_encoder(
    config: AnyBottleneck, layout: torch.memory_format
) -> None:
    bottleneck = config.build(2)
    h = normal(3, bottleneck.inputs, 4, 5).contiguous(memory_format=layout)
    z = bottleneck(h, None).z
    for maps in (z, bottleneck.snapped(z), bottleneck.latent(h, None)):
        assert memory_format(maps) is layout


@pytest.mark.parametrize("config", BOTTLENECKS, ids=lambda b: b.kind)
def test_half_precision_goes_in_and_float32_comes_out(config: AnyBottleneck) -> None:
    bottleneck = config.build(2)
    h = normal(3, bottleneck.inputs, 4, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coded, latent = bottleneck(h, None), bottleneck.latent(h, None)
    wide = bottleneck(h.float(), None)
    assert coded.z.dtype == coded.loss.dtype == latent.dtype == torch.float32
    assert coded.z.equal(wide.z)
    assert coded.loss.equal(wide.loss)


def test_the_kl_is_that_of_two_normal_distributions_summed_over_an_image() -> None:
    gaussian = Kl(beta=0.5).build(3)
    h = normal(2, 6, 4, 5)
    mean, log_variance = h.chunk(2, dim=1)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    coded = gaussian(h, None)
    torch.testing.assert_close(coded.terms["kl"], kl)
    torch.testing.assert_close(coded.loss, 0.5 * kl)
    assert gaussian(torch.zeros(1, 6, 2, 2), None).loss == 0


def test_noise_samples_the_posterior_and_its_absence_is_the_mode() -> None:
    gaussian = Gaussian(1, 1.0)
    h = torch.cat([torch.full((1, 1, 300, 300), 3.0), torch.full((1, 1, 300, 300), 2 * torch.tensor(0.5).log())], 1)
    z = gaussian.latent(h, normal(1, 1, 300, 300))
    assert abs(z.mean() - 3) < 0.01
    assert abs(z.std() - 0.5) < 0.01
    assert gaussian.latent(h, None).equal(h[:, :1])
    assert gaussian(h, normal(1, 1, 300, 300)).z.equal(z)


def test_a_log_variance_out_of_range_stays_finite() -> None:
    gaussian = Gaussian(1, 1.0)
    for extreme, bound in zip((-1e4, 1e4), LOG_VARIANCE, strict=True):
        h = torch.tensor([0.0, extreme]).view(1, 2, 1, 1).requires_grad_()
        coded = gaussian(h, torch.ones(1, 1, 1, 1))
        assert coded.z.item() == pytest.approx(torch.tensor(bound / 2).exp().item())
        assert coded.loss.isfinite().all()


def test_rows_are_positions_and_go_back_where_they_came_from() -> None:
    x = normal(2, 3, 4, 5)
    rows = as_rows(x)
    assert rows.shape == (40, 3)
    assert rows[7].equal(x[0, :, 1, 2])
    assert as_maps(rows, x).equal(x)
