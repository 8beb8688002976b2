"""The probability-flow ODE to a tolerance: an embedded Runge-Kutta pair with separate step sizes for each image.

In u = sigma / (alpha + sigma) and x' = x / (alpha + sigma) every Gaussian path is the flow path, dx' = (eps - x0) du, smooth
from u = 1 down to where the data end.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import UserError
from diffcli.diffusion.denoiser import Denoise, all_over, over
from diffcli.diffusion.samplers.sampler import Sampler, Step
from diffcli.diffusion.schedule import Schedule
from diffcli.noise import Noise
from diffcli.transfer import moved

# Dormand & Prince 1980, table 2, RK5(4)7M: the nodes, what each stage adds up, and the difference of the two orders
NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # the fifth-order result
)
ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
FIRST_STEP = 0.1  # in u
Slope = Callable[[Tensor, Tensor], Tensor]


class Node(NamedTuple):
    """The position of each image of a batch on its walk."""

    u: Tensor  # (B,) float64 on the CPU
    x: Tensor  # (B, C, *S): x / (alpha + sigma)
    slope: Tensor  # (B, C, *S): eps - x0

    def where(self, chosen: Tensor, other: "Node") -> "Node":
        """This node for the images chosen, (B,) bool, the other for the rest."""
        on_device = moved(chosen, self.x.device).view(-1, *[1] * (self.x.ndim - 1))
        return Node(
            torch.where(chosen, self.u, other.u),
            torch.where(on_device, self.x, other.x),
            torch.where(on_device, self.slope, other.slope),
        )


class Ode(Sampler):
    """Dormand-Prince 5(4) with adaptive steps; `steps` is the number of states to show and changes neither result nor cost.

    The steps of an image follow its own error, so it does not depend on its batch. The host reads these errors, (B,) numbers,
    once in each step of six evaluations, and waits for nothing else. The Steps count evaluations. The walk ends at the first
    trained time, whose x0 is the result. Source: Dormand & Prince 1980, doi 10.1016/0771-050X(80)90013-3; Song et al. 2021,
    section 4.3 (arXiv 2011.13456).
    """

    kind: Literal["ode"] = "ode"
    rtol: float = Field(1e-3, gt=0, description="error of a step allowed, relative to x")
    atol: float = Field(1e-3, gt=0, description="error of a step allowed, in units of x")
    max_evaluations: int = Field(1000, ge=1, description="of the network, for any image")

    @property
    def nfe(self) -> int | None:
        return None

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        times = self.times(schedule)
        slope, end = _slope(denoise, schedule), float(_u(schedule, torch.tensor(schedule.cleanest)))
        u = _u(schedule, times[0]).expand(len(x))
        alpha, sigma = schedule.alpha_sigma(times[0])
        x = over(1 / (alpha + sigma), x) * x
        now = before = Node(u, x, slope(x, u))
        h, evaluations = torch.full_like(u, FIRST_STEP), torch.ones(len(u), dtype=torch.int64)
        for s in times[1:]:
            target = max(float(_u(schedule, s)), end)
            while bool((walking := now.u > target).any()):
                reach = torch.minimum(h, now.u - end)
                after, error = _step(slope, now, reach, end)
                evaluations = evaluations + len(NODES) * walking
                self._check(int(evaluations.max()))
                size = _rms(error, self.atol + self.rtol * torch.maximum(now.x.abs(), after.x.abs()))
                accepted = walking & (size <= 1)
                before, now = now.where(accepted, before), after.where(accepted, now)
                h = torch.where(walking, reach * (0.9 * size**-0.2).clamp(0.2, 5), h)
            x0 = now.x - over(now.u, now.x) * now.slope
            alpha, sigma = schedule.alpha_sigma(s)
            yield Step(s, over(alpha + sigma, x) * _between(before, now, target) if s > 0 else x0, x0, evaluations)

    def _check(self, evaluations: int) -> None:
        if evaluations > self.max_evaluations:
            raise UserError(
                f"sampler.max_evaluations is {self.max_evaluations}, and the ode has not reached the image by then",
                f"use --set sampler.rtol={10 * self.rtol:g} --set sampler.atol={10 * self.atol:g}, or a higher limit",
            )


def _u(schedule: Schedule, t: Tensor) -> Tensor:
    alpha, sigma = schedule.alpha_sigma(t)
    return sigma / (alpha + sigma)


def _slope(denoise: Denoise, schedule: Schedule) -> Slope:
    """(x' (B, C, *S), u (B,)) -> dx'/du."""

    def slope(x: Tensor, u: Tensor) -> Tensor:
        t = schedule.time(2 * (torch.log1p(-u) - u.log()))
        alpha, sigma = schedule.alpha_sigma(t)
        p = denoise(over(alpha + sigma, x) * x, t)
        return p.eps - p.x0

    return slope


def _step(slope: Slope, now: Node, h: Tensor, end: float) -> tuple[Node, Tensor]:
    """One step of each image by h (B,) down in u, of which `end` is the lowest; and the estimate of its error."""
    slopes, x, u = [now.slope], now.x, now.u
    for node, stage in zip(NODES, STAGES, strict=True):
        x = now.x - _sum(stage, slopes, h)
        u = (now.u - node * h).clamp(min=end)
        slopes.append(slope(x, u))
    return Node(u, x, slopes[-1]), _sum(ERROR, slopes, h)


def _sum(weights: tuple[float, ...], slopes: list[Tensor], h: Tensor) -> Tensor:
    """h times the weighted sum."""
    used = [(w * h, k) for w, k in zip(weights, slopes, strict=True) if w]
    factors = all_over([factor for factor, _ in used], slopes[0])
    first, *others = (factor * k for factor, (_, k) in zip(factors, used, strict=True))
    return sum(others, start=first)


def _rms(error: Tensor, allowed: Tensor) -> Tensor:
    """Root mean square of an image's error in units of the tolerance, (B,) float64 on the CPU, above 0."""
    return (error / allowed).double().square().flatten(1).mean(1).sqrt().cpu().clamp(min=1e-12)


def _between(before: Node, now: Node, u: float) -> Tensor:
    """x' at u between two nodes, by the cubic with their values and slopes; the later node's where it has just begun."""
    h = now.u - before.u
    y = torch.where(h == 0, 1.0, (u - before.u) / h)
    rise, x = all_over((h, y), now.x)
    cubic = (1 - x) ** 2 * ((1 + 2 * x) * before.x + x * rise * before.slope)
    return cubic + x**2 * ((3 - 2 * x) * now.x - (1 - x) * rise * now.slope)
