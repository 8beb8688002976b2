"""Our samplers beside what others publish: diffusers' schedulers, and a few lines of k-diffusion's and EDM's formulas."""

from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from diffcli.diffusion.samplers import (
    Ddim,
    DpmPlusPlus2MSde,
    EdmHeun,
    Euler,
    EulerAncestral,
    Plms,
    Sampler,
    UniPc,
    last,
)
from diffcli.diffusion.samplers.multistep import exponential_mean, exponential_move
from diffcli.diffusion.schedule import Cosine, DiscreteSchedule, Edm, Flow, Linear, ScaledLinear, Schedule
from diffcli.noise import Noise
from tests.diffusion.oracle import Mixture, kind, recorded
from tests.diffusion.test_diffusers_agreement import common, eps_denoise, model, noise_start, tables, walk_theirs

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers

CPU = torch.device("cpu")
MIXTURE = Mixture((0.3, 0.7), (-0.8, 0.5), (0.2, 0.1))
WITH_SIGNAL = [Linear(), Cosine(), Edm()]


def sigmas(schedule: Schedule, sampler: Sampler) -> Tensor:
    """sigma / alpha at the sampler's times, as k-diffusion and EDM count noise."""
    alpha, sigma = schedule.alpha_sigma(sampler.times(schedule))
    return sigma / alpha


def denoised(schedule: Schedule, x: Tensor, s: Tensor) -> Tensor:
    """D(x; s) of the mixture, for x = x0 + s eps."""
    t = schedule.time(-2 * s.log())
    return MIXTURE.denoise(schedule)(schedule.alpha_sigma(t)[0] * x, t).x0


@pytest.mark.parametrize("schedule", WITH_SIGNAL, ids=kind)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_euler_ancestral_is_that_of_k_diffusion(eta, schedule):
    """get_ancestral_step: sigma_up = eta sqrt(s'^2 (s^2 - s'^2) / s^2), sigma_down^2 = s'^2 - sigma_up^2."""
    sampler, x = EulerAncestral(steps=12, eta=eta), noise_start()
    grid, draws = sigmas(schedule, sampler), recorded(torch.Generator().manual_seed(1))
    theirs = x / schedule.alpha_sigma(torch.tensor(1.0))[0]
    for s, to in pairwise(grid):
        up = min(to, eta * (to**2 * (s**2 - to**2) / s**2).sqrt())
        down = (to**2 - up**2).sqrt()
        theirs = theirs + (theirs - denoised(schedule, theirs, s)) / s * (down - s)
        if to > 0 and eta > 0:
            theirs = theirs + up * draws(theirs)
    noise = recorded(torch.Generator().manual_seed(1))
    end = last(sampler.trajectory(MIXTURE.denoise(schedule), schedule, x, noise))
    torch.testing.assert_close(end.x, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", [*WITH_SIGNAL, Flow()], ids=kind)
def test_euler_is_ddim_and_euler_ancestral_is_ddim_with_its_eta(schedule):
    denoise, x = MIXTURE.denoise(schedule), noise_start()
    pairs = [(Euler(steps=9), Ddim(steps=9)), (EulerAncestral(steps=9), Ddim(steps=9, eta=1))]
    for ours, ddim in [*pairs, (EulerAncestral(steps=9, eta=0.3), Ddim(steps=9, eta=0.3))]:
        a = last(ours.trajectory(denoise, schedule, x, Noise([1, 2], CPU)))
        assert torch.equal(a.x, last(ddim.trajectory(denoise, schedule, x, Noise([1, 2], CPU))).x)


@pytest.mark.parametrize("options", [{}, {"s_churn": 10, "s_tmin": 0.1, "s_tmax": 60, "s_noise": 1.01}], ids=str)
def test_edm_heun_is_algorithm_2_of_karras(options):
    schedule, sampler, x = Edm(), EdmHeun(steps=18, spacing="karras", **options), noise_start()
    grid, draws = sigmas(schedule, sampler), recorded(torch.Generator().manual_seed(1))
    theirs, churned = x / schedule.alpha_sigma(torch.tensor(1.0))[0], 0
    for s, to in pairwise(grid):
        hat = s
        if options and options["s_tmin"] <= s <= options["s_tmax"]:
            hat = s * (1 + min(options["s_churn"] / 18, 2**0.5 - 1))
            theirs = theirs + options["s_noise"] * (hat**2 - s**2).sqrt() * draws(theirs)
            churned += 1
        slope = (theirs - denoised(schedule, theirs, hat)) / hat
        euler = theirs + (to - hat) * slope
        if to > 0:
            theirs = theirs + (to - hat) * (slope + (euler - denoised(schedule, euler, to)) / to) / 2
        else:
            theirs = euler
    noise = recorded(torch.Generator().manual_seed(1))
    end = last(sampler.trajectory(MIXTURE.denoise(schedule), schedule, x, noise))
    torch.testing.assert_close(end.x, theirs, rtol=1e-6, atol=1e-6)
    assert (churned > 5) == bool(options)


def test_churn_between_crossed_limits_is_refused():
    with pytest.raises(ValueError, match=r"s_tmin 5\.0 is above s_tmax 1\.0"):
        EdmHeun(s_churn=10, s_tmin=5, s_tmax=1)


@pytest.mark.parametrize("steps", [2, 10, 40])
def test_edm_heun_agrees_with_diffusers_heun(steps):
    """Their sigmas are our sigma / alpha; the table is replaced by its float64 values."""
    network, schedule, x = model(), Linear(), noise_start()
    sampler = EdmHeun(steps=steps)
    other = diffusers.HeunDiscreteScheduler(**common(schedule))
    other.set_timesteps(steps)
    grid = sigmas(schedule, sampler)
    other.sigmas = torch.cat([grid[:1], grid[1:-1].repeat_interleave(2), grid[-1:]])
    theirs = x / schedule.alpha_sigma(torch.tensor(1.0))[0]
    for t in other.timesteps:
        theirs = other.step(network(other.scale_model_input(theirs, t), t), t, theirs).prev_sample
    end = last(sampler.trajectory(eps_denoise(network, schedule), schedule, x, Noise([0], CPU)))
    torch.testing.assert_close(end.x, theirs, rtol=2e-5, atol=2e-5)


def exact_sigmas(other: Any) -> Any:
    """The scheduler with its sigmas in float64, 0 at the end."""
    alpha_bar = other.alphas_cumprod.double()[other.timesteps]
    other.sigmas = torch.cat([((1 - alpha_bar) / alpha_bar).sqrt(), torch.zeros(1, dtype=torch.float64)])
    return other


def exact(scheduler: type, schedule: DiscreteSchedule, steps: int, **options: Any) -> Any:
    other = scheduler(**common(schedule), final_sigmas_type="zero", **options)
    other.alphas_cumprod = schedule.log_alpha_bar[1:].exp()
    other.set_timesteps(steps)
    return exact_sigmas(other)


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=kind)
@pytest.mark.parametrize("steps", [2, 10, 40])
def test_unipc_agrees_with_diffusers(steps, schedule):
    network, x = model(), noise_start()
    other = exact(diffusers.UniPCMultistepScheduler, schedule, steps, solver_order=2, solver_type="bh2")
    path = UniPc(steps=steps).trajectory(eps_denoise(network, schedule), schedule, x, Noise([0], CPU))
    for step, theirs in zip(path, walk_theirs(other, network, x), strict=True):
        torch.testing.assert_close(step.x, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("schedule", "spacing", "offset", "ends"),
    [
        (Linear(), "trailing", 0, "clean"),
        (ScaledLinear(), "leading_1", 1, "cleanest"),
        (Cosine(), "leading", 0, "clean"),
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [2, 5, 20, 50])
def test_plms_is_pndm_of_diffusers_without_its_runge_kutta_start(steps, schedule, spacing, offset, ends):
    network, x = model(), noise_start()
    options = common(schedule) | {"timestep_spacing": spacing.removesuffix("_1"), "steps_offset": offset}
    other = tables(diffusers.PNDMScheduler(**options, skip_prk_steps=True), schedule, steps)
    other.final_alpha_cumprod = other.one if ends == "clean" else other.alphas_cumprod[0]
    sampler = Plms(steps=steps, spacing=spacing, ends=ends)
    path = sampler.trajectory(eps_denoise(network, schedule), schedule, x, Noise([0], CPU))
    _, *expected = walk_theirs(other, network, x)  # its second state is thrown away: the first move is made again
    assert len(other.timesteps) == sampler.nfe
    for step, theirs in zip(path, expected, strict=True):
        torch.testing.assert_close(step.x, theirs, rtol=1e-9, atol=1e-9)


def test_plms_is_the_rule_of_the_authors_of_latent_diffusion():
    """Noise combined with the weights of an even grid, each move a DDIM step; the first takes the mean of its ends."""
    network, schedule, x = model(), ScaledLinear(), noise_start()
    index = list(range(0, 1000, 50))[
        ::-1
    ]  # of theirs, plus one: the grid that leaves the first trained step for the end
    bar = schedule.log_alpha_bar[1:].exp()

    def ddim(x: Tensor, eps: Tensor, now: Tensor, after: Tensor) -> Tensor:
        return after.sqrt() * (x - (1 - now).sqrt() * eps) / now.sqrt() + (1 - after).sqrt() * eps

    old: list[Tensor] = []
    theirs = x
    for n, i in enumerate(index):
        now, after = bar[i + 1], bar[index[n + 1] + 1] if n + 1 < len(index) else bar[0]
        eps = network(theirs, torch.tensor(i + 1))
        match len(old):
            case 0:
                ahead = network(ddim(theirs, eps, now, after), torch.tensor(index[1] + 1))
                combined = (eps + ahead) / 2
            case 1:
                combined = (3 * eps - old[-1]) / 2
            case 2:
                combined = (23 * eps - 16 * old[-1] + 5 * old[-2]) / 12
            case _:
                combined = (55 * eps - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        theirs, old = ddim(theirs, combined, now, after), [*old, eps]
    sampler = Plms(steps=20, spacing="leading_1", ends="cleanest")
    end = last(sampler.trajectory(eps_denoise(network, schedule), schedule, x, Noise([0], CPU)))
    torch.testing.assert_close(end.x, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [2, 10, 40])
def test_the_sde_solver_agrees_with_diffusers_on_the_same_draws(steps):
    network, x, schedule = model(), noise_start(), Linear()
    other = exact(diffusers.DPMSolverMultistepScheduler, schedule, steps, algorithm_type="sde-dpmsolver++")
    draws, theirs = recorded(torch.Generator().manual_seed(1)), x
    noise = recorded(torch.Generator().manual_seed(1))
    path = DpmPlusPlus2MSde(steps=steps).trajectory(eps_denoise(network, schedule), schedule, x, noise)
    for step, t in zip(path, other.timesteps, strict=True):
        theirs = other.step(network(theirs, t), t, theirs, variance_noise=draws(x)).prev_sample
        torch.testing.assert_close(step.x, theirs, rtol=1e-4, atol=1e-4)  # they cast x and the noise to float32


def test_the_third_order_move_is_that_of_diffusers_with_its_second_difference_doubled():
    """Theirs takes half of what the parabola through the three x0 integrates to, and so is of second order."""
    schedule, x = Linear(), noise_start()
    other = exact(diffusers.DPMSolverMultistepScheduler, schedule, 10, solver_order=3)
    times = 1 - torch.arange(11).double() / 10
    data = [x * k for k in (0.3, -0.2, 0.7)]  # the oldest first
    other._step_index = 4
    theirs = other.multistep_dpm_solver_third_order_update(data, sample=x)
    places = schedule.log_snr(times[2:6]) / 2
    known = list(zip(places[:3].flip(0), data[::-1], strict=True))
    ours = exponential_move(x, exponential_mean(known, schedule, times[4], times[5]), schedule, times[4], times[5])
    h, h0, h1 = places[3] - places[2], places[2] - places[1], places[1] - places[0]
    second = ((data[2] - data[1]) / h0 - (data[1] - data[0]) / h1) / (h0 + h1)
    half = schedule.alpha_sigma(times[5])[0] * (h**2 / 2 - h + 1 - torch.exp(-h)) * second
    torch.testing.assert_close(ours, theirs + half, rtol=1e-6, atol=1e-6)
    assert half.abs().max() > 0.01
