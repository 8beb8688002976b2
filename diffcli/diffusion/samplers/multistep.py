"""Multistep samplers: one evaluation a move, combined with earlier ones, for second order and above at the cost of DDIM.

In half log SNR, lambda, the probability-flow ODE has the solution x_s = sigma_s / sigma_t x_t + sigma_s * integral of
exp(lambda) x0(lambda), whose weights sum to alpha_s - alpha_t sigma_s / sigma_t. So every exponential integrator is a choice of
one x0 for the whole move (`exponential_move`). PLMS combines eps instead, and AB4 slopes of the flow path.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from diffcli.diffusion.denoiser import Denoise, over
from diffcli.diffusion.samplers.heun import heun_correction
from diffcli.diffusion.samplers.sampler import Ends, Sampler, Step, ending
from diffcli.diffusion.schedule import Schedule
from diffcli.noise import Noise

Known = tuple[Tensor, Tensor]
"""A position on the axis of integration, () float64, and the prediction there, (B, C, *S)."""


ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


class Plms(Sampler):
    """Pseudo linear multistep: each move is that of DDIM with eps combined of the last four, 55, -59, 37 and -9 over 24.

    The coefficients are those of an even grid on every grid, of orders 1 to 3 while fewer eps are known. The first move
    evaluates twice, at both its ends, and takes the mean of both eps. From the pure noise of a cosine path that mean would
    overshoot: there `heun_correction` works in the coordinates of the flow path. ends: as `Ddim` has it.
    Source: Liu et al. 2022, eq. 11 to 13 (arXiv 2202.09778), started as in the code of Rombach et al. 2022.
    """

    kind: Literal["plms"] = "plms"
    ends: Ends = Field("clean", description="clean goes down to t = 0, cleanest to the first trained time")

    @property
    def nfe(self) -> int:
        return self.steps + (self.steps > 1)

    def times(self, schedule: Schedule) -> Tensor:
        return ending(super().times(schedule), self.ends, schedule)

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        known: list[Tensor] = []
        for t, s in pairwise(self.times(schedule)):
            (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
            p = denoise(x, t)
            known = [p.eps, *known][:4]
            x = over(alpha_s, x) * p.x0 + over(sigma_s, x) * p.eps
            if len(known) > 1:
                drift = sum(w * (eps - p.eps) for w, eps in zip(ADAMS_BASHFORTH[len(known) - 1], known, strict=True))
                x = x + over(sigma_s - alpha_s * sigma_t / alpha_t, x) * drift
            elif self.steps > 1:
                x = x + heun_correction(p, denoise(x, s), schedule, t, s)
            yield Step(s, x, p.x0)


class Ab4(Sampler):
    """Adams-Bashforth of order up to 4, with coefficients for the actual grid; 55, -59, 37, -9 over 24 on an even one.

    In u = sigma / (alpha + sigma) and x' = x / (alpha + sigma) every Gaussian path is the flow path dx' = (eps - x0) du, smooth
    at t = 1 too. The first three moves have orders 1, 2 and 3; the last has order 1, where x0 is sharpest and extrapolation
    is harmful. `Plms` is the published method. Source: Hairer, Norsett & Wanner 1993, section III.1, variable step sizes in
    III.5.
    """

    kind: Literal["ab4"] = "ab4"

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        known: list[Known] = []
        for t, s in pairwise(self.times(schedule)):
            (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
            scale_t, scale_s = alpha_t + sigma_t, alpha_s + sigma_s
            u, h = sigma_t / scale_t, sigma_s / scale_s - sigma_t / scale_t
            p = denoise(x, t)
            known = [(u, p.eps - p.x0), *known][:4]
            even = 1 / torch.arange(1, len(known) + 1, dtype=torch.float64)  # integrals of the powers over [0, 1]
            slope = interpolated(known, u, h, even) if s > 0 else p.eps - p.x0
            x = over(scale_s / scale_t, x) * x + over(scale_s * h, x) * slope
            yield Step(s, x, p.x0)


class DpmPlusPlus2M(Sampler):
    """Second-order multistep exponential integrator in x0; first order in its first and last step.

    Source: Lu et al. 2022, algorithm 2 (arXiv 2211.01095).
    """

    kind: Literal["dpmpp_2m"] = "dpmpp_2m"

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        return _second_order(self.times(schedule), denoise, schedule, x, noise, eta=0)


class DpmPlusPlus2MSde(Sampler):
    """DPM-Solver++(2M) on the reverse SDE, its noise scaled by eta; eta 0 is dpmpp_2m.

    Source: Lu et al. 2022, appendix C of arXiv 2211.01095 (SDE-DPM-Solver++(2M), eta 1).
    """

    kind: Literal["dpmpp_2m_sde"] = "dpmpp_2m_sde"
    eta: float = Field(1.0, ge=0, le=1, description="noise added in each move: 0 none, 1 the reverse SDE")

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        return _second_order(self.times(schedule), denoise, schedule, x, noise, self.eta)


class DpmPlusPlus3M(Sampler):
    """Third-order multistep exponential integrator in x0; orders 1 and 2 in its first two steps, 2 and 1 in its last.

    The integral of the parabola through the last three x0 is taken whole. Published code halves its second difference, which
    leaves second order. Source: Lu et al. 2022, section 4 (arXiv 2211.01095).
    """

    kind: Literal["dpmpp_3m"] = "dpmpp_3m"

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        known: list[Known] = []
        for left, (t, s) in zip(range(self.steps, 0, -1), pairwise(self.times(schedule)), strict=True):
            p = denoise(x, t)
            known = [(schedule.log_snr(t) / 2, p.x0), *known][:3]
            x = exponential_move(x, exponential_mean(known[:left], schedule, t, s), schedule, t, s)
            yield Step(s, x, p.x0)


class UniPc(Sampler):
    """UniPC-2 (bh2): DPM-Solver++(2M) predicts, and the next evaluation, which is needed anyway, corrects the move.

    The correction integrates the parabola through three x0, the newest among them. A Step holds the predicted x.
    Source: Zhao et al. 2023, algorithms 5 and 6 (arXiv 2302.04867).
    """

    kind: Literal["unipc"] = "unipc"

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        known: list[Known] = []
        origin: tuple[Tensor, Tensor] | None = None  # where the last move began: its time, and x there
        for t, s in pairwise(self.times(schedule)):
            p = denoise(x, t)
            here = schedule.log_snr(t) / 2, p.x0
            if origin is not None:
                begin, x_begin = origin
                several = len(known) > 1 and bool(known[1][0].isfinite())
                ahead = exponential_mean([here, *known], schedule, begin, t) if several else (p.x0 + known[0][1]) / 2
                x = exponential_move(x_begin, ahead, schedule, begin, t)
            known, origin = [here, *known][:2], (t, x)
            x = exponential_move(x, _extrapolated(known, schedule, s), schedule, t, s)
            yield Step(s, x, p.x0)


def exponential_move(x: Tensor, data: Tensor, schedule: Schedule, t: Tensor, s: Tensor, eta: float = 0) -> Tensor:
    """x at s from x at t, with `data` as the x0 between them; without the noise for eta > 0.

    eta 0 solves the probability-flow ODE, 1 the reverse SDE. Source: Lu et al. 2022, eq. 9 (arXiv 2211.01095).
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    # exp(-h) is written out as a ratio so that alpha_t = 0 is no special case
    keep = sigma_s / sigma_t * (alpha_t * sigma_s / (alpha_s * sigma_t)) ** eta
    return over(keep, x) * x + over(alpha_s - alpha_t * keep, x) * data


def exponential_mean(known: list[Known], schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """The mean, with weights exp(lambda) from t to s, of the polynomial through the known values at finite lambda."""
    finite = [k for k in known if k[0].isfinite()]
    if len(finite) < 2:
        return known[0][1]
    lambda_t, lambda_s = schedule.log_snr(t) / 2, schedule.log_snr(s) / 2
    h = lambda_s - lambda_t
    moments = [-torch.expm1(-h) / h]  # integrals of exp(-h (1 - y)) y^k over [0, 1]
    for k in range(1, len(finite)):
        moments.append((1 - k * moments[-1]) / h)
    return interpolated(finite, lambda_t, h, torch.stack(moments) / moments[0])


def interpolated(known: list[Known], origin: Tensor, h: Tensor, moments: Tensor) -> Tensor:
    """The integral of the polynomial through the known values: its power ((place - origin) / h)^k integrates to moments[k]."""
    places = (torch.stack([place for place, _ in known]) - origin) / h
    weights = torch.linalg.solve(places ** torch.arange(len(known))[:, None], moments)
    first, *others = (over(w, value) * value for w, (_, value) in zip(weights, known, strict=True))
    return sum(others, start=first)


def _second_order(
    times: Tensor, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise, eta: float
) -> Iterator[Step]:
    known: list[Known] = []
    for t, s in pairwise(times):
        p = denoise(x, t)
        known = [(schedule.log_snr(t) / 2, p.x0), *known][:2]
        x = exponential_move(x, _extrapolated(known, schedule, s), schedule, t, s, eta)
        if eta > 0 and s > 0:
            (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
            ratio = alpha_t * sigma_s / (alpha_s * sigma_t)
            x = x + over(sigma_s * (1 - ratio ** (2 * eta)).sqrt(), x) * noise(x)
        yield Step(s, x, p.x0)


def _extrapolated(known: list[Known], schedule: Schedule, s: Tensor) -> Tensor:
    """x0 at the middle of the move to s in half log SNR, on the line through the last two; the last alone at either end."""
    if len(known) < 2 or s == 0:
        return known[0][1]
    (here, x0), (before, x0_before) = known
    h = schedule.log_snr(s) / 2 - here
    return x0 + over(h / (2 * (here - before)), x0) * (x0 - x0_before)
