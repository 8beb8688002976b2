"""The training times t in (0, 1] of a batch and their weights: 1, or with importance sampling 1 / (T p_t).

A time is a function of one uniform number a sample, so it depends on the sample's own stream (or position) alone. Distributions
given on the continuum are snapped to the trained times of a discrete schedule.
"""

import math
from abc import abstractmethod
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config
from diffcli.diffusion.schedule import DiscreteSchedule, Schedule
from diffcli.transfer import moved

GOLDEN = (math.sqrt(5) - 1) / 2
CLEANEST = 2.0**-53  # times and uniform numbers are kept off 0, where nothing is left to learn


class LossHistory(nn.Module):
    """The last losses seen at each of the T trained times; buffers, so that a checkpoint holds them and resuming is exact."""

    losses: Tensor  # (T, window) float32, a ring for each time
    count: Tensor  # (T,) int64: losses seen so far

    def __init__(self, steps: int, window: int) -> None:
        super().__init__()
        self.register_buffer("losses", torch.zeros(steps, window))
        self.register_buffer("count", torch.zeros(steps, dtype=torch.int64))

    @torch.no_grad()
    def record(self, index: Tensor, loss: Tensor) -> None:
        """Appends losses (n,) of the times index (n,) int64 in 0..T-1, in their order."""
        steps, window = self.losses.shape
        order = index.argsort(stable=True)
        index, loss = index[order], loss[order]
        nth = torch.arange(len(index), device=index.device) - torch.searchsorted(index, index)  # of its time, from 0
        seen = torch.zeros_like(self.count).scatter_add_(0, index, torch.ones_like(index))
        kept = nth >= seen[index] - window  # a ring's place is written once, whatever the batch
        place = torch.where(kept, index * window + (self.count[index] + nth) % window, steps * window)
        places = F.pad(self.losses.flatten(), (0, 1)).scatter_(
            0, place, loss.to(self.losses)
        )  # the last is thrown away
        self.losses.copy_(places[:-1].view_as(self.losses))
        self.count += seen

    def root_mean_squares(self) -> Tensor:
        """sqrt(E[L_t^2]) at each time, float64 (T,), where the buffers are; all 1 until every time has a full history."""
        roots = self.losses.double().square().mean(1).sqrt()
        return torch.where((self.count >= self.losses.shape[1]).all(), roots, 1.0)


class Times(Config):
    """The training times of a batch, and their weights."""

    @abstractmethod
    def sample(
        self, u: Tensor, position: Tensor, schedule: Schedule, history: LossHistory | None = None
    ) -> tuple[Tensor, Tensor]:
        """t (B,) in (0, 1] and its weight (B,), float64, from u uniform on [0, 1) and each sample's position in the run.

        u, position: (B,) on the CPU, where t is, too, unless it follows from a history that lies elsewhere.
        """

    def remember(self, schedule: Schedule) -> LossHistory | None:
        """An empty history for those that draw by it."""
        return None


class UniformTimes(Times):
    """Every trained time equally likely, independently for each sample."""

    kind: Literal["uniform"] = "uniform"

    def sample(
        self, u: Tensor, position: Tensor, schedule: Schedule, history: LossHistory | None = None
    ) -> tuple[Tensor, Tensor]:
        return schedule.trained_time(u), torch.ones_like(u)


class StratifiedTimes(Times):
    """Times of neighbouring samples spread evenly over (0, 1]: uniform in the long run, with less variance in a batch."""

    kind: Literal["stratified"] = "stratified"

    def sample(
        self, u: Tensor, position: Tensor, schedule: Schedule, history: LossHistory | None = None
    ) -> tuple[Tensor, Tensor]:
        return schedule.trained_time(evenly(position)), torch.ones_like(u)


class MappedTimes(Times):
    """Times of a distribution on (0, 1], each sample's own or (stratified) spread evenly over it by neighbouring samples."""

    stratified: bool = Field(False, description="spread the times of a batch evenly instead of at random")

    @abstractmethod
    def time(self, u: Tensor, schedule: Schedule) -> Tensor:
        """t in [0, 1] at the quantile u in (0, 1), before it is snapped; float64."""

    def sample(
        self, u: Tensor, position: Tensor, schedule: Schedule, history: LossHistory | None = None
    ) -> tuple[Tensor, Tensor]:
        u = (evenly(position) if self.stratified else u).clamp(CLEANEST, 1 - CLEANEST)
        return schedule.snap(self.time(u, schedule).clamp(min=CLEANEST)), torch.ones_like(u)


class LogNormalSigma(MappedTimes):
    """ln(sigma / alpha) ~ N(mean, std^2), in units of the diffusion space; noise levels off the schedule go to its ends.

    Karras et al. 2022, table 1 (arXiv 2206.00364), state mean -1.2 and std 1.2 for sigma in pixels of [-1, 1]; where the codec
    scales pixels by c, ln c joins the mean.
    """

    kind: Literal["log_normal_sigma"] = "log_normal_sigma"
    mean: float = Field(-1.2, description="of ln(sigma / alpha)")
    std: float = Field(1.2, gt=0, description="of ln(sigma / alpha)")

    def time(self, u: Tensor, schedule: Schedule) -> Tensor:
        return schedule.time(-2 * (self.mean + self.std * torch.special.ndtri(u)))


class LogitNormal(MappedTimes):
    """ln(t / (1 - t)) ~ N(mean, std^2). Source: Esser et al. 2024, eq. 19 (arXiv 2403.03206)."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = Field(0.0, description="of ln(t / (1 - t))")
    std: float = Field(1.0, gt=0, description="of ln(t / (1 - t))")

    def time(self, u: Tensor, schedule: Schedule) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


class Shifted(MappedTimes):
    """Uniform times moved towards noise, shift t / (1 + (shift - 1) t). Source: Esser et al. 2024, eq. 23 (arXiv 2403.03206)."""

    kind: Literal["shifted"] = "shifted"
    shift: float = Field(3.0, gt=0, description="1 moves nothing; 3 is that of SD3 at 1024 pixels")

    def time(self, u: Tensor, schedule: Schedule) -> Tensor:
        return self.shift * u / (1 + (self.shift - 1) * u)


class LossAware(Times):
    """Times drawn as often as their loss is large: p_t ~ sqrt(E[L_t^2]) over the last losses of t, weight 1 / (T p_t): unbiased.

    A share `uniform` of the draws is uniform; all are until every time has a full history.
    Source: Nichol & Dhariwal 2021, section 3.3 (arXiv 2102.09672), which has 10 losses and a share of 0.001.
    """

    kind: Literal["loss_aware"] = "loss_aware"
    window: int = Field(10, ge=1, description="losses remembered for each time")
    uniform: float = Field(0.001, gt=0, le=1, description="share of the times that are drawn evenly")

    def remember(self, schedule: Schedule) -> LossHistory:
        assert isinstance(schedule, DiscreteSchedule), "the task refuses it on a continuous schedule"
        return LossHistory(schedule.steps, self.window)

    def sample(
        self, u: Tensor, position: Tensor, schedule: Schedule, history: LossHistory | None = None
    ) -> tuple[Tensor, Tensor]:
        assert history is not None
        p = self.probabilities(history)  # on its device, and so are the times: the host does not wait for losses
        u = moved(u, p.device, torch.float64)
        index = torch.searchsorted(p.cumsum(0), u, right=True).clamp(max=len(p) - 1)
        return (index + 1).double() / len(p), 1 / (len(p) * p[index])

    def probabilities(self, history: LossHistory) -> Tensor:
        """p of the times 1/T, ..., 1; float64 (T,) on the history's device."""
        weights = history.root_mean_squares()
        weights = torch.where(weights.sum() > 0, weights, 1.0)
        return (1 - self.uniform) * weights / weights.sum() + self.uniform / len(weights)


def evenly(position: Tensor) -> Tensor:
    """Numbers in [0, 1) that cover it evenly in every window of positions: the golden-ratio sequence; no batch size enters.

    The idea of spreading the times of a batch is that of Kingma et al. 2021, appendix I.1 (arXiv 2107.00630).
    """
    return (position.double().cpu() * GOLDEN).frac()


AnyTimes = Annotated[
    UniformTimes | StratifiedTimes | LogNormalSigma | LogitNormal | Shifted | LossAware, Field(discriminator="kind")
]
