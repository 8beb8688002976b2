"""Samplers: generators that walk from x_1 ~ N(0, 1) to x_0, yielding a Step after each move.

The probability-flow ODE of every Gaussian path is dx = x0 d(alpha) + eps d(sigma). Its left-point rule is DDIM(eta = 0), which on
the flow path is flow-Euler; its trapezoid is Heun; DDIM(eta = 1) is DDPM(small). Times stay on the CPU: no synchronisation.
"""

from abc import abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import Config, UserError
from diffcli.diffusion.denoiser import Denoise, Prediction, over
from diffcli.diffusion.schedule import DiscreteSchedule, Schedule, Transition, transition
from diffcli.noise import Noise

CLEANEST = 1e-3  # where log-SNR spacing leaves a continuous path for t = 0


class Step(NamedTuple):
    """The state after a move: x at time t, and the x0 that was predicted on the way there."""

    t: Tensor  # () float64
    x: Tensor  # (B, C, *S)
    x0: Tensor  # (B, C, *S)


class Sampler(Config):
    """Stateless, so the config is the sampler."""

    evaluations: ClassVar[int] = 1  # of the network, for each step but the last

    steps: int = Field(50, ge=1, description="moves from t = 1 to t = 0")
    spacing: Literal["uniform", "log_snr"] = "uniform"

    @abstractmethod
    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        """Yields `steps` Steps, the last at t = 0. x: (B, C, *S) at t = 1; noise: one stream a sample."""

    def times(self, schedule: Schedule) -> Tensor:
        """(steps + 1,) float64 from 1 down to 0, strictly falling, each one a time that training visits."""
        if isinstance(schedule, DiscreteSchedule) and self.steps > schedule.steps:
            raise UserError(
                f"sampler.steps is {self.steps}, more than the {schedule.steps} steps of the schedule",
                f"use --steps {schedule.steps} or fewer",
            )
        uniform = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        if self.spacing == "uniform":
            return schedule.snap(uniform)
        return self._log_snr_times(schedule)

    @property
    def name(self) -> str:
        """Its name in presets and on the command line."""
        return str(self.model_dump(include={"kind"})["kind"])

    @property
    def nfe(self) -> int:
        """Network evaluations for one image, guidance not counted: both its branches are one evaluation."""
        return self.evaluations * (self.steps - 1) + 1

    def _log_snr_times(self, schedule: Schedule) -> Tensor:
        """Uniform in log SNR from the first to the last trained time, then 0; Lu et al. 2022, arXiv 2206.00927."""
        ends = torch.tensor([1.0 - CLEANEST, CLEANEST], dtype=torch.float64)
        if isinstance(schedule, DiscreteSchedule):
            ends = torch.tensor([1.0, 1 / schedule.steps], dtype=torch.float64)
        high, low = schedule.log_snr(ends)
        times = schedule.time(torch.linspace(high, low, self.steps, dtype=torch.float64))
        times[0] = 1.0
        if isinstance(schedule, DiscreteSchedule):
            times = _distinct(schedule.snap(times), schedule.steps)
        return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def _distinct(times: Tensor, steps: int) -> Tensor:
    """Falling times k / steps with repetitions moved to the next free ones, as where a last beta near 1 leaves a gap in SNR."""
    after = torch.arange(len(times))
    index = ((times * steps).round().long() + after).cummin(0).values - after  # each at least one below the one before
    return index.maximum(len(times) - after).double() / steps  # and room left for those that follow


class Ddpm(Sampler):
    """Ancestral sampling: x_s ~ N(c_x x_t + c_x0 x0, var), no noise in the last step.

    variance: small is beta tilde, large is beta, learned comes from the network; auto is learned where there is one, else small.
    Source: Ho et al. 2020, algorithm 2; Nichol & Dhariwal 2021, eq. 15.
    """

    kind: Literal["ddpm"] = "ddpm"
    variance: Literal["auto", "small", "large", "learned"] = "auto"

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        for t, s in pairwise(self.times(schedule)):
            p, q = denoise(x, t), transition(schedule, t, s)
            x = over(q.c_x, x) * x + over(q.c_x0, x) * p.x0
            if s > 0:
                x = x + self._deviation(p, q) * noise(x)
            yield Step(s, x, p.x0)

    def _deviation(self, p: Prediction, q: Transition) -> Tensor:
        variance = self.variance
        if variance == "auto":
            variance = "small" if p.var_frac is None else "learned"
        if variance == "learned":
            if p.var_frac is None:
                raise UserError(
                    "sampler.variance is 'learned', but the model has no learned variance",
                    "use --set sampler.variance=small, or train with task.learn_variance=true",
                )
            small, large = over(q.var_small.log(), p.x0), over(q.var_large.log(), p.x0)
            return (torch.lerp(small.expand_as(p.x0), large.expand_as(p.x0), p.var_frac) / 2).exp()
        return over((q.var_small if variance == "small" else q.var_large).sqrt(), p.x0)


class Ddim(Sampler):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 var) eps + eta sqrt(var) z; eta 0 is deterministic, 1 is DDPM(small).

    Source: Song et al. 2020, eq. 12 and 16 (arXiv 2010.02502).
    """

    kind: Literal["ddim"] = "ddim"
    eta: float = Field(0.0, ge=0, le=1)

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        for t, s in pairwise(self.times(schedule)):
            p = denoise(x, t)
            alpha_s, sigma_s = schedule.alpha_sigma(s)
            var = self.eta**2 * transition(schedule, t, s).var_small
            x = over(alpha_s, x) * p.x0 + over((sigma_s**2 - var).clamp(min=0).sqrt(), x) * p.eps
            if self.eta > 0 and s > 0:
                x = x + over(var.sqrt(), x) * noise(x)
            yield Step(s, x, p.x0)


class Heun(Sampler):
    """Trapezoidal rule on dx = x0 d(alpha) + eps d(sigma); two evaluations a step, second order.

    With alpha = 1 it is EDM's rule, on the flow path that of flow matching.
    Source: Karras et al. 2022, algorithm 1 (arXiv 2206.00364), restated for any (alpha, sigma) path.
    """

    evaluations: ClassVar[int] = 2

    kind: Literal["heun"] = "heun"

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        for t, s in pairwise(self.times(schedule)):
            (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
            d_alpha, d_sigma = over(alpha_s - alpha_t, x), over(sigma_s - sigma_t, x)
            p = denoise(x, t)
            euler = x + d_alpha * p.x0 + d_sigma * p.eps
            if s > 0:
                q = denoise(euler, s)
                x = x + d_alpha * (p.x0 + q.x0) / 2 + d_sigma * (p.eps + q.eps) / 2
            else:
                x = euler  # eps is undefined at sigma = 0
            yield Step(s, x, p.x0)


class DpmPlusPlus2M(Sampler):
    """Second-order multistep exponential integrator in x0; first order in its first and last step.

    Source: Lu et al. 2022, algorithm 2 (arXiv 2211.01095).
    """

    kind: Literal["dpmpp_2m"] = "dpmpp_2m"

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        before: tuple[Tensor, Tensor] | None = None  # the previous x0 and the previous step in half log SNR
        for t, s in pairwise(self.times(schedule)):
            (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
            h = (schedule.log_snr(s) - schedule.log_snr(t)) / 2
            p = denoise(x, t)
            data = p.x0
            if before is not None and s > 0:
                x0_before, h_before = before
                data = data + over(h / (2 * h_before), x) * (p.x0 - x0_before)
            # sigma_s / sigma_t x + alpha_s (1 - exp(-h)) data, with exp(-h) written out so that alpha_t = 0 is no special case
            keep = sigma_s / sigma_t
            x = over(keep, x) * x + over(alpha_s - alpha_t * keep, x) * data
            before = p.x0, h
            yield Step(s, x, p.x0)


AnySampler = Annotated[Ddpm | Ddim | Heun | DpmPlusPlus2M, Field(discriminator="kind")]
