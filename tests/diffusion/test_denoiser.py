"""The denoiser: one 2x2 system turns every target on every schedule into x0 and eps."""

import pytest
import torch
from torch import Tensor, nn

from diffcli.diffusion.denoiser import Denoiser, coefficients, over
from diffcli.diffusion.schedule import Cosine, Flow, Linear
from diffcli.noise import Noise
from tests.diffusion.oracle import SCHEDULES, TARGETS, Mixture, TargetNetwork, kind, time_from_network_time

MIXTURE = Mixture((0.3, 0.7), (-0.8, 0.5), (0.2, 0.1))


class Returns(nn.Module):
    """A network that returns what it was given, and remembers what it was told."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.y = y
        self.told: tuple[Tensor, object] | None = None

    def forward(self, x: Tensor, time: Tensor, cond: object) -> Tensor:
        self.told = time, cond
        return self.y


def draws(batch: int, channels: int = 2) -> tuple[Tensor, Tensor]:
    noise, like = Noise(range(batch), torch.device("cpu")), torch.empty(batch, channels, 3, 5)
    return noise(like), noise(like)


@pytest.mark.parametrize(
    ("target", "expected"), [("eps", (0, 1)), ("x0", (1, 0)), ("v", (-0.8, 0.6)), ("flow", (-1, 1))]
)
def test_targets_are_those_of_the_literature(target, expected):
    a, b = coefficients(target, torch.tensor(0.6), torch.tensor(0.8))
    assert (float(a), float(b)) == pytest.approx(expected)


def test_every_target_has_coefficients():
    for target in TARGETS:
        a, b = coefficients(target, torch.tensor([0.6, 0.1]), torch.tensor([0.8, 0.9]))
        assert a.shape == b.shape == (2,)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("target", TARGETS)
def test_x0_and_eps_come_back_from_the_true_target(target, schedule):
    t = schedule.snap(torch.tensor([0.001, 0.03, 0.35, 0.5, 0.9], dtype=torch.float64))
    x0, eps = draws(len(t))
    alpha, sigma = (over(c, x0) for c in schedule.alpha_sigma(t))
    a, b = (over(c, x0) for c in coefficients(target, *schedule.alpha_sigma(t)))
    x_t = alpha * x0 + sigma * eps
    p = Denoiser(Returns(a * x0 + b * eps), schedule, target, learn_variance=False)(x_t, t, None)
    # in float32 the weak part of x_t is known to 1e-7 over its coefficient
    assert ((p.x0 - x0).abs() <= 1e-5 + 2e-6 / alpha).all()
    assert ((p.eps - eps).abs() <= 1e-5 + 2e-6 / sigma).all()
    assert p.var_frac is None


@pytest.mark.parametrize("target", ["x0", "v", "flow"])
def test_targets_with_signal_give_x0_where_flow_leaves_none_in_x(target):
    x0, eps = draws(2)
    t = torch.ones(2, dtype=torch.float64)
    a, b = (over(c, x0) for c in coefficients(target, *Flow().alpha_sigma(t)))
    p = Denoiser(Returns(a * x0 + b * eps), Flow(), target, learn_variance=False)(eps, t, None)
    torch.testing.assert_close(p.x0, x0, rtol=0, atol=1e-5)
    torch.testing.assert_close(p.eps, eps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("target", TARGETS)
def test_x_t_is_made_of_the_prediction_whatever_the_network_says(target, schedule):
    x_t, y = draws(4)
    t = schedule.snap(torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=torch.float64))
    p = Denoiser(Returns(y), schedule, target, learn_variance=False)(x_t, t, None)
    alpha, sigma = (over(c, x_t) for c in schedule.alpha_sigma(t))
    torch.testing.assert_close(alpha * p.x0 + sigma * p.eps, x_t, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_a_scalar_time_is_the_same_as_one_for_each_sample(target):
    x_t, y = draws(3)
    denoiser = Denoiser(Returns(y), Cosine(), target, learn_variance=False)
    t = torch.tensor(0.4, dtype=torch.float64)
    for one, many in zip(denoiser(x_t, t, None)[:2], denoiser(x_t, t.expand(3), None)[:2], strict=True):
        assert torch.equal(one, many)


def test_network_is_told_its_own_time_and_gets_the_condition_unread():
    x_t, y = draws(3)
    network, condition = Returns(y), object()
    t = torch.tensor([0.001, 0.5, 1], dtype=torch.float64)
    Denoiser(network, Linear(), "eps", learn_variance=False)(x_t, t, condition)
    time, given = network.told
    assert given is condition
    assert time.dtype == torch.float32
    torch.testing.assert_close(time, torch.tensor([0.0, 499, 999]), rtol=0, atol=1e-4)


def test_learned_variance_is_the_second_half_of_the_channels():
    x_t, y = draws(2)
    v = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
    t = torch.tensor(0.5, dtype=torch.float64)
    plain = Denoiser(Returns(y), Cosine(), "v", learn_variance=False)(x_t, t, None)
    p = Denoiser(Returns(torch.cat([y, v], 1)), Cosine(), "v", learn_variance=True)(x_t, t, None)
    assert torch.equal(p.x0, plain.x0)
    assert torch.equal(p.eps, plain.eps)
    assert p.var_frac.flatten()[[0, -1]].tolist() == [0, 1]  # v = -1 is var_small, v = 1 is var_large
    torch.testing.assert_close(p.var_frac, (v + 1) / 2)


def test_predictions_are_float32_whatever_the_network_computes_in():
    x_t, y = draws(2)
    p = Denoiser(Returns(y.bfloat16()), Cosine(), "v", learn_variance=False)(x_t, torch.tensor(0.5), None)
    assert p.x0.dtype == p.eps.dtype == torch.float32


def test_videos_are_denoised_like_images():
    x_t, y = Noise([0, 1], torch.device("cpu")), torch.empty(2, 3, 4, 5, 6)
    x_t, y = x_t(y), x_t(y)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    video = Denoiser(Returns(y), Cosine(), "v", learn_variance=False)(x_t, t, None)
    frame = Denoiser(Returns(y[:, :, 2]), Cosine(), "v", learn_variance=False)(x_t[:, :, 2], t, None)
    assert torch.equal(video.x0[:, :, 2], frame.x0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("target", TARGETS)
def test_heads_of_every_target_fed_by_one_oracle_agree(target, schedule):
    """The network double finds t from what it is told, so a wrong time map would show."""
    ideal = MIXTURE.denoise(schedule)
    denoiser = Denoiser(TargetNetwork(ideal, schedule, target), schedule, target, learn_variance=False)
    # from the first time that the network is told apart from those before it
    t = schedule.snap(torch.tensor([0.02, 0.3, 0.6, 0.9], dtype=torch.float64).clamp(min=schedule.cleanest))
    x = draws(4)[0].double()
    p, exact = denoiser(x, t, None), ideal(x, t)
    alpha, sigma = (over(c, x) for c in schedule.alpha_sigma(t))
    assert ((p.x0 - exact.x0).abs() <= 2e-5 + 1e-6 / alpha).all()  # the network's output is float32
    assert ((p.eps - exact.eps).abs() <= 2e-5 + 1e-6 / sigma).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_the_time_map_has_an_inverse(schedule):
    t = schedule.snap(torch.linspace(schedule.cleanest, 1, 57, dtype=torch.float64))
    back = time_from_network_time(schedule, schedule.network_time(t).float())
    torch.testing.assert_close(back, t, rtol=0, atol=1e-7)
