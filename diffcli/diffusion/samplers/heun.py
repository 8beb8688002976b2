"""Samplers with two evaluations a move: the trapezoidal rule, and EDM's form of it with new noise."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import keys_agree
from diffcli.diffusion.denoiser import Denoise, Prediction, over
from diffcli.diffusion.samplers.sampler import Sampler, Step
from diffcli.diffusion.schedule import Schedule
from diffcli.noise import Noise

NOISIEST = 200.0  # sigma / alpha; EDM begins at 160 deviations of the data, and a linear schedule ends at 157


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


class EdmHeun(Sampler):
    """EDM's stochastic sampler: noise is raised from t to t_hat, then Heun's rule goes to s in the coordinate sigma / alpha.

    Sigmas count in deviations of the data, as sigma / alpha does: EDM's own numbers, for data of deviation 0.5, are doubled.
    The rule overshoots if one move removes most of a high noise level, which no grid of EDM's with 6 steps or more does
    (`_steep`). Such a move runs in the coordinates of the flow path instead, where t = 1 is a regular point. Source: Karras et
    al. 2022, algorithm 2 (arXiv 2206.00364), x / alpha in the place of their x.
    """

    evaluations: ClassVar[int] = 2

    kind: Literal["edm_heun"] = "edm_heun"
    s_churn: float = Field(0.0, ge=0, description="noise raised over the whole walk; 0 is deterministic")
    s_tmin: float = Field(0.0, ge=0, description="lowest sigma / alpha at which noise is raised")
    s_tmax: float = Field(100.0, ge=0, description="highest sigma / alpha at which noise is raised")
    s_noise: float = Field(1.0, gt=0, description="deviation of the fresh noise")

    @keys_agree
    def _agree(self) -> Iterator[str]:
        if self.s_churn and self.s_tmin > self.s_tmax:
            yield (
                f"s_churn is {self.s_churn} but s_tmin {self.s_tmin} is above s_tmax {self.s_tmax}, so noise is raised nowhere; "
                "set sampler.s_tmin below sampler.s_tmax, or s_churn to 0"
            )

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        for t, s in pairwise(self.times(schedule)):
            t, x = self._churned(schedule, t, x, noise)
            p = denoise(x, t)
            alpha_s, sigma_s = schedule.alpha_sigma(s)
            x = over(alpha_s, x) * p.x0 + over(sigma_s, x) * p.eps  # Euler's rule, the same in every coordinate
            if s > 0:
                x = x + heun_correction(p, denoise(x, s), schedule, t, s)
            yield Step(s, x, p.x0)

    def _churned(self, schedule: Schedule, t: Tensor, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """The noisier trained time t_hat and x there; t and x themselves where no noise is raised."""
        alpha, sigma = schedule.alpha_sigma(t)
        if self.s_churn == 0 or not self.s_tmin <= sigma / alpha <= self.s_tmax:
            return t, x
        gamma = min(self.s_churn / self.steps, math.sqrt(2) - 1)
        t_hat = schedule.snap(schedule.time(schedule.log_snr(t) - 2 * math.log1p(gamma)))
        alpha_hat, sigma_hat = schedule.alpha_sigma(t_hat)
        keep = alpha_hat / alpha
        added = self.s_noise * (sigma_hat**2 - (keep * sigma) ** 2).clamp(min=0).sqrt()
        return torch.maximum(t, t_hat), over(keep, x) * x + over(added, x) * noise(x)


def heun_correction(p: Prediction, q: Prediction, schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """The trapezoidal rule in sigma / alpha less Euler's: p is the prediction at t, where the move begins, q that at its end s.

    Its slope there is eps alone. A steep move (`_steep`) is corrected in the coordinates of the flow path instead.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    steep = _steep(sigma_t / alpha_t, sigma_s / alpha_s)
    scale_t, scale_s = (alpha_t + sigma_t, alpha_s + sigma_s) if steep else (alpha_t, alpha_s)
    d_alpha, d_sigma = alpha_s - alpha_t * scale_s / scale_t, sigma_s - sigma_t * scale_s / scale_t
    return over(d_alpha / 2, p.x0) * (q.x0 - p.x0) + over(d_sigma / 2, p.x0) * (q.eps - p.eps)


def _steep(high: Tensor, low: Tensor) -> bool:
    """Whether Heun's correction from sigma / alpha `high` to `low` is too great: high / (2 low^3) of x on unit Gaussian data."""
    return bool(high > min(NOISIEST, 4 * max(1.0, float(low) ** 3)))
