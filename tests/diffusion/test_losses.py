"""Losses: the squared error of the network's own target, and a variational term that is zero at the exact posterior."""

import math

import pytest
import torch
from torch import Tensor, nn

from diffcli.diffusion.denoiser import Denoiser, Prediction, coefficients, over
from diffcli.diffusion.losses import (
    HALF_BIN,
    AnyTimes,
    StratifiedTimes,
    UniformTimes,
    denoising_loss,
    discretised_log_likelihood,
    variational_term,
)
from diffcli.diffusion.schedule import Cosine, DiscreteSchedule, Flow, Linear, transition
from diffcli.noise import Noise
from tests.diffusion.oracle import SCHEDULES, TARGETS, kind, members

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
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


def images(batch: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """x0 on grey levels, and eps."""
    noise, like = Noise(range(batch), torch.device("cpu")), torch.empty(batch, 2, 4, 4, dtype=dtype)
    grey = (noise(like).mul(40).add(128)).round().clamp(0, 255)
    return grey / 127.5 - 1, noise(like)


def times(schedule, batch: int = 6) -> Tensor:
    return schedule.snap(torch.linspace(0.03, 0.97, batch, dtype=torch.float64))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("target", TARGETS)
def test_mse_is_the_squared_error_of_what_the_network_returns(target, schedule):
    (x0, eps), t, network = images(), times(schedule), Linearly()
    alpha, sigma = (over(c, x0) for c in schedule.alpha_sigma(t))
    x_t = alpha * x0 + sigma * eps
    plain = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[target]
    y = network(x_t, schedule.network_time(t).float(), None)
    weight = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    terms = denoising_loss(Denoiser(network, schedule, target, learn_variance=False), x0, eps, t, None, weight)
    expected = (y - plain).square().flatten(1).mean(1)
    assert set(terms) == {"loss", "mse"}
    torch.testing.assert_close(terms["mse"], expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(terms["loss"], expected * weight.float(), rtol=1e-3, atol=1e-5)


def true_step(schedule: DiscreteSchedule, t: Tensor, dtype: torch.dtype = torch.float64):
    """x0, x_t and the prediction whose step is exactly the true posterior."""
    x0, eps = images(len(t), dtype)
    alpha, sigma = (over(c, x0) for c in schedule.alpha_sigma(t))
    x_t = alpha * x0 + sigma * eps
    return x0, x_t, Prediction(x0, eps, torch.zeros_like(x0))


@pytest.mark.parametrize("schedule", DISCRETE, ids=kind)
def test_variational_terms_are_zero_at_the_exact_posterior(schedule):
    t = torch.arange(2, 1001, 37).double() / 1000
    x0, x_t, p = true_step(schedule, t)
    terms = variational_term(p, x0, x_t, t, schedule)
    torch.testing.assert_close(terms, torch.zeros_like(terms), rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", DISCRETE, ids=kind)
def test_variational_terms_are_the_kl_of_two_normals_in_bits(schedule):
    t = torch.tensor([0.002, 0.01, 0.4, 0.9, 1.0], dtype=torch.float64)
    x0, x_t, p = true_step(schedule, t)
    wrong = Prediction(x0 + 0.05 * p.eps, p.eps, (p.eps / 4).add(0.5))
    q = transition(schedule, t, t - 1 / 1000)
    c_x, c_x0, small, large = (over(c, x0) for c in q)
    posterior = torch.distributions.Normal(c_x * x_t + c_x0 * x0, small.sqrt().expand_as(x0))
    log_var = wrong.var_frac * large.log() + (1 - wrong.var_frac) * small.log()
    model = torch.distributions.Normal(c_x * x_t + c_x0 * wrong.x0, (log_var / 2).exp())
    kl = torch.distributions.kl_divergence(posterior, model).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(variational_term(wrong, x0, x_t, t, schedule), kl, rtol=1e-9, atol=1e-12)
    assert (kl > 0).all()


@pytest.mark.parametrize("schedule", [*DISCRETE, Linear(steps=7)], ids=kind)
def test_last_step_is_the_likelihood_under_the_mean_with_the_variance_of_the_step_before(schedule):
    t = torch.full((6,), 1 / schedule.steps, dtype=torch.float64)
    x0, x_t, p = true_step(schedule, t)
    wrong = Prediction(x0 + 0.01 * p.eps, p.eps, (p.eps / 4).add(0.5))
    first, second = torch.tensor([1, 2], dtype=torch.float64) / schedule.steps
    small = transition(schedule, second, first).var_small.log()  # beta tilde of the step before: its own is 0
    large = transition(schedule, first, torch.zeros_like(first)).var_large.log()
    log_var = small + wrong.var_frac * (large - small)
    normal = torch.distributions.Normal(wrong.x0, (log_var / 2).exp())  # at s = 0 the mean is x0 itself
    below, above = normal.cdf(x0 - HALF_BIN), normal.cdf(x0 + HALF_BIN)
    below, above = torch.where(x0 <= LEVELS[0], 0, below), torch.where(x0 >= LEVELS[-1], 1, above)
    expected = -(above - below).clamp(min=1e-300).log2().flatten(1).mean(1)
    torch.testing.assert_close(variational_term(wrong, x0, x_t, t, schedule), expected, rtol=1e-6, atol=1e-9)


def test_a_schedule_of_one_step_has_a_finite_last_term():
    x0, x_t, p = true_step(Linear(steps=1), torch.ones(3, dtype=torch.float64))
    assert variational_term(p, x0, x_t, torch.ones(3, dtype=torch.float64), Linear(steps=1)).isfinite().all()


@pytest.mark.parametrize("mean", [-30.0, -3.0, -1.0, -0.998, 0.0, 0.3, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("log_var", [-18.0, -10.0, -7.0, -2.0, 0.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_256_bins_have_probability_one_together(mean, log_var, dtype):
    x0 = LEVELS.to(dtype)
    log_p = discretised_log_likelihood(x0, torch.full_like(x0, mean), torch.full_like(x0, log_var))
    assert log_p.isfinite().all()
    assert (log_p <= 1e-6).all()
    assert float(log_p.double().exp().sum()) == pytest.approx(1, abs=1e-4 if dtype == torch.float32 else 1e-6)


def test_a_bin_far_in_the_tail_has_the_logarithm_of_its_density_not_a_floor():
    x0 = torch.tensor([0.5], dtype=torch.float64).mul(127.5).round() / 127.5
    log_var = torch.tensor([-9.0], dtype=torch.float64)
    near, far = (discretised_log_likelihood(x0, x0 + distance, log_var) for distance in (0.5, 1.0))
    normal = torch.distributions.Normal(torch.zeros(()).double(), (log_var / 2).exp())
    density = [normal.log_prob(torch.tensor(d - HALF_BIN)) for d in (0.5, 1.0)]  # the near edge carries nearly all
    assert float(far - near) == pytest.approx(float(density[1] - density[0]), rel=0.01)
    left = discretised_log_likelihood(x0, x0 - 0.5, log_var)
    torch.testing.assert_close(left, near, rtol=1e-9, atol=0)  # both tails are equally exact


def test_the_likelihood_has_finite_gradients_at_every_extreme():
    x0 = LEVELS.float()[::5].repeat(4)
    mean = torch.tensor([-5.0, 0.0, 1.0, 50.0]).repeat_interleave(52).requires_grad_()
    for log_var in (-20.0, -8.0, 3.0):
        v = torch.full_like(mean, log_var).requires_grad_()
        gradients = torch.autograd.grad(discretised_log_likelihood(x0, mean, v).sum(), (mean, v))
        assert all(g.isfinite().all() for g in gradients)


def test_a_wild_prediction_at_one_time_spoils_no_gradient_of_the_variational_term():
    """Both branches of the term are computed everywhere; the one that is not used must not turn 0 into NaN."""
    x0, x_t, p = true_step(Cosine(), torch.tensor([0.001, 0.3, 1.0], dtype=torch.float64), torch.float32)
    frac = torch.full_like(x0, 0.5, requires_grad=True)
    wild = Prediction(x0 + 1e5, p.eps, frac)
    terms = variational_term(wild, x0, x_t, torch.tensor([0.001, 0.3, 1.0], dtype=torch.float64), Cosine())
    assert torch.autograd.grad(terms.sum(), frac)[0].isfinite().all()


@pytest.mark.parametrize("schedule", DISCRETE, ids=kind)
def test_the_variational_term_sends_no_gradient_to_the_mean(schedule):
    (x0, eps), network = images(), Linearly(learn_variance=True)
    t = torch.tensor([1, 2, 10, 400, 999, 1000], dtype=torch.float64) / 1000
    denoiser = Denoiser(network, schedule, "eps", learn_variance=True)
    terms = denoising_loss(denoiser, x0, eps, t, None, torch.ones(6, dtype=torch.float64))
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
def test_the_hybrid_loss_weighs_the_variational_term_by_a_thousandth_of_the_steps(schedule):
    (x0, eps), t = images(), times(schedule)
    weight = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    denoiser = Denoiser(Linearly(learn_variance=True), schedule, "eps", learn_variance=True)
    terms = denoising_loss(denoiser, x0, eps, t, None, weight)
    expected = weight.float() * (terms["mse"] + 0.001 * schedule.steps * terms["vlb"])
    assert set(terms) == {"loss", "mse", "vlb"}
    torch.testing.assert_close(terms["loss"], expected)


def test_learning_the_variance_leaves_the_squared_error_alone():
    (x0, eps), t, weight = images(), times(Cosine()), torch.ones(6, dtype=torch.float64)
    plain = denoising_loss(Denoiser(Linearly(), Cosine(), "v", False), x0, eps, t, None, weight)
    learned = denoising_loss(Denoiser(Linearly(True), Cosine(), "v", True), x0, eps, t, None, weight)
    assert torch.equal(plain["mse"], learned["mse"])


def test_a_denoiser_of_one_image_has_no_loss():
    (x0, eps), t = images(), times(Cosine())

    class Exact(nn.Module):
        def forward(self, x: Tensor, time: Tensor, cond: object) -> Tensor:
            a, b = (over(c, x0) for c in coefficients("v", *Cosine().alpha_sigma(t)))
            return a * x0 + b * eps

    terms = denoising_loss(Denoiser(Exact(), Cosine(), "v", False), x0, eps, t, None, torch.ones(6).double())
    torch.testing.assert_close(terms["loss"], torch.zeros(6), rtol=0, atol=1e-9)


@pytest.mark.parametrize("cls", members(AnyTimes), ids=kind)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_sampled_times_are_trained_ones_and_cover_them_evenly(cls, schedule):
    n = 40_000
    u = Noise(torch.arange(n), torch.device("cpu")).uniform()
    t, weight = cls().sample(u, torch.arange(n), schedule)
    assert t.dtype == weight.dtype == torch.float64
    assert torch.equal(schedule.snap(t), t)
    assert 0 < t.min() < 0.002
    assert 0.998 < t.max() <= 1
    share = torch.histc(t * weight.mean(), bins=20, min=0, max=1) / n  # weights are 1 where times are uniform
    assert share.sub(1 / 20).abs().max() < 5 * math.sqrt(0.05 / n)
    assert float(weight.mean()) == pytest.approx(1)


def test_uniform_times_are_those_of_the_uniform_number_alone():
    u = torch.tensor([0.0, 0.4995, 0.9999], dtype=torch.float64)
    one = UniformTimes().sample(u, torch.tensor([0, 1, 2]), Cosine())[0]
    assert torch.equal(one, UniformTimes().sample(u, torch.tensor([9, 8, 7]), Cosine())[0])
    assert one.tolist() == [0.001, 0.5, 1.0]


@pytest.mark.parametrize("first", [0, 1234, 256_000_000])
@pytest.mark.parametrize("n", [4, 32, 128])
def test_stratified_times_are_even_in_every_window(first, n):
    """No gap between neighbouring times of a batch exceeds the golden ratio's bound, 2.7 / n, wherever the batch begins."""
    position = torch.arange(first, first + n)
    t = StratifiedTimes().sample(torch.zeros(n).double(), position, Flow())[0].sort().values
    gaps = torch.cat([t.diff(), t[:1] + 1 - t[-1:]])
    assert gaps.max() < 2.7 / n
    random = UniformTimes().sample(Noise(position, torch.device("cpu")).uniform(), position, Flow())[0].sort().values
    assert n < 32 or random.diff().max() > gaps.max()


def test_stratified_times_do_not_depend_on_how_samples_are_dealt():
    position, u = torch.arange(100), torch.zeros(100).double()
    whole = StratifiedTimes().sample(u, position, Cosine())[0]
    assert torch.equal(StratifiedTimes().sample(u[1::2], position[1::2], Cosine())[0], whole[1::2])
