"""Test doubles whose answers are closed formulas: ideal denoisers of known data, and noise that can be taken apart.

Everything is float64 where x is, so that identities can be held to rounding.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from diffcli.diffusion.denoiser import Denoise, Prediction, Target, coefficients, over
from diffcli.diffusion.samplers import AnySampler, Sampler, last
from diffcli.diffusion.schedule import AnySchedule, Schedule
from diffcli.noise import Noise


def members(union: Any) -> tuple[type, ...]:
    """The classes of a discriminated union, so that whatever is registered is tested."""
    inner = get_args(union)[0]
    return get_args(inner) or (inner,)


SCHEDULES: list[Schedule] = [cls() for cls in members(AnySchedule)]
SAMPLERS: tuple[type[Sampler], ...] = members(AnySampler)
TARGETS: tuple[Target, ...] = get_args(Target)


def kind(value: object) -> str:
    """A test's name for a schedule, a sampler or a class of either; None leaves it to pytest."""
    if isinstance(value, type):
        return value.__name__
    return f"{value.kind}{getattr(value, 'steps', '')}" if hasattr(value, "kind") else str(value)


class Mixture(NamedTuple):
    """Pixels are independent, each from sum_k weights[k] N(means[k], stds[k]^2)."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(w * m for w, m in zip(self.weights, self.means, strict=True))

    @property
    def std(self) -> float:
        square = sum(w * (m * m + s * s) for w, m, s in zip(*self, strict=True))
        return math.sqrt(square - self.mean**2)

    def component(self, k: int) -> "Mixture":
        """The data of one class."""
        return gaussian(self.means[k], self.stds[k])

    def posterior(self, schedule: Schedule, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(E[x0 | x_t], Var[x0 | x_t]), both exact."""
        return self._posterior(x, *(over(c, x) for c in schedule.alpha_sigma(t)))

    def denoise(self, schedule: Schedule) -> Denoise:
        """The denoiser that minimises the squared error on this data."""

        def ideal(x: Tensor, t: Tensor) -> Prediction:
            alpha, sigma = (over(c, x) for c in schedule.alpha_sigma(t))
            x0, _ = self._posterior(x, alpha, sigma)
            return Prediction(x0, (x - alpha * x0) / sigma)

        return ideal

    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.weights) == 1:
            (m,), (s,) = self.means, self.stds
            total = (alpha * s) ** 2 + sigma**2
            return m + alpha * s**2 / total * (x - alpha * m), ((s * sigma) ** 2 / total).expand_as(x)
        w, m, s = (torch.tensor(each, dtype=x.dtype).view(-1, *[1] * x.ndim) for each in self)  # (K, 1, ...)
        total = (alpha * s) ** 2 + sigma**2
        off = x - alpha * m  # (K, B, C, *S)
        logits = (w.log() - total.log() / 2) - off**2 / (2 * total)
        # not softmax, whose rounding depends on the batch where it reduces over the first axis
        share = (logits - logits.amax(0)).exp()
        share = share / share.sum(0)
        means = m + alpha * s**2 / total * off
        mean = (share * means).sum(0)
        return mean, (share * ((s * sigma) ** 2 / total + means**2)).sum(0) - mean**2

    def ode(self, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The exact probability-flow map from t to s; for one Gaussian only."""
        (mean,), (std,) = self.means, self.stds
        (alpha, sigma), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        scale = ((alpha_s**2 * std**2 + sigma_s**2) / (alpha**2 * std**2 + sigma**2)).sqrt()
        return alpha_s * mean + (x - alpha * mean) * scale


def gaussian(mean: float, std: float) -> Mixture:
    """Data N(mean, std^2) in each pixel."""
    return Mixture((1.0,), (mean,), (std,))


def prediction(schedule: Schedule, x: Tensor, t: Tensor, x0: Tensor) -> Prediction:
    """x0 and the eps that belongs to it."""
    alpha, sigma = (over(c, x) for c in schedule.alpha_sigma(t))
    return Prediction(x0, (x - alpha * x0) / sigma)


def knows(x0: Tensor, schedule: Schedule) -> Denoise:
    """The perfect denoiser of one image."""
    return lambda x, t: prediction(schedule, x, t, x0.expand_as(x))


def counted(denoise: Denoise) -> tuple[Denoise, list[Tensor]]:
    """The same denoiser, and the times at which it was asked."""
    asked: list[Tensor] = []

    def counting(x: Tensor, t: Tensor) -> Prediction:
        asked.append(t)
        return denoise(x, t)

    return counting, asked


class TargetNetwork(nn.Module):
    """What a network trained to perfection would return for its target: a x0 + b eps of a Denoise, float32 as networks do.

    It is told the network's time and finds t by bisection, so a wrong time map would show.
    """

    def __init__(self, denoise: Denoise, schedule: Schedule, target: Target) -> None:
        super().__init__()
        self.denoise, self.schedule, self.target = denoise, schedule, target

    def forward(self, x: Tensor, time: Tensor, cond: object) -> Tensor:
        t = time_from_network_time(self.schedule, time)
        p = self.denoise(x.double(), t)
        a, b = (over(c, p.x0) for c in coefficients(self.target, *self.schedule.alpha_sigma(t)))
        return a * p.x0 + b * p.eps


def time_from_network_time(schedule: Schedule, time: Tensor) -> Tensor:
    """t (B,) float64 from what the network is told (B,)."""
    return torch.tensor([_time_of(schedule, each) for each in time.tolist()], dtype=torch.float64)


@cache  # walks of one schedule ask for the same times
def _time_of(schedule: Schedule, time: float) -> float:
    low, high = torch.tensor(schedule.cleanest).double(), torch.ones(()).double()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if schedule.network_time(middle) > time else (middle, high)
    return float(schedule.snap(high))


class Counting(Noise):
    """Real noise that counts its draws."""

    draws = 0

    def __call__(self, like: Tensor) -> Tensor:
        self.draws += 1
        return super().__call__(like)


class Impulses(Noise):
    """Draw k is 1 in row k + 2 and 0 elsewhere: an affine sampler run on it shows its response to every draw at once."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, like: Tensor) -> Tensor:
        z = torch.zeros_like(like)
        z[self.drawn + 2] = 1
        self.drawn += 1
        return z


def moments(sampler: Sampler, denoise: Denoise, schedule: Schedule) -> tuple[float, float]:
    """Exact mean and standard deviation of what a sampler draws where the denoiser is affine in x: no Monte Carlo.

    x_1 ~ N(0, 1) and the draws are independent, so the variance is the sum of squared responses.
    """
    x = torch.zeros(sampler.steps + 2, 1, 1, 1, dtype=torch.float64)
    x[1] = 1
    end = last(sampler.trajectory(denoise, schedule, x, Impulses())).x.flatten()
    return float(end[0]), float((end[1:] - end[0]).square().sum().sqrt())


def recorded(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Noise from a torch generator, for code that is compared with others' on the same draws."""
    return lambda like: torch.randn(like.shape, dtype=like.dtype, generator=generator)
