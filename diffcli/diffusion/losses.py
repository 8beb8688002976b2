"""What training minimises: the squared error of the target, and the variational bound where the variance is learned.

L = w(t) (mean (y_hat - y)^2 + VLB_WEIGHT * T * L_t),  L_t = KL(q(x_s | x_t, x0) || p(x_s | x_t)), s = t - 1/T, bits a dimension.
The mean of p is detached in L_t: the variational term trains the variance alone.
Source: Nichol & Dhariwal 2021, section 3.1 and eq. 16 (arXiv 2102.09672), whose lambda is 0.001 for the sum over T terms.
"""

import math
from abc import abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import Config
from diffcli.diffusion.denoiser import Denoiser, Prediction, coefficients, over
from diffcli.diffusion.schedule import DiscreteSchedule, Schedule, transition

VLB_WEIGHT = 0.001
GOLDEN = (math.sqrt(5) - 1) / 2
HALF_BIN = 1 / 255  # half the distance of two grey levels in [-1, 1]
FAR = 1e3  # deviations from the mean; farther out the derivative of float32's log_ndtr overflows


class Times(Config):
    """Which times a batch is trained at, and with what weight each."""

    @abstractmethod
    def sample(self, u: Tensor, position: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """t (B,) in (0, 1] and its weight (B,), float64, from u uniform on [0, 1) and each sample's position in the run."""


class UniformTimes(Times):
    """Every trained time equally likely, independently for each sample."""

    kind: Literal["uniform"] = "uniform"

    def sample(self, u: Tensor, position: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        return schedule.trained_time(u), torch.ones_like(u)


class StratifiedTimes(Times):
    """Times of neighbouring samples spread evenly over (0, 1]: uniform in the long run, with less variance in a batch.

    The golden-ratio sequence covers the interval evenly in every window, so no batch size enters. The idea of spreading the
    times of a batch is that of Kingma et al. 2021, appendix I.1 (arXiv 2107.00630).
    """

    kind: Literal["stratified"] = "stratified"

    def sample(self, u: Tensor, position: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        return schedule.trained_time((position.double().cpu() * GOLDEN).frac()), torch.ones_like(u)


def denoising_loss(
    denoiser: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, cond: object, weight: Tensor
) -> dict[str, Tensor]:
    """Per-sample terms, each (B,): `loss` (to be averaged), `mse`, and `vlb` in bits a dimension where the variance is learned.

    x0, eps: (B, C, *S) float32; t, weight: (B,) float64 on the CPU.
    """
    schedule = denoiser.schedule
    alpha, sigma = schedule.alpha_sigma(t)
    x_t = over(alpha, x0) * x0 + over(sigma, x0) * eps
    p = denoiser(x_t, t, cond)
    a, b = (over(c, x0) for c in coefficients(denoiser.target, alpha, sigma))
    mse = (a * (p.x0 - x0) + b * (p.eps - eps)).square().flatten(1).mean(1)
    terms = {"loss": over(weight, mse) * mse, "mse": mse}
    if p.var_frac is not None:
        assert isinstance(schedule, DiscreteSchedule), "the task refuses learned variance on a continuous schedule"
        vlb = variational_term(p, x0, x_t, t, schedule)
        terms["loss"] = terms["loss"] + over(weight, mse) * VLB_WEIGHT * schedule.steps * vlb
        terms["vlb"] = vlb
    return terms


def variational_term(p: Prediction, x0: Tensor, x_t: Tensor, t: Tensor, schedule: DiscreteSchedule) -> Tensor:
    """L_t of the variational bound in bits a dimension, (B,); no gradient reaches the mean.

    t > 1/T: KL between the true and the model's step. t = 1/T: the discretised likelihood of x0 under the model mean.
    """
    assert p.var_frac is not None
    s = (t - 1 / schedule.steps).clamp(min=0)
    q = transition(schedule, t, s)
    log_small = _clipped_log_small(q.var_small, schedule)
    c_x, c_x0 = over(q.c_x, x0), over(q.c_x0, x0)
    true_mean, mean = c_x * x_t + c_x0 * x0, c_x * x_t + c_x0 * p.x0.detach()
    small, large = over(log_small, x0).expand_as(x0), over(q.var_large.log(), x0).expand_as(x0)
    log_var = torch.lerp(small, large, p.var_frac)
    kl = 0.5 * (log_var - small + (small - log_var).exp() + (true_mean - mean).square() * (-log_var).exp() - 1)
    first = over(t * schedule.steps < 1.5, x0).bool()
    nats = torch.where(first, -discretised_log_likelihood(x0, mean, log_var), kl)
    return nats.flatten(1).mean(1) / math.log(2)


def discretised_log_likelihood(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log P(x0) in nats, where N(mean, var) is integrated over the bin of x0's grey level; the outer bins reach to infinity.

    x0: one of 256 levels in [-1, 1]; all arguments of one shape, which the result has. The 256 probabilities sum to 1.
    Source: Ho et al. 2020, eq. 13.
    """
    scale = (-log_var / 2).exp()
    upper, lower = (((x0 - mean + edge) * scale).clamp(-FAR, FAR) for edge in (HALF_BIN, -HALF_BIN))
    below, above = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
    # mirrored where the bin lies in the upper tail, so that the difference of the two is one of small numbers
    flip = lower > 0
    high, low = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    inside = log_high + torch.log1p(-(log_low - log_high).exp().clamp(max=1 - 1e-7))
    return torch.where(x0 < -1 + HALF_BIN, below, torch.where(x0 > 1 - HALF_BIN, above, inside))


def _clipped_log_small(var_small: Tensor, schedule: DiscreteSchedule) -> Tensor:
    """log beta tilde; in the last step, where beta tilde is 0, the value of the step before, as improved DDPM clips it."""
    t = torch.tensor(min(2, schedule.steps) / schedule.steps, dtype=torch.float64)
    before = transition(schedule, t, t - 1 / schedule.steps)
    floor = before.var_small if schedule.steps > 1 else before.var_large
    return torch.where(var_small > 0, var_small, floor).log()


AnyTimes = Annotated[UniformTimes | StratifiedTimes, Field(discriminator="kind")]
