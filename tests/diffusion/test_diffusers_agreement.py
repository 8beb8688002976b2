"""Our samplers beside the schedulers of diffusers: one model, one grid, the same draws.

`timestep_spacing="trailing"` is our uniform grid where the steps divide T. Their tables are float32; DDPM and DDIM follow
float64 tables put in their place, so those two are held to 1e-9. The others cast to float32 inside, so 2e-5.
"""

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Prediction, over
from diffcli.diffusion.samplers import Ddim, Ddpm, DpmPlusPlus2M, Heun, Sampler, last
from diffcli.diffusion.schedule import Cosine, DiscreteSchedule, Flow, Linear, ScaledLinear, Schedule
from diffcli.noise import Noise
from tests.diffusion.oracle import kind, prediction, recorded

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers

Model = Callable[[Tensor, Tensor], Tensor]
VP = [Linear(), ScaledLinear(), Cosine()]


def model(channels: int = 2) -> Model:
    """A fixed nonlinear network, smooth in x and in the literature's time index 0..999; float64 (B, channels, 6, 6)."""
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(8, 2, 3, 3, generator=generator, dtype=torch.float64) / 4
    second = torch.randn(channels, 8, 3, 3, generator=generator, dtype=torch.float64) / 8

    def network(x: Tensor, time: Tensor) -> Tensor:
        hidden = torch.nn.functional.conv2d(x.double(), first, padding=1) + torch.cos(time.double() / 200)
        return torch.nn.functional.conv2d(hidden.tanh(), second, padding=1) + 0.5 * torch.tanh(x)[:, :1]

    return network


def eps_denoise(network: Model, schedule: Schedule) -> Callable[[Tensor, Tensor], Prediction]:
    """The network read as eps, its further channels as the learned variance."""

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        y = network(x, schedule.network_time(t))
        eps, v = y[:, :2], y[:, 2:]
        alpha, sigma = (over(c, x) for c in schedule.alpha_sigma(t))
        return Prediction((x - sigma * eps) / alpha, eps, (v + 1) / 2 if v.shape[1] else None)

    return denoise


def noise_start() -> Tensor:
    return Noise([1, 2], torch.device("cpu"))(torch.empty(2, 2, 6, 6, dtype=torch.float64))


def walk_theirs(scheduler: Any, network: Model, x: Tensor, **options: Any) -> Iterator[Tensor]:
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, **options).prev_sample
        yield x


def tables(scheduler: Any, schedule: DiscreteSchedule, steps: int) -> Any:
    """The scheduler set to `steps`, its tables in float64."""
    scheduler.betas = schedule.betas()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(steps)
    return scheduler


def common(schedule: DiscreteSchedule) -> dict[str, Any]:
    return {
        "num_train_timesteps": 1000,
        "trained_betas": schedule.betas().numpy(),
        "timestep_spacing": "trailing",
    }


@pytest.mark.parametrize("schedule", VP, ids=kind)
@pytest.mark.parametrize("steps", [5, 50])
@pytest.mark.parametrize(
    ("ours", "theirs"), [("small", "fixed_small"), ("large", "fixed_large"), ("learned", "learned_range")]
)
def test_ddpm_agrees_with_diffusers(ours, theirs, steps, schedule):
    """In the last step of a strided grid diffusers adds noise (its t is not 0 there); ours returns x0, so x0 is compared."""
    network, x = model(4 if ours == "learned" else 2), noise_start()
    other = tables(
        diffusers.DDPMScheduler(**common(schedule), variance_type=theirs, clip_sample=False), schedule, steps
    )
    draws = torch.Generator().manual_seed(1)
    theirs_x = [x, *walk_theirs(other, network, x, generator=draws)]
    noise = recorded(torch.Generator().manual_seed(1))
    *path, end = Ddpm(steps=steps, variance=ours).trajectory(eps_denoise(network, schedule), schedule, x, noise)
    for step, expected in zip(path, theirs_x[1:-1], strict=True):
        torch.testing.assert_close(step.x, expected, rtol=1e-9, atol=1e-9)
    t, before = other.timesteps[-1], theirs_x[-2]
    final = other.step(network(before, t), t, before, generator=draws).pred_original_sample
    torch.testing.assert_close(end.x, final, rtol=1e-9, atol=1e-9)


@pytest.mark.slow  # on parts of it: the quick test above
def test_ddpm_agrees_with_diffusers_on_the_whole_grid():
    network, x, schedule = model(), noise_start(), Linear()
    other = tables(diffusers.DDPMScheduler(**common(schedule), clip_sample=False), schedule, 1000)
    *_, expected = walk_theirs(other, network, x, generator=torch.Generator().manual_seed(1))
    noise = recorded(torch.Generator().manual_seed(1))
    end = last(Ddpm(steps=1000).trajectory(eps_denoise(network, schedule), schedule, x, noise))
    torch.testing.assert_close(end.x, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", VP, ids=kind)
@pytest.mark.parametrize("steps", [1, 5, 50])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_agrees_with_diffusers(eta, steps, schedule):
    network, x = model(), noise_start()
    other = tables(diffusers.DDIMScheduler(**common(schedule), clip_sample=False), schedule, steps)
    expected = walk_theirs(other, network, x, eta=eta, generator=torch.Generator().manual_seed(1))
    noise = recorded(torch.Generator().manual_seed(1))
    path = Ddim(steps=steps, eta=eta).trajectory(eps_denoise(network, schedule), schedule, x, noise)
    for step, theirs_x in zip(path, expected, strict=True):
        torch.testing.assert_close(step.x, theirs_x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [2, 10, 40])
def test_dpm_solver_agrees_with_diffusers(steps):
    """Their lower_order_final makes only the last step first order where sigma ends at zero, as ours does."""
    network, x, schedule = model(), noise_start(), Linear()
    other = tables(diffusers.DPMSolverMultistepScheduler(**common(schedule), final_sigmas_type="zero"), schedule, steps)
    alpha_bar = other.alphas_cumprod[other.timesteps]
    other.sigmas = torch.cat([((1 - alpha_bar) / alpha_bar).sqrt(), torch.zeros(1, dtype=torch.float64)])
    path = DpmPlusPlus2M(steps=steps).trajectory(eps_denoise(network, schedule), schedule, x, Noise([0], x.device))
    for step, theirs_x in zip(path, walk_theirs(other, network, x), strict=True):
        torch.testing.assert_close(step.x, theirs_x, rtol=2e-5, atol=2e-5)  # they cast x to float32 in each step


class OnTimes(Heun):
    """Heun on given times instead of the schedule's grid."""

    grid: tuple[float, ...]

    def times(self, schedule: Schedule) -> Tensor:
        return torch.tensor(self.grid, dtype=torch.float64)


class EdmPath(Flow):
    """alpha = 1, sigma = t: the coordinates in which diffusers writes Heun's method; time is sigma."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t.double()), t.double()


@pytest.mark.parametrize("steps", [2, 10, 40])
def test_heun_agrees_with_diffusers_in_edm_coordinates(steps):
    network, schedule = model(), Linear()
    other = tables(diffusers.HeunDiscreteScheduler(**common(schedule)), schedule, steps)
    other.sigmas = other.sigmas.double()
    sigmas = torch.cat([other.sigmas[:1], other.sigmas[1:-1:2], other.sigmas[-1:]])
    x = noise_start() * sigmas[0]
    index = dict(zip(sigmas.tolist(), [other.timesteps[0], *other.timesteps[1::2]], strict=False))

    def denoise(x: Tensor, sigma: Tensor) -> Prediction:
        eps = network(x / (sigma**2 + 1).sqrt(), index[float(sigma)])
        return Prediction(x - sigma * eps, eps)

    end = last(OnTimes(steps=steps, grid=sigmas.tolist()).trajectory(denoise, EdmPath(), x, Noise([0], x.device)))
    expected = x
    for t in other.timesteps:
        expected = other.step(network(other.scale_model_input(expected, t), t), t, expected).prev_sample
    assert not torch.allclose(expected, x, atol=0.1)
    torch.testing.assert_close(end.x, expected, rtol=1e-5, atol=1e-5)  # they compute x0 and slope from float32 sigmas


def flow_denoise(network: Model) -> Callable[[Tensor, Tensor], Prediction]:
    """The network read as the flow target eps - x0."""
    return lambda x, t: prediction(Flow(), x, t, x - over(t, x) * network(x, 1000 * t))


@pytest.mark.parametrize("steps", [1, 10, 40])
def test_ddim_on_the_flow_path_agrees_with_diffusers_flow_euler(steps):
    network, x = model(), noise_start()
    other = diffusers.FlowMatchEulerDiscreteScheduler()
    other.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    path = Ddim(steps=steps).trajectory(flow_denoise(network), Flow(), x, Noise([0], x.device))
    for step, theirs_x in zip(path, walk_theirs(other, network, x), strict=True):
        torch.testing.assert_close(step.x, theirs_x, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("steps", [2, 10, 40])
def test_heun_on_the_flow_path_agrees_with_diffusers_flow_heun(steps):
    """On their grid, which ends at sigma = 1/1000 before 0."""
    network, x = model(), noise_start()
    other = diffusers.FlowMatchHeunDiscreteScheduler()
    other.set_timesteps(steps)
    sigmas = torch.cat([other.sigmas[:1], other.sigmas[1:-1:2], other.sigmas[-1:]]).tolist()
    sampler: Sampler = OnTimes(steps=steps, grid=sigmas)
    end = last(sampler.trajectory(flow_denoise(network), Flow(), x, Noise([0], x.device)))
    *_, expected = walk_theirs(other, network, x)
    torch.testing.assert_close(end.x, expected, rtol=2e-5, atol=2e-5)
