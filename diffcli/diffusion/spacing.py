"""Time grids: which of the trained times a sampler visits on its way from 1 to 0."""

from typing import Literal

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.diffusion.schedule import DiscreteSchedule, Schedule

Spacing = Literal["uniform", "log_snr"]

CLEANEST = 1e-3  # where log-SNR spacing leaves a continuous path for t = 0


def grid(spacing: Spacing, steps: int, schedule: Schedule) -> Tensor:
    """(steps + 1,) float64 from 1 down to 0, strictly falling, each one a time that training visits."""
    if isinstance(schedule, DiscreteSchedule) and steps > schedule.steps:
        raise UserError(
            f"sampler.steps is {steps}, more than the {schedule.steps} steps of the schedule",
            f"use --steps {schedule.steps} or fewer",
        )
    if spacing == "uniform":
        return schedule.snap(torch.linspace(1, 0, steps + 1, dtype=torch.float64))
    return _log_snr(steps, schedule)


def _log_snr(steps: int, schedule: Schedule) -> Tensor:
    """Uniform in log SNR from the first to the last trained time, then 0; Lu et al. 2022, arXiv 2206.00927."""
    ends = torch.tensor([1.0 - CLEANEST, CLEANEST], dtype=torch.float64)
    if isinstance(schedule, DiscreteSchedule):
        ends = torch.tensor([1.0, 1 / schedule.steps], dtype=torch.float64)
    high, low = schedule.log_snr(ends)
    times = schedule.time(torch.linspace(high, low, steps, dtype=torch.float64))
    times[0] = 1.0
    if isinstance(schedule, DiscreteSchedule):
        times = _distinct(schedule.snap(times), schedule.steps)
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def _distinct(times: Tensor, steps: int) -> Tensor:
    """Falling times k / steps with repetitions moved to the next free ones, as where a last beta near 1 leaves a gap in SNR."""
    after = torch.arange(len(times))
    index = ((times * steps).round().long() + after).cummin(0).values - after  # each at least one below the one before
    return index.maximum(len(times) - after).double() / steps  # and room left for those that follow
