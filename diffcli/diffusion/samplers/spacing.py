"""Time grids: the trained times that a sampler visits between 1 and 0. The last move always ends at t = 0.

uniform, trailing  even in time, from 1; the two are one grid (Lin et al. 2023 call it trailing)
leading            even in time, from the first trained time upwards, so the walk begins below 1
leading_1          the same one trained time higher where there is room for it, as published latent models are drawn
linspace           even in time, from 1 to the first trained time; halves round to the even index, as OpenAI and DiT are drawn
log_snr            even in log SNR between the last and the first trained time
karras             even in (sigma / alpha)^(1/7) between the two, after a first move down to EDM's sigma_max if 1 is noisier
Source: Lin et al. 2023, table 2 (arXiv 2305.08891); Lu et al. 2022 (arXiv 2206.00927); Karras et al. 2022, eq. 5.
"""

import itertools
from collections.abc import Callable
from typing import Literal, assert_never

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.diffusion.schedule import DiscreteSchedule, Schedule

Spacing = Literal["uniform", "trailing", "leading", "leading_1", "linspace", "log_snr", "karras"]

RHO = 7  # Karras et al. 2022, appendix D.1
NOISIEST = (
    80 / 0.5
)  # their sigma_max in deviations of the data; a path that ends in pure noise would spend all steps above it


def grid(spacing: Spacing, steps: int, schedule: Schedule) -> Tensor:
    """(steps + 1,) float64 down to 0, strictly falling, each one a time that training visits.

    The first is 1 except for `leading` and `leading_1`, whose walks use pure noise as x
    at their first time, as in the published code.
    """
    if isinstance(schedule, DiscreteSchedule) and steps > schedule.steps:
        raise UserError(
            f"sampler.steps is {steps}, more than the {schedule.steps} steps of the schedule",
            f"use --steps {schedule.steps} or fewer",
        )
    match spacing:
        case "uniform" | "trailing":
            times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
        case "leading" | "leading_1":
            stride = (1 - schedule.cleanest) / steps
            if isinstance(schedule, DiscreteSchedule):
                stride = schedule.steps // steps / schedule.steps
            room = 1 - schedule.cleanest - stride * (steps - 1)
            first = schedule.cleanest + (min(schedule.cleanest, room) if spacing == "leading_1" else 0)
            times = first + stride * torch.arange(steps, dtype=torch.float64).flip(0)
        case "linspace":
            times = torch.linspace(1, schedule.cleanest, steps, dtype=torch.float64)
            if isinstance(schedule, DiscreteSchedule) and steps > 1:
                times = _rounded(steps, schedule.steps)
        case "log_snr":
            times = _even(steps, schedule, lambda y: y, lambda y: y)
        case "karras":
            most = NOISIEST ** (1 / RHO)
            times = _even(steps, schedule, lambda y: (-y / 2 / RHO).exp().clamp(max=most), lambda y: -2 * RHO * y.log())
        case _:
            assert_never(spacing)
    return torch.cat([schedule.snap(times), torch.zeros(1, dtype=torch.float64)])


def _rounded(steps: int, trained: int) -> Tensor:
    """(steps,) times at the indices 0, d, 2d, ... in falling order, d = (T - 1) / (steps - 1), rounded as Python does.

    The indices are sums of d, whose rounding errors decide between the neighbours of a half.
    Source: the code of Nichol & Dhariwal 2021 (arXiv 2102.09672), which that of DiT repeats.
    """
    places = itertools.accumulate(itertools.repeat((trained - 1) / (steps - 1), steps - 1), initial=0.0)
    return torch.tensor([round(place) + 1 for place in places], dtype=torch.float64).flip(0) / trained


def _even(
    steps: int, schedule: Schedule, scale: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]
) -> Tensor:
    """(steps,) times even in a function of log SNR, from 1 to the first trained time.

    If no signal is left at 1, the even part begins one trained time before it.
    """
    noisiest = 1.0 if schedule.leftover_signal > 0 else 1 - schedule.cleanest
    high, low = scale(schedule.log_snr(torch.tensor([noisiest, schedule.cleanest], dtype=torch.float64)))
    times = schedule.time(back(torch.linspace(high, low, steps, dtype=torch.float64)))
    times[0] = 1.0
    return _distinct(schedule.snap(times), schedule.steps) if isinstance(schedule, DiscreteSchedule) else times


def _distinct(times: Tensor, steps: int) -> Tensor:
    """Falling times k / steps with repetitions moved to the next free ones: a last beta near 1 leaves a gap in SNR."""
    after = torch.arange(len(times))
    index = ((times * steps).round().long() + after).cummin(0).values - after  # each at least one below the one before
    return index.maximum(len(times) - after).double() / steps  # and room left for those that follow
