"""The variational bound: terms that are 0 at the exact posterior, 256 bins of probability 1, and a bound that is tight."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Prediction, over
from diffcli.diffusion.likelihood import (
    HALF_BIN,
    bits_per_dim,
    discretised_log_likelihood,
    prior_term,
    variational_term,
)
from diffcli.diffusion.schedule import Cosine, DiscreteSchedule, Linear, transition
from diffcli.noise import Noise
from tests.diffusion.grey import LEVELS, images, to_levels
from tests.diffusion.oracle import SCHEDULES, gaussian, kind, knows

DISCRETE = [s for s in SCHEDULES if isinstance(s, DiscreteSchedule)]


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_256_bins_have_probability_one_together(dtype):
    x0 = LEVELS.to(dtype)
    means, log_vars = [-30.0, -3.0, -1.0, -0.998, 0.0, 0.3, 1.0, 3.0, 30.0], [-18.0, -10.0, -7.0, -2.0, 0.0, 4.0]
    for mean, log_var in product(means, log_vars):
        log_p = discretised_log_likelihood(x0, torch.full_like(x0, mean), torch.full_like(x0, log_var))
        assert log_p.isfinite().all(), (mean, log_var)
        assert (log_p <= 1e-6).all(), (mean, log_var)
        total = float(log_p.double().exp().sum())
        assert total == pytest.approx(1, abs=1e-4 if dtype == torch.float32 else 1e-6), (mean, log_var)


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


def test_a_last_step_on_scaled_pixels_is_that_of_the_pixels_themselves():
    """The codec's factor changes the units of diffusion space, not the grey levels that are to be told."""
    t = torch.full((6,), 1 / 1000, dtype=torch.float64)
    x0, x_t, p = true_step(Cosine(), t)
    scaled = Prediction(2 * x0 + 0.01 * p.eps, p.eps, (p.eps / 4).add(0.5))
    first, second = torch.tensor([1, 2], dtype=torch.float64) / 1000
    small = transition(Cosine(), second, first).var_small.log()
    large = transition(Cosine(), first, torch.zeros_like(first)).var_large.log()
    deviation = ((small + scaled.var_frac * (large - small)) / 2).exp()
    normal = torch.distributions.Normal(scaled.x0, deviation)
    below, above = normal.cdf(2 * (x0 - HALF_BIN)), normal.cdf(2 * (x0 + HALF_BIN))
    below, above = torch.where(x0 <= LEVELS[0], 0, below), torch.where(x0 >= LEVELS[-1], 1, above)
    expected = -(above - below).clamp(min=1e-300).log2().flatten(1).mean(1)
    torch.testing.assert_close(variational_term(scaled, 2 * x0, x_t, t, Cosine(), 2.0), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(steps=50)], ids=kind)
def test_the_prior_term_is_the_kl_of_two_normals_in_bits(schedule):
    x0, _ = images(dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(torch.ones(()))
    q, p = torch.distributions.Normal(alpha * x0, sigma), torch.distributions.Normal(0 * x0, 1)
    expected = torch.distributions.kl_divergence(q, p).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(prior_term(x0, schedule), expected, rtol=1e-9, atol=1e-15)


def bound(terms) -> Tensor:
    return sum(term.bits for term in terms)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_one_term_a_step_from_noise_to_image_and_one_for_the_prior(variance):
    x0, _ = images(2, dtype=torch.float64)
    terms = list(bits_per_dim(knows(x0, Cosine(steps=7)), Cosine(steps=7), x0, noise(2), variance))
    assert [term.t for term in terms] == [k / 7 for k in range(7, 0, -1)] + [None]
    assert all(term.bits.shape == (2,) for term in terms)


def noise(n: int) -> Noise:
    return Noise(range(100, 100 + n), torch.device("cpu"))


def test_the_bound_of_a_denoiser_that_knows_the_image_is_what_the_prior_and_the_last_step_cost():
    """Every step is the exact posterior, so that only beta tilde of the second step blurs the grey levels."""
    x0, _ = images(3, dtype=torch.float64)
    schedule = Linear(steps=200)
    *between, last, prior = bits_per_dim(knows(x0, schedule), schedule, x0, noise(3), "small")
    for term in between:
        torch.testing.assert_close(term.bits, torch.zeros(3).double(), rtol=0, atol=1e-9)
    second, first = torch.tensor([2, 1], dtype=torch.float64) / 200
    small = transition(schedule, second, first).var_small
    inside = math.erf(HALF_BIN / math.sqrt(2 * float(small)))  # the probability that a pixel rounds to its own level
    assert float(last.bits.mean()) == pytest.approx(-math.log2(inside), rel=1e-6)
    assert float(prior.bits.max()) < 1e-4


@pytest.mark.parametrize("variance", ["small", "large"])
def test_terms_of_the_ideal_denoiser_of_a_gaussian_have_their_closed_form(variance):
    """E KL = log of the ratio of variances + (var_q + c_x0^2 Var[x0 | x_t]) / var_p, whatever the image."""
    schedule, data, n = Linear(steps=20), gaussian(0.1, 0.4), 40
    x0 = data.means[0] + data.stds[0] * noise(n)(torch.empty(n, 1, 16, 16, dtype=torch.float64))
    *between, _, _ = bits_per_dim(data.denoise(schedule), schedule, x0, Noise(range(n), torch.device("cpu")), variance)
    for term in between:
        t = torch.tensor(term.t, dtype=torch.float64)
        q = transition(schedule, t, t - 1 / 20)
        model = q.var_small if variance == "small" else q.var_large
        _, uncertain = data.posterior(schedule, torch.zeros(1, 1, 1, 1).double(), t)
        expected = 0.5 * (model.log() - q.var_small.log() + (q.var_small + q.c_x0**2 * uncertain.squeeze()) / model - 1)
        assert float(term.bits.mean()) == pytest.approx(float(expected) / math.log(2), rel=0.06)


def reversal(std: float, schedule: DiscreteSchedule):
    """The ideal denoiser of N(0, std^2) with the variance of the exact reverse step: its chain is the data's own, backwards."""
    data = gaussian(0.0, std)
    ideal = data.denoise(schedule)

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        s = (t - 1 / schedule.steps).clamp(min=0)
        q, second = transition(schedule, t, s), torch.tensor(2 / schedule.steps, dtype=torch.float64)
        exact = q.var_small + q.c_x0**2 * data.posterior(schedule, x, t)[1].flatten()[0]
        small = q.var_small if q.var_small > 0 else transition(schedule, second, second / 2).var_small
        fraction = (exact.log() - small.log()) / (q.var_large.log() - small.log())
        return ideal(x, t)._replace(var_frac=fraction.expand_as(x))

    return denoise


def test_the_bound_of_a_perfect_model_is_the_entropy_of_its_data_and_a_worse_model_pays_more():
    """Grey levels of N(0, 0.25^2): on average log2(sqrt(2 pi e) 0.25 / bin) = 7.04 bits."""
    schedule, n = Linear(steps=50), 40
    x0 = to_levels(0.25 * noise(n)(torch.empty(n, 1, 16, 16, dtype=torch.float64)))
    entropy = -torch.distributions.Normal(0, 0.25).log_prob(x0).mean() / math.log(2) - math.log2(2 * HALF_BIN)
    bits = {
        std: float(bound(bits_per_dim(reversal(std, schedule), schedule, x0, noise(n), "learned")).mean())
        for std in (0.25, 0.2, 0.3)
    }
    assert float(entropy) == pytest.approx(7.04, abs=0.03)
    assert bits[0.25] == pytest.approx(float(entropy), abs=0.005)
    for std in (0.2, 0.3):  # a model of another width pays its divergence from the data
        other = torch.distributions.kl_divergence(
            torch.distributions.Normal(0.0, x0.std()), torch.distributions.Normal(0.0, std)
        ) / math.log(2)
        assert bits[std] - bits[0.25] == pytest.approx(float(other), rel=0.1)
    fixed = float(bound(bits_per_dim(gaussian(0, 0.25).denoise(schedule), schedule, x0, noise(n), "small")).mean())
    assert fixed > bits[0.25] + 0.01


def test_a_learned_variance_at_its_ends_is_the_small_or_the_large_one():
    x0, _ = images(2, dtype=torch.float64)
    schedule, data = Linear(steps=30), gaussian(0, 0.3)

    def learned(fraction: float):
        ideal = data.denoise(schedule)

        def denoise(x: Tensor, t: Tensor) -> Prediction:
            return ideal(x, t)._replace(var_frac=torch.full_like(x, fraction))

        return list(bits_per_dim(denoise, schedule, x0, noise(2), "learned"))

    for fraction, variance in ((0.0, "small"), (1.0, "large")):
        fixed = list(bits_per_dim(data.denoise(schedule), schedule, x0, noise(2), variance))
        for one, other in zip(learned(fraction), fixed, strict=True):
            if one.t != 1 / 30 or variance == "small":  # the last step is the small one's for both
                torch.testing.assert_close(one.bits, other.bits)


def test_the_bound_of_an_image_depends_on_its_seed_alone():
    x0, _ = images(3)
    whole = bound(bits_per_dim(gaussian(0, 0.3).denoise(Linear(steps=5)), Linear(steps=5), x0, noise(3), "small"))
    for i in range(3):
        own = Noise([100 + i], torch.device("cpu"))
        alone = bound(
            bits_per_dim(gaussian(0, 0.3).denoise(Linear(steps=5)), Linear(steps=5), x0[i : i + 1], own, "small")
        )
        torch.testing.assert_close(alone[0], whole[i])
