"""Losses: the weighted distance of the network's own target, and the variational term that the variance is trained by."""

import pytest
import torch
from torch import Tensor, nn

from diffcli.diffusion.denoiser import Denoiser, coefficients, over
from diffcli.diffusion.losses import denoising_loss
from diffcli.diffusion.schedule import Cosine, DiscreteSchedule, Linear
from diffcli.diffusion.weights import L1, L2, Huber, MinSnr, NoWeight
from tests.diffusion.grey import images
from tests.diffusion.oracle import SCHEDULES, TARGETS, kind

DISCRETE = [s for s in SCHEDULES if isinstance(s, DiscreteSchedule)]


class Linearly(nn.Module):
    """A network with a weight for the mean and one for the variance, so that gradients to each can be told apart."""

    def __init__(self, learn_variance: bool = False) -> None:
        super().__init__()
        self.learn_variance = learn_variance
        self.mean = nn.Parameter(torch.tensor(0.7))
        self.variance = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, time: Tensor, cond: object) -> Tensor:
        y = self.mean * x + time[:, None, None, None] / 2000
        return torch.cat([y, self.variance * x], 1) if self.learn_variance else y


def times(schedule, batch: int = 6) -> Tensor:
    return schedule.snap(torch.linspace(0.03, 0.97, batch, dtype=torch.float64))


def wanted(target: str, schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What the network regresses, spelled out."""
    alpha, sigma = (over(c, x0) for c in schedule.alpha_sigma(t))
    return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[target]


def returned(network: nn.Module, schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What it returns."""
    alpha, sigma = (over(c, x0) for c in schedule.alpha_sigma(t))
    return network(alpha * x0 + sigma * eps, schedule.network_time(t).float(), None)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("target", TARGETS)
def test_mse_is_the_squared_error_of_what_the_network_returns(target, schedule):
    (x0, eps), t, network = images(), times(schedule), Linearly()
    difference = returned(network, schedule, x0, eps, t) - wanted(target, schedule, x0, eps, t)
    terms = denoising_loss(Denoiser(network, schedule, target, learn_variance=False), x0, eps, t, None)
    expected = difference.square().flatten(1).mean(1)
    assert set(terms) == {"loss", "mse"}
    torch.testing.assert_close(terms["mse"], expected, rtol=1e-3, atol=1e-5)
    assert torch.equal(terms["loss"], terms["mse"])


@pytest.mark.parametrize("distance", [L2(), L1(), Huber(delta=0.5)], ids=kind)
@pytest.mark.parametrize("weight", [NoWeight(), MinSnr(gamma=2)], ids=kind)
def test_the_loss_is_the_weighted_distance_and_the_log_keeps_the_squared_error(distance, weight):
    (x0, eps), t, network = images(), times(Cosine()), Linearly()
    difference = returned(network, Cosine(), x0, eps, t) - wanted("v", Cosine(), x0, eps, t)
    terms = denoising_loss(Denoiser(network, Cosine(), "v", False), x0, eps, t, None, weight, distance)
    each = {"l2": difference**2, "l1": difference.abs(), "huber": 2 * huber(difference, 0.5)}[distance.kind]
    factor = weight.factor("v", *Cosine().alpha_sigma(t)).float()
    torch.testing.assert_close(terms["loss"], factor * each.flatten(1).mean(1), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(terms["mse"], difference.square().flatten(1).mean(1), rtol=1e-3, atol=1e-5)


def huber(difference: Tensor, delta: float) -> Tensor:
    return nn.functional.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=delta)


@pytest.mark.parametrize("schedule", DISCRETE, ids=kind)
def test_the_variational_term_sends_no_gradient_to_the_mean(schedule):
    (x0, eps), network = images(), Linearly(learn_variance=True)
    t = torch.tensor([1, 2, 10, 400, 999, 1000], dtype=torch.float64) / 1000
    denoiser = Denoiser(network, schedule, "eps", learn_variance=True)
    terms = denoising_loss(denoiser, x0, eps, t, None)
    for i in range(6):
        to_mean, to_variance = torch.autograd.grad(
            terms["vlb"][i], (network.mean, network.variance), retain_graph=True, allow_unused=True
        )
        assert to_mean is None or to_mean == 0
        assert to_variance.isfinite()
        assert to_variance != 0
    to_mean, to_variance = torch.autograd.grad(
        terms["mse"].sum(), (network.mean, network.variance), allow_unused=True, retain_graph=True
    )
    assert to_mean != 0
    assert to_variance is None or to_variance == 0


@pytest.mark.parametrize("schedule", [Cosine(), Linear(steps=4000), Linear(steps=7)], ids=kind)
@pytest.mark.parametrize("weight", [NoWeight(), MinSnr()], ids=kind)
def test_the_hybrid_loss_adds_a_thousandth_of_the_steps_times_the_variational_term(schedule, weight):
    """Whatever weighs the squared error: the two train different channels."""
    (x0, eps), t = images(), times(schedule)
    denoiser = Denoiser(Linearly(learn_variance=True), schedule, "eps", learn_variance=True)
    terms = denoising_loss(denoiser, x0, eps, t, None, weight)
    factor = weight.factor("eps", *schedule.alpha_sigma(t)).float()
    assert set(terms) == {"loss", "mse", "vlb"}
    torch.testing.assert_close(terms["loss"], factor * terms["mse"] + 0.001 * schedule.steps * terms["vlb"])


def test_learning_the_variance_leaves_the_squared_error_alone():
    (x0, eps), t = images(), times(Cosine())
    plain = denoising_loss(Denoiser(Linearly(), Cosine(), "v", False), x0, eps, t, None)
    learned = denoising_loss(Denoiser(Linearly(True), Cosine(), "v", True), x0, eps, t, None)
    assert torch.equal(plain["mse"], learned["mse"])


def test_a_denoiser_of_one_image_has_no_loss():
    (x0, eps), t = images(), times(Cosine())

    class Exact(nn.Module):
        def forward(self, x: Tensor, time: Tensor, cond: object) -> Tensor:
            a, b = (over(c, x0) for c in coefficients("v", *Cosine().alpha_sigma(t)))
            return a * x0 + b * eps

    terms = denoising_loss(Denoiser(Exact(), Cosine(), "v", False), x0, eps, t, None)
    torch.testing.assert_close(terms["loss"], torch.zeros(6), rtol=0, atol=1e-9)
