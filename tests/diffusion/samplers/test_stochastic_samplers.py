"""Samplers that add noise give the data's mean and spread: exactly on Gaussian data, by sampling on a mixture."""

import math

import pytest
import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.diffusion.denoiser import Denoise, Prediction, over
from diffcli.diffusion.samplers import Ddim, Ddpm, DpmPlusPlus2MSde, EdmHeun, EulerAncestral, Heun, last
from diffcli.diffusion.schedule import Cosine, Flow, Linear, Schedule, transition
from diffcli.noise import Noise
from tests.diffusion.oracle import Mixture, gaussian, kind, moments, prediction
from tests.pairing import paired

DATA = gaussian(0.3, 0.5)
MIXTURE = Mixture((0.3, 0.7), (-0.8, 0.5), (0.2, 0.1))
TINY = 1e-3  # what a schedule leaves of the data at t = 1 shifts the result by about this


def learned(data: Mixture, schedule: Schedule, steps: int) -> Denoise:
    """The ideal denoiser with the ideal variance of its steps on a uniform grid, as a fraction between small and large."""

    def ideal(x: Tensor, t: Tensor) -> Prediction:
        mean, variance = data.posterior(schedule, x, t)
        s = schedule.snap((t - 1 / steps).clamp(min=0))
        q = transition(schedule, t, s)
        exact = over(q.var_small, x) + over(q.c_x0, x) ** 2 * variance  # Var[x_s | x_t], over both x0 and the step
        small, large = over(q.var_small.log(), x), over(q.var_large.log(), x)
        return prediction(schedule, x, t, mean)._replace(var_frac=(exact.log() - small) / (large - small))

    return ideal


ANCESTRAL = {
    "small": Ddpm(steps=1000, variance="small"),
    "large": Ddpm(steps=1000, variance="large"),
    "ddim": Ddim(steps=1000, eta=1),
    "euler_ancestral": EulerAncestral(steps=1000),
    "dpmpp_2m_sde": DpmPlusPlus2MSde(steps=1000),
    "edm_heun": EdmHeun(steps=100, spacing="karras", s_churn=20),
}


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    paired([*ANCESTRAL.values()], [Cosine(), Flow(), Linear(zero_terminal_snr=True)]),
    ids=[f"{name}-{kind}" for name, kind in paired([*ANCESTRAL], ["cosine", "flow", "without signal"])],
)
def test_ancestral_samplers_give_a_gaussian_its_mean_and_deviation(sampler, schedule):
    mean, std = moments(sampler, DATA.denoise(schedule), schedule)
    assert mean == pytest.approx(0.3, abs=0.003)
    assert std == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_of_every_eta_gives_a_gaussian_its_mean_and_deviation(eta):
    mean, std = moments(Ddim(steps=500, eta=eta), DATA.denoise(Cosine()), Cosine())
    assert mean == pytest.approx(0.3, abs=0.003)
    assert std == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("steps", [2, 5, 20, 100])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=kind)
def test_the_exact_learned_variance_gives_the_exact_deviation_in_any_number_of_steps(steps, schedule):
    """But for the last step, which adds no noise: there the spread is that of E[x0 | x_t]."""
    mean, std = moments(Ddpm(steps=steps, variance="learned"), learned(DATA, schedule, steps), schedule)
    s = Ddpm(steps=steps).times(schedule)[-2]
    alpha, sigma = (float(c) for c in schedule.alpha_sigma(s))
    expected = alpha * 0.5**2 / math.sqrt(alpha**2 * 0.5**2 + sigma**2)
    assert mean == pytest.approx(0.3, abs=2 * TINY)
    assert std == pytest.approx(expected, abs=2 * TINY)


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=kind)
def test_small_variance_narrows_and_large_variance_widens_in_few_steps(schedule):
    """Nichol & Dhariwal's reason to learn it: the true variance lies between, so the two straddle it."""
    exact = moments(Ddpm(steps=20, variance="learned"), learned(DATA, schedule, 20), schedule)[1]
    small = moments(Ddpm(steps=20, variance="small"), DATA.denoise(schedule), schedule)[1]
    large = moments(Ddpm(steps=20, variance="large"), DATA.denoise(schedule), schedule)[1]
    assert small < exact < large
    assert large - small > 0.01


@pytest.mark.parametrize("choice", ["small", "large", "learned"])
def test_ancestral_samplers_give_a_mixture_its_mean_deviation_and_weights(choice):
    schedule, steps = Cosine(), 250
    denoise = learned(MIXTURE, schedule, steps) if choice == "learned" else MIXTURE.denoise(schedule)
    noise = Noise([1], torch.device("cpu"))
    x = noise(torch.empty(1, 1, 100, 200, dtype=torch.float64))
    end = last(Ddpm(steps=steps, variance=choice).trajectory(denoise, schedule, x, noise)).x
    weight = float((end < -0.15).double().mean())
    assert weight == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / end.numel()) + 0.005)  # four standard errors
    assert float(end.mean()) == pytest.approx(MIXTURE.mean, abs=0.03)
    assert float(end.std()) == pytest.approx(MIXTURE.std, rel=0.02)
    for part, std in ((end[end < -0.15], 0.2), (end[end >= -0.15], 0.1)):
        assert float(part.std()) == pytest.approx(std, rel=0.1)  # beta tilde is too small by 6% here


@pytest.mark.parametrize("sampler", [Heun(steps=60), Ddim(steps=250)], ids=kind)
def test_deterministic_samplers_give_a_mixture_its_mean_and_deviation(sampler):
    x = Noise([1], torch.device("cpu"))(torch.empty(1, 1, 100, 200, dtype=torch.float64))
    for schedule in (Cosine(), Flow()):
        end = last(sampler.trajectory(MIXTURE.denoise(schedule), schedule, x, Noise([1], torch.device("cpu")))).x
        assert float(end.mean()) == pytest.approx(MIXTURE.mean, abs=0.03)
        assert float(end.std()) == pytest.approx(MIXTURE.std, rel=0.02)


def one_step(sampler: Ddpm, frac: float | None, t: float = 0.5) -> float:
    """Standard deviation that the sampler adds in its first step on the cosine schedule."""
    schedule, added = Cosine(), torch.ones(2, 1, 1, 1, dtype=torch.float64)
    added[0] = 0

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        fraction = None if frac is None else torch.full_like(x, frac)
        return prediction(schedule, x, t, torch.zeros_like(x))._replace(var_frac=fraction)

    class Given(Noise):
        def __call__(self, like: Tensor) -> Tensor:
            return added

    first = next(sampler.trajectory(denoise, schedule, torch.zeros_like(added), Given([0, 0], torch.device("cpu"))))
    return float((first.x[1] - first.x[0]).squeeze())


def test_variance_choices_are_beta_tilde_beta_and_the_geometric_mean_by_the_network():
    times = Ddpm(steps=4).times(Cosine())
    q = transition(Cosine(), times[0], times[1])
    small, large = float(q.var_small.sqrt()), float(q.var_large.sqrt())
    assert one_step(Ddpm(steps=4, variance="small"), None) == pytest.approx(small, rel=1e-9)
    assert one_step(Ddpm(steps=4, variance="large"), None) == pytest.approx(large, rel=1e-9)
    assert one_step(Ddpm(steps=4, variance="learned"), 0) == pytest.approx(small, rel=1e-9)
    assert one_step(Ddpm(steps=4, variance="learned"), 1) == pytest.approx(large, rel=1e-9)
    half = one_step(Ddpm(steps=4, variance="learned"), 0.5)
    assert half == pytest.approx(math.sqrt(small * large), rel=1e-9)  # interpolated on a log scale
    assert half != pytest.approx(math.sqrt((small**2 + large**2) / 2), rel=1e-3)


def test_auto_variance_is_learned_where_there_is_one():
    assert one_step(Ddpm(steps=4), None) == one_step(Ddpm(steps=4, variance="small"), None)
    assert one_step(Ddpm(steps=4), 0.7) == one_step(Ddpm(steps=4, variance="learned"), 0.7)


def test_learned_variance_of_a_model_without_one_is_refused():
    with pytest.raises(UserError, match=r"sampler.variance is 'learned'"):
        one_step(Ddpm(steps=4, variance="learned"), None)
