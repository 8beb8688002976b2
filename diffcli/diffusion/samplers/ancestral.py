"""Samplers with one evaluation a move, from a prediction to the next time: DDPM, and DDIM with less or no noise."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import UserError
from diffcli.diffusion.denoiser import Denoise, Prediction, over
from diffcli.diffusion.samplers.sampler import Ends, Sampler, Step, ending
from diffcli.diffusion.schedule import Schedule, Transition, transition
from diffcli.noise import Noise


class Ddpm(Sampler):
    """Ancestral sampling: x_s ~ N(c_x x_t + c_x0 x0, var), no noise in the last step.

    variance: small is beta tilde, large is beta, learned comes from the network; auto is learned where there is one, else small.
    A classifier shifts the mean by variance times its gradient, which leaves the last move as it is.
    Source: Ho et al. 2020, algorithm 2; Nichol & Dhariwal 2021, eq. 15; Dhariwal & Nichol 2021, algorithm 1.
    """

    kind: Literal["ddpm"] = "ddpm"
    variance: Literal["auto", "small", "large", "learned"] = Field(
        "auto",
        description="of a move: beta tilde (small), beta (large), or the network's; auto: the network's where there is one",
    )

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        for t, s in pairwise(self.times(schedule)):
            p, q = denoise(x, t), transition(schedule, t, s)
            x0 = p.x0 if p.pull is None else p.pull.x0
            x = over(q.c_x, x) * x + over(q.c_x0, x) * x0
            if s > 0:
                deviation = self._deviation(p, q)
                x = x + deviation * noise(x)
                if p.pull is not None:
                    x = x + deviation**2 * p.pull.gradient
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
            small, large = (p.x0.new_full((), float(v.log())) for v in (q.var_small, q.var_large))
            return (torch.lerp(small.expand_as(p.x0), large.expand_as(p.x0), p.var_frac) / 2).exp()
        return over((q.var_small if variance == "small" else q.var_large).sqrt(), p.x0)


class Ddim(Sampler):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 var) eps + eta sqrt(var) z; eta 0 is deterministic, 1 is DDPM(small).

    ends: clean goes down to t = 0; cleanest stops at the first trained time (`ending`).
    Source: Song et al. 2020, eq. 12 and 16 (arXiv 2010.02502).
    """

    kind: Literal["ddim"] = "ddim"
    eta: float = Field(0.0, ge=0, le=1, description="noise added in each move: 0 none, 1 as much as DDPM")
    ends: Ends = Field("clean", description="clean goes down to t = 0, cleanest to the first trained time")

    def times(self, schedule: Schedule) -> Tensor:
        return ending(super().times(schedule), self.ends, schedule)

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        return _ddim(self.times(schedule), denoise, schedule, x, noise, self.eta)


class Euler(Sampler):
    """Euler's rule in sigma / alpha, which is DDIM(eta = 0) on every Gaussian path. Source: Karras et al. 2022, algorithm 1."""

    kind: Literal["euler"] = "euler"

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        return _ddim(self.times(schedule), denoise, schedule, x, noise, eta=0)


class EulerAncestral(Sampler):
    """Euler's rule to below the next time, then noise up to it: DDIM(eta) on every Gaussian path, here with eta 1 unless told.

    Source: the ancestral step of k-diffusion, with sigma_down and sigma_up; the identity is Song et al. 2020, eq. 16.
    """

    kind: Literal["euler_ancestral"] = "euler_ancestral"
    eta: float = Field(1.0, ge=0, le=1, description="noise added in each move: 0 none, 1 as much as DDPM")

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        return _ddim(self.times(schedule), denoise, schedule, x, noise, self.eta)


def _ddim(times: Tensor, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise, eta: float) -> Iterator[Step]:
    for t, s in pairwise(times):
        p = denoise(x, t)
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        var = eta**2 * transition(schedule, t, s).var_small
        x = over(alpha_s, x) * p.x0 + over((sigma_s**2 - var).clamp(min=0).sqrt(), x) * p.eps
        if eta > 0 and s > 0:
            x = x + over(var.sqrt(), x) * noise(x)
        yield Step(s, x, p.x0)
