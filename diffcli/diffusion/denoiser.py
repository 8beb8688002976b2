"""A denoiser from a network: from (x_t, t) to x0 and eps, for every target of the network.

Every target is a x0 + b eps. With x_t = alpha x0 + sigma eps this is one 2x2 system, [alpha sigma; a b][x0; eps] = [x_t; y],
so each parameterization on each schedule is the same three lines.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, assert_never

import torch
from torch import Tensor, nn

from diffcli.diffusion.schedule import Schedule
from diffcli.transfer import moved

Target = Literal["eps", "x0", "v", "flow"]


class Pull(NamedTuple):
    """The contribution of a classifier to a prediction, for samplers that shift the mean of a move instead of x0."""

    x0: Tensor  # (B, C, *S) before
    gradient: Tensor  # (B, C, *S): scale * grad log p(y | x_t)


class Prediction(NamedTuple):
    """The prediction of a denoiser for x_t; x_t = alpha x0 + sigma eps holds up to rounding."""

    x0: Tensor  # (B, C, *S) float32
    eps: Tensor  # (B, C, *S) float32
    var_frac: Tensor | None = None  # (B, C, *S): 0 is var_small, 1 is var_large, on a log scale
    pull: Pull | None = None  # of a classifier; x0 and eps are those after it


Denoise = Callable[[Tensor, Tensor], Prediction]
"""(x_t (B, C, *S), t () or (B,)) -> Prediction, with condition and guidance already bound."""


def coefficients(target: Target, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) such that the target is a * x0 + b * eps, shaped like alpha.

    Source: Salimans & Ho 2022, section 4 and appendix D (arXiv 2202.00512) for v; Lipman et al. 2022 for flow.
    """
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    match target:
        case "eps":
            return zero, one
        case "x0":
            return one, zero
        case "v":
            return -sigma, alpha
        case "flow":
            return -one, one
        case _:
            assert_never(target)


def over(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient () or (B,) as one that multiplies, or is added to, x (B, C, *S), with a result in x's dtype.

    One of shape () stays where it is, in float64 on the CPU, since a kernel takes it as a number; (B,) go to x's device.
    """
    return all_over((coefficient,), x)[0]


def all_over(coefficients: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """`over` of each, those of shape (B,) in one copy to the device."""
    batched = [c for c in coefficients if c.ndim]
    if not batched:
        return list(coefficients)
    rows = iter(moved(torch.stack(batched), x.device, x.dtype).view(len(batched), -1, *[1] * (x.ndim - 1)))
    return [next(rows) if c.ndim else c for c in coefficients]


def network_time(schedule: Schedule, t: Tensor, x: Tensor) -> Tensor:
    """The network's input for the times t, () on the CPU or (B,), of x (B, C, *S): (B,) float32 on x's device."""
    time = schedule.network_time(t)
    if time.ndim:
        return moved(time, x.device, torch.float32)
    return torch.full((len(x),), float(time), device=x.device)


class Denoiser(nn.Module):
    """Owns the network; knows the path and the target. `forward` gives float32 whatever autocast the network runs in."""

    def __init__(self, network: nn.Module, schedule: Schedule, target: Target, learn_variance: bool) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.target = target
        self.learn_variance = learn_variance

    def forward(self, x_t: Tensor, t: Tensor, cond: object) -> Prediction:
        """x_t: (B, C, *S); t: () or (B,), in (0, 1], () on the CPU; cond goes to the network unread."""
        y, var_frac = self.network(x_t, network_time(self.schedule, t, x_t), cond).float(), None
        if self.learn_variance:
            y, v = y.chunk(2, dim=1)
            var_frac = (v + 1) / 2  # Nichol & Dhariwal 2021, section 3.1: v in [-1, 1], not enforced
        alpha, sigma = self.schedule.alpha_sigma(t)
        a, b = coefficients(self.target, alpha, sigma)
        det = alpha * b - sigma * a
        to_x0, from_y, to_eps, from_x = all_over((b / det, sigma / det, alpha / det, a / det), x_t)
        return Prediction(to_x0 * x_t - from_y * y, to_eps * y - from_x * x_t, var_frac)
