"""Weights and distances: min-SNR as its paper states it for each target, and EDM's preconditioning as the plain v loss."""

import math

import pytest
import torch
from torch import Tensor, nn

from diffcli import preset as presets
from diffcli.diffusion.denoiser import Denoiser, coefficients, over
from diffcli.diffusion.losses import denoising_loss
from diffcli.diffusion.schedule import Flow, Schedule
from diffcli.diffusion.times import LogNormalSigma
from diffcli.diffusion.weights import L1, L2, AnyDistance, Huber, MinSnr, NoWeight, Velocity, excess
from diffcli.noise import Noise
from diffcli.tasks.diffusion_config import DiffusionConfig
from tests.diffusion.grey import images
from tests.diffusion.oracle import SCHEDULES, TARGETS, kind, members

PRESERVING = [s for s in SCHEDULES if not isinstance(s, Flow)]
LOG_SNR = torch.tensor([7.0, 4, 1, -0.5, -2, -5], dtype=torch.float64)  # of noise levels that float32 can tell


@pytest.mark.parametrize("schedule", PRESERVING, ids=kind)
def test_min_snr_is_its_papers_formula_for_eps_x0_and_v(schedule):
    """min(SNR, gamma) / SNR, min(SNR, gamma) and min(SNR, gamma) / (SNR + 1)."""
    t, weight = schedule.snap(schedule.time(LOG_SNR)), MinSnr(gamma=5)
    alpha, sigma = schedule.alpha_sigma(t)
    snr = schedule.log_snr(t).exp()
    for target, excess_error in (("eps", snr), ("x0", torch.ones_like(snr)), ("v", snr + 1)):
        torch.testing.assert_close(weight.factor(target, alpha, sigma), snr.clamp(max=5) / excess_error)


def test_min_snr_on_the_straight_path_weighs_the_velocity():
    t = Flow().time(LOG_SNR)
    alpha, sigma = Flow().alpha_sigma(t)
    expected = (alpha / sigma).square().clamp(max=5) * t.square()  # the velocity's error is that of x0 over t
    torch.testing.assert_close(MinSnr(gamma=5).factor("flow", alpha, sigma), expected)


@pytest.mark.parametrize("target", TARGETS)
def test_the_velocity_weight_on_the_straight_path_is_the_squared_error_of_the_velocity(target):
    """Whatever the network regresses, the loss is that of flow matching; near t = 0, less: x0's error is not divided by 0."""
    (x0, eps), schedule = images(), Flow()
    t = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1, 0.05], dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    wrong_eps = eps.double() - over(alpha / sigma, x0.double()) * 0.3  # what x_t tells of eps where x0 is 0.3 too high
    a, b = (over(c, x0.double()) for c in coefficients(target, alpha, sigma))
    network = Returns((a * (x0 + 0.3) + b * wrong_eps).float())
    loss = denoising_loss(Denoiser(network, schedule, target, False), x0, eps, t, None, Velocity(floor=0.05))["loss"]
    torch.testing.assert_close(loss.double(), (0.3 / t).square(), rtol=1e-3, atol=1e-4)
    assert Velocity(floor=0.1).factor("x0", 1 - t, t)[-1] == pytest.approx(100)


class Returns(nn.Module):
    """A network whose output is given."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.y = y

    def forward(self, x: Tensor, time: Tensor, cond: object) -> Tensor:
        return self.y


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_min_snr_makes_the_loss_the_same_whatever_the_network_regresses(schedule):
    """The same wrong x0 told as eps, x0, v or flow costs min(SNR, gamma) times its squared error."""
    (x0, eps), t = images(), schedule.snap(schedule.time(LOG_SNR))
    alpha, sigma = schedule.alpha_sigma(t)
    expected = (alpha / sigma).square().clamp(max=5).float() * 0.3**2
    wrong_eps = eps.double() - over(alpha / sigma, x0.double()) * 0.3  # what x_t tells of eps where x0 is 0.3 too high
    for target in TARGETS:
        a, b = (over(c, x0.double()) for c in coefficients(target, alpha, sigma))
        network = Returns((a * (x0 + 0.3) + b * wrong_eps).float())
        terms = denoising_loss(Denoiser(network, schedule, target, False), x0, eps, t, None, MinSnr(gamma=5))
        torch.testing.assert_close(terms["loss"], expected, rtol=2e-3, atol=1e-5)
        factor = excess(target, alpha, sigma).float()
        torch.testing.assert_close(terms["mse"], factor * 0.3**2, rtol=2e-3, atol=1e-5)


def test_without_a_weight_every_level_counts_as_its_target_says():
    alpha, sigma = Flow().alpha_sigma(Flow().time(LOG_SNR))
    assert all((NoWeight().factor(target, alpha, sigma) == 1).all() for target in TARGETS)


@pytest.mark.parametrize("cls", members(AnyDistance), ids=kind)
def test_a_distance_is_even_zero_at_zero_and_grows(cls):
    d = torch.linspace(0, 6, 200, dtype=torch.float64)
    far = cls()(d)
    assert torch.equal(far, cls()(-d))
    assert far[0] == 0
    assert (far.diff() > 0).all()


def test_huber_is_l2_within_delta_and_joins_a_line_without_a_kink():
    near, delta = torch.linspace(-0.7, 0.7, 9, dtype=torch.float64), 0.7
    torch.testing.assert_close(Huber(delta=delta)(near), L2()(near))
    far = torch.tensor([0.7 - 1e-9, 0.7 + 1e-9, 2, 5], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(Huber(delta=delta)(far).sum(), far)
    torch.testing.assert_close(slope, torch.full_like(slope, 1.4))
    torch.testing.assert_close(Huber(delta=delta)(far), 2 * delta * L1()(far) - delta**2)


class Raw(nn.Module):
    """EDM's raw network F, some function of its input; `sign` -1 makes it what we regress."""

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, x: Tensor, time: Tensor, cond: object) -> Tensor:
        return self.sign * (0.4 * x + 0.3 * torch.sin(3 * x))


@pytest.mark.parametrize("schedule", PRESERVING, ids=kind)
@pytest.mark.parametrize("sigma_data", [0.5, 0.62])
def test_edms_preconditioned_denoiser_is_ours_with_minus_v(schedule: Schedule, sigma_data: float):
    """D(x; sigma) = c_skip x + c_out F(c_in x), Karras et al. 2022, eq. 7 and table 1, in pixels; ours in pixels / sigma_data."""
    (y, n), t = images(), schedule.snap(schedule.time(LOG_SNR))
    alpha, s = schedule.alpha_sigma(t)
    sigma = over(s / alpha * sigma_data, y)  # of the noise that EDM adds to pixels
    x = y + sigma * n
    total = (sigma**2 + sigma_data**2).sqrt()
    c_skip, c_out, c_in = sigma_data**2 / total**2, sigma * sigma_data / total, 1 / total
    expected = c_skip * x + c_out * Raw(1)(c_in * x, t, None)
    x_t = over(alpha, y) * y / sigma_data + over(s, y) * n
    torch.testing.assert_close(c_in * x, x_t, rtol=1e-4, atol=1e-5)  # the network sees the same input
    ours = Denoiser(Raw(-1), schedule, "v", learn_variance=False)(x_t, t, None)
    torch.testing.assert_close(ours.x0 * sigma_data, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", PRESERVING, ids=kind)
def test_the_unweighted_v_loss_is_edms_weighted_loss(schedule: Schedule):
    """lambda(sigma) |D - y|^2 with lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, so that lambda c_out^2 = 1."""
    (y, n), t, sigma_data = images(dtype=torch.float64), schedule.snap(schedule.time(LOG_SNR)), 0.5
    alpha, s = schedule.alpha_sigma(t)
    sigma = over(s / alpha * sigma_data, y)
    total = (sigma**2 + sigma_data**2).sqrt()
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    torch.testing.assert_close(weight * (sigma * sigma_data / total) ** 2, torch.ones_like(weight))
    x = y + sigma * n
    d = sigma_data**2 / total**2 * x + sigma * sigma_data / total * Raw(1)(x / total, t, None)
    edm = (weight * (d - y) ** 2).flatten(1).mean(1)
    terms = denoising_loss(Denoiser(Raw(-1), schedule, "v", False), y.float() / sigma_data, n.float(), t, None)
    torch.testing.assert_close(terms["loss"].double(), edm, rtol=2e-3, atol=1e-5)


def test_the_edm_preset_trains_at_edms_noise_levels():
    """ln sigma ~ N(-1.2, 1.2^2) in pixels of [-1, 1]: a share of the images at each level as Karras et al. 2022 state it."""
    task = presets.load("mnist-edm").task
    assert isinstance(task, DiffusionConfig)
    assert task.target == "v"
    assert task.codec.scale == 1 / 0.5
    assert isinstance(task.times, LogNormalSigma)
    n = 20_000
    u = Noise(torch.arange(n), torch.device("cpu")).uniform()
    t, _ = task.times.sample(u, torch.arange(n), task.schedule)
    alpha, s = task.schedule.alpha_sigma(t)
    in_pixels = (s / alpha / task.codec.scale).log()
    assert float(in_pixels.mean()) == pytest.approx(-1.2, abs=0.02)
    assert float(in_pixels.std()) == pytest.approx(1.2, abs=0.02)
    assert float(task.schedule.log_snr(torch.ones(()))) == pytest.approx(-2 * math.log(80 / 0.5))
