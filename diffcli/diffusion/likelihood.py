"""The variational bound on log P(x0) of the ancestral chain x_1 -> ... -> x_{1/T} -> x_0, term by term, in bits a dimension.

    -log P(x0) <= L_T + sum_t L_t,  L_T = KL(q(x_1 | x0) || N(0, 1)),  L_t = KL(q(x_s | x_t, x0) || p(x_s | x_t)),  s = t - 1/T,
and at t = 1/T the discretised likelihood of x0's grey levels. Source: Ho et al. 2020, eq. 5 and 13 (arXiv 2006.11239).
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoise, Prediction, all_over
from diffcli.diffusion.schedule import DiscreteSchedule, transition
from diffcli.noise import Noise

HALF_BIN = 1 / 255  # half the distance of two grey levels in [-1, 1]
FAR = 1e3  # deviations from the mean; farther out the derivative of float32's log_ndtr overflows

Variance = Literal["small", "large", "learned"]
FIXED: dict[Variance, float] = {"small": 0.0, "large": 1.0}  # as a fraction of the way from beta tilde to beta


class Term(NamedTuple):
    """One term of the bound: the step that begins at t, or (t = None) the prior's."""

    t: float | None
    bits: Tensor  # (B,) a dimension


@torch.no_grad()
def bits_per_dim(
    denoise: Denoise, schedule: DiscreteSchedule, x0: Tensor, noise: Noise, variance: Variance, scale: float = 1.0
) -> Iterator[Term]:
    """The T + 1 terms of the bound, from t = 1 to 1/T and then the prior's; their sum is the bound, T evaluations in all.

    x0: (B, C, *S), grey levels of [-1, 1] times `scale`, as the denoiser sees them; it must neither clip nor be guided.
    noise: one stream a sample, drawn from once a step. With a fixed variance the last step, where beta tilde is 0, takes that of
    the step before, for small and large alike, as improved DDPM's code does: beta would blur the grey levels.
    """
    for step in range(schedule.steps, 0, -1):
        t = torch.tensor(step / schedule.steps, dtype=torch.float64)
        alpha, sigma = all_over(schedule.alpha_sigma(t), x0)
        x_t = alpha * x0 + sigma * noise(x0)
        p = denoise(x_t, t)
        if variance != "learned":
            p = p._replace(var_frac=torch.full_like(x0, FIXED[variance] if step > 1 else 0.0))
        yield Term(float(t), variational_term(p, x0, x_t, t.expand(len(x0)), schedule, scale))
    yield Term(None, prior_term(x0, schedule))


def prior_term(x0: Tensor, schedule: DiscreteSchedule) -> Tensor:
    """L_T = KL(q(x_1 | x0) || N(0, 1)) in bits a dimension, (B,): the cost of the signal left at t = 1."""
    alpha, sigma = schedule.alpha_sigma(torch.ones((), dtype=torch.float64))
    nats = 0.5 * (alpha * x0).square() + (0.5 * (sigma**2 - 1) - sigma.log())
    return nats.flatten(1).mean(1) / math.log(2)


def variational_term(
    p: Prediction, x0: Tensor, x_t: Tensor, t: Tensor, schedule: DiscreteSchedule, scale: float = 1.0
) -> Tensor:
    """L_t of the bound in bits a dimension, (B,), where p.var_frac is given; no gradient reaches the mean. t: (B,).

    t > 1/T: KL between the true and the model's step. t = 1/T: the discretised likelihood of x0 under the model mean, for x0 that
    are grey levels times `scale`.
    """
    assert p.var_frac is not None
    s = (t - 1 / schedule.steps).clamp(min=0)
    q = transition(schedule, t, s)
    log_small = _clipped_log_small(q.var_small, schedule)
    first = (t * schedule.steps < 1.5).to(t)
    c_x, c_x0, small, large, first = all_over((q.c_x, q.c_x0, log_small, q.var_large.log(), first), x0)
    true_mean, mean = c_x * x_t + c_x0 * x0, c_x * x_t + c_x0 * p.x0.detach()
    log_var = torch.lerp(small.expand_as(x0), large.expand_as(x0), p.var_frac)
    kl = 0.5 * (log_var - small + (small - log_var).exp() + (true_mean - mean).square() * (-log_var).exp() - 1)
    grey = discretised_log_likelihood(x0 / scale, mean / scale, log_var - 2 * math.log(scale))
    nats = torch.where(first > 0, -grey, kl)
    return nats.flatten(1).mean(1) / math.log(2)


def discretised_log_likelihood(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log P(x0) in nats, where N(mean, var) is integrated over the bin of x0's grey level; the outer bins reach to infinity.

    x0: one of 256 levels in [-1, 1]; all arguments of one shape, which the result has. The 256 probabilities sum to 1.
    Source: Ho et al. 2020, eq. 13.
    """
    scale = (-log_var / 2).exp()
    upper, lower = (((x0 - mean + edge) * scale).clamp(-FAR, FAR) for edge in (HALF_BIN, -HALF_BIN))
    below, above = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
    # mirrored if the bin is in the upper tail, so that the two numbers to subtract are small
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
    return torch.where(var_small > 0, var_small, float(floor)).log()
