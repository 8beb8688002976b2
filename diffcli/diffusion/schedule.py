"""Noise schedules: alpha and sigma over t in [0, 1], and the Gaussian between any two times.

x_t = alpha(t) x0 + sigma(t) eps. Schedule arithmetic is float64 where t lies, mostly on the CPU; callers cast where it meets x. A
discrete schedule is a table of log alpha-bar = log alpha^2 at t = 0, 1/T, ..., 1 (exactly 0 at t = 0), interpolated linearly.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import Config, keys_agree
from diffcli.transfer import moved

CLEANEST = 1e-3  # smallest time of a walk on the straight path before t = 0
EDM_CLEANEST = 0.002 / 0.5  # Karras et al. 2022: their smallest sigma / sigma_data
MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: keeps the last step of a cosine schedule from being singular


class Schedule(Config):
    """alpha and sigma as functions of time; every method keeps the shape of its argument and returns float64."""

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times t in [0, 1]; (1, 0) at t = 0."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The t in [0, 1] at which log(alpha^2 / sigma^2) has this value: the inverse of `log_snr`."""

    @abstractmethod
    def snap(self, t: Tensor) -> Tensor:
        """The nearest time that training visits; 0 stays 0. The identity for a continuous schedule."""

    @abstractmethod
    def trained_time(self, u: Tensor) -> Tensor:
        """Maps u uniform on [0, 1) to a time uniform on those that training visits, all of them in (0, 1]."""

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """The network's input for time t: 0..1000, or another value that the schedule defines."""

    @property
    @abstractmethod
    def cleanest(self) -> float:
        """The smallest time in (0, 1] that training visits; on a continuous path, one without visible noise."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), falling in t; +inf at t = 0."""
        alpha, sigma = self.alpha_sigma(t)
        return 2 * (alpha.log() - sigma.log())

    @property
    def leftover_signal(self) -> float:
        """alpha at t = 1: the share of x0 that remains where sampling starts from pure N(0, 1)."""
        return float(self.alpha_sigma(torch.tensor(1.0))[0])


class DiscreteSchedule(Schedule):
    """A schedule given by `steps` betas; anything between its steps is interpolated in log alpha-bar."""

    steps: int = Field(1000, ge=1, description="T, the number of diffusion steps trained")
    zero_terminal_snr: bool = Field(False, description="shift and scale alpha so that it is exactly 0 at t = 1")

    @abstractmethod
    def betas(self) -> Tensor:
        """beta_1..beta_T before `zero_terminal_snr` moves them, float64 (T,), each in (0, 1)."""

    @property
    def log_alpha_bar(self) -> Tensor:
        """log alpha-bar at 0, 1/T, ..., 1; float64 (T + 1,), strictly falling from 0, to -inf with `zero_terminal_snr`."""
        return _log_alpha_bar(self)

    @property
    def cleanest(self) -> float:
        return 1 / self.steps

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha_bar = self._interpolate(t)
        return (log_alpha_bar / 2).exp(), (-torch.expm1(log_alpha_bar)).sqrt()

    def time(self, log_snr: Tensor) -> Tensor:
        target = torch.nn.functional.logsigmoid(log_snr.double()).clamp(float(self.log_alpha_bar[-1]), 0)
        table = _table(self, log_snr.device)
        right = torch.searchsorted(-table, -target).clamp(1, self.steps)
        low, high = table[right - 1], table[right]
        share = torch.where(high.isinf(), -torch.expm1((target - low) / 2), (target - low) / (high - low))
        return (right - 1 + share) / self.steps

    def snap(self, t: Tensor) -> Tensor:
        index = torch.floor(t.double() * self.steps + 0.5).clamp(1, self.steps)
        return torch.where(t > 0, index / self.steps, 0.0)

    def trained_time(self, u: Tensor) -> Tensor:
        return (torch.floor(u.double() * self.steps) + 1).clamp(max=self.steps) / self.steps

    def network_time(self, t: Tensor) -> Tensor:
        """The index of the literature, 0 for the first step; T steps are spread over 0..1000 - 1000 / T."""
        return ((t.double() * self.steps - 1) * (1000 / self.steps)).clamp(min=0)

    def _interpolate(self, t: Tensor) -> Tensor:
        position = t.double().clamp(0, 1) * self.steps
        nearest = position.round()
        position = torch.where((position - nearest).abs() < 1e-9, nearest, position)  # k / T * T is not always k
        left = position.floor().long().clamp(max=self.steps - 1)
        table = _table(self, t.device)
        low, high, share = table[left], table[left + 1], position - left
        if not self.zero_terminal_snr:  # every entry is finite
            return torch.lerp(low, high, share)
        return torch.where(high.isinf(), low + 2 * torch.log1p(-share), torch.lerp(low, high, share))

    @keys_agree
    def _has_a_step_to_rescale(self) -> Iterator[str]:
        if self.zero_terminal_snr and self.steps < 2:
            yield "zero_terminal_snr leaves no signal at all with steps 1; set steps to 2 or more"


@cache  # not in the config, where comparing and copying would meet it
def _log_alpha_bar(schedule: DiscreteSchedule) -> Tensor:
    log_alpha_bar = torch.log1p(-schedule.betas()).cumsum(0)
    if schedule.zero_terminal_snr:
        log_alpha_bar = _zero_terminal(log_alpha_bar)
    return torch.cat([torch.zeros(1, dtype=torch.float64), log_alpha_bar])


@cache
def _table(schedule: DiscreteSchedule, device: torch.device) -> Tensor:
    """log alpha-bar where the times are that look it up."""
    return moved(_log_alpha_bar(schedule), device)


def _zero_terminal(log_alpha_bar: Tensor) -> Tensor:
    """alpha shifted to 0 at T and scaled to keep alpha_1; between T - 1 and T, where log alpha-bar is endless, alpha is linear.

    Source: Lin et al. 2023, algorithm 1 (arXiv 2305.08891).
    """
    first, last = log_alpha_bar[0], log_alpha_bar[-1]
    share = torch.expm1((log_alpha_bar - last) / 2) / torch.expm1((first - last) / 2)
    return first + 2 * share.log()


class Linear(DiscreteSchedule):
    """Betas on a line, from 1e-4 to 0.02 at T = 1000, scaled by 1000 / T elsewhere. Source: Ho et al. 2020, arXiv 2006.11239."""

    kind: Literal["linear"] = "linear"
    start: float = Field(1e-4, gt=0, lt=1, description="the first beta at T = 1000")
    end: float = Field(0.02, gt=0, lt=1, description="the last beta at T = 1000")

    def betas(self) -> Tensor:
        scale = 1000 / self.steps
        return torch.linspace(self.start * scale, self.end * scale, self.steps, dtype=torch.float64).clamp(max=MAX_BETA)


class ScaledLinear(DiscreteSchedule):
    """Square roots of betas on a line, from 0.00085 to 0.012 at T = 1000 as Stable Diffusion has them.

    The other latent models of its authors run from 0.0015 to 0.0195. Source: Rombach et al. 2022, arXiv 2112.10752, code.
    """

    kind: Literal["scaled_linear"] = "scaled_linear"
    start: float = Field(0.00085, gt=0, lt=1, description="the first beta at T = 1000")
    end: float = Field(0.012, gt=0, lt=1, description="the last beta at T = 1000")

    def betas(self) -> Tensor:
        roots = torch.linspace(self.start**0.5, self.end**0.5, self.steps, dtype=torch.float64)
        return (roots.square() * (1000 / self.steps)).clamp(max=MAX_BETA)


class ConstantBeta(DiscreteSchedule):
    """One beta throughout: alpha-bar = 0.99^(1000 t) for every T, so beta is 0.01 at T = 1000.

    That is the mean of Linear's betas, so both leave the same little signal, alpha = 0.0066, at t = 1.
    Source: the constant choice in the code of Ho et al. 2020 (arXiv 2006.11239), there with 0.02.
    """

    kind: Literal["constant"] = "constant"

    def betas(self) -> Tensor:
        return torch.full((self.steps,), 1 - 0.99 ** (1000 / self.steps), dtype=torch.float64)


class CurveSchedule(DiscreteSchedule):
    """A discrete schedule given by its alpha-bar curve; only betas are capped, nothing at the clean end."""

    @abstractmethod
    def alpha_bar(self, t: Tensor) -> Tensor:
        """alpha-bar up to a constant factor, at t in [0, 1]."""

    def betas(self) -> Tensor:
        curve = self.alpha_bar(torch.linspace(0, 1, self.steps + 1, dtype=torch.float64))
        return (1 - curve[1:] / curve[:-1]).clamp(max=MAX_BETA)


class Cosine(CurveSchedule):
    """alpha-bar = cos^2 of (t + 0.008) / 1.008 * pi / 2. Source: Nichol & Dhariwal 2021, eq. 17, arXiv 2102.09672."""

    kind: Literal["cosine"] = "cosine"

    def alpha_bar(self, t: Tensor) -> Tensor:
        return torch.cos((t + 0.008) / 1.008 * (math.pi / 2)).square()


class Sqrt(CurveSchedule):
    """alpha-bar = 1 - sqrt(t + 1e-4): noise comes fast at the clean end. Source: Li et al. 2022, appendix A, arXiv 2205.14217."""

    kind: Literal["sqrt"] = "sqrt"

    def alpha_bar(self, t: Tensor) -> Tensor:
        return 1 - (t + 1e-4).sqrt()


class Sigmoid(CurveSchedule):
    """alpha-bar falls along a sigmoid cut to [start, end]. Source: Jabri et al. 2022, algorithm 1, arXiv 2212.11972."""

    kind: Literal["sigmoid"] = "sigmoid"
    start: float = Field(-3.0, description="of the sigmoid at t = 0")
    end: float = Field(3.0, description="of the sigmoid at t = 1")
    tau: float = Field(1.0, gt=0, description="temperature: larger is nearer to a straight line")

    def alpha_bar(self, t: Tensor) -> Tensor:
        low, high = math.exp(-self.end / self.tau), (t * (self.end - self.start) + self.start) / self.tau
        return 1 / (1 + low) - torch.sigmoid(high)

    @keys_agree
    def _falls(self) -> Iterator[str]:
        if not bool((self.log_alpha_bar.diff() < 0).all()):
            yield (
                f"the sigmoid from {self.start:g} to {self.end:g} with tau {self.tau:g} is flat somewhere, so some of its "
                f"{self.steps} steps add no noise; set start below end and tau to 0.2 or more"
            )


class Flow(Schedule):
    """The straight path alpha = 1 - t, sigma = t. Source: Lipman et al. 2022, arXiv 2210.02747; Liu et al. 2022."""

    kind: Literal["flow"] = "flow"

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        return 1 - t, t

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr.double() / 2)

    def snap(self, t: Tensor) -> Tensor:
        return t.double()

    def trained_time(self, u: Tensor) -> Tensor:
        return 1 - u.double()

    def network_time(self, t: Tensor) -> Tensor:
        return 1000 * t.double()

    @property
    def cleanest(self) -> float:
        return CLEANEST


class Edm(Schedule):
    """EDM's path made variance-preserving for data of unit variance: sigma / alpha = sigma_max t^rho.

    So even t is Karras' grid with a smallest sigma of 0; spacing karras ends the grid at EDM's own smallest instead. sigma_max
    counts in deviations of the data: 160 is EDM's 80 over its sigma_data of 0.5. With target v the network regresses what EDM's
    preconditioned one does (its sign turned). The network is told 250 ln(sigma / alpha), 1269 at t = 1: 1000 c_noise but for a
    constant, bounded below by its value at EDM's smallest sigma, -1380.
    Source: Karras et al. 2022, eq. 5 and table 1 (arXiv 2206.00364).
    """

    kind: Literal["edm"] = "edm"
    sigma_max: float = Field(160.0, gt=EDM_CLEANEST, description="sigma / alpha at t = 1, in deviations of the data")
    rho: float = Field(7.0, gt=0, description="how steeply sigma / alpha grows with time")

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        ratio = self.sigma_max * t.double() ** self.rho
        alpha = (1 + ratio.square()).rsqrt()
        return alpha, ratio * alpha

    def time(self, log_snr: Tensor) -> Tensor:
        return ((-log_snr.double() / 2).exp() / self.sigma_max).pow(1 / self.rho).clamp(max=1)

    def snap(self, t: Tensor) -> Tensor:
        return t.double()

    def trained_time(self, u: Tensor) -> Tensor:
        return 1 - u.double()

    def network_time(self, t: Tensor) -> Tensor:
        return 250 * (math.log(self.sigma_max) + self.rho * t.double().clamp(min=self.cleanest).log())

    @property
    def cleanest(self) -> float:
        return float((EDM_CLEANEST / self.sigma_max) ** (1 / self.rho))


class Transition(NamedTuple):
    """q(x_s | x_t, x0) = N(c_x x_t + c_x0 x0, var) with the two choices of variance that Ho et al. 2020 compare."""

    c_x: Tensor
    c_x0: Tensor
    var_small: Tensor  # beta tilde: the posterior's own
    var_large: Tensor  # beta


def transition(schedule: Schedule, t: Tensor, s: Tensor) -> Transition:
    """The Gaussian q(x_s | x_t, x0) for any two times s < t.

    Depends on the end points only, so a strided sampler needs no respaced schedule.
    t, s: same shape, 0 <= s < t <= 1. At s = 0 the mean is x0 and var_small is 0.
    Source: Kingma et al. 2021, appendix A (arXiv 2107.00630).
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    ratio = alpha_t / alpha_s
    beta = sigma_t**2 - (ratio * sigma_s) ** 2
    keep = (sigma_s / sigma_t) ** 2
    return Transition(c_x=ratio * keep, c_x0=alpha_s * beta / sigma_t**2, var_small=beta * keep, var_large=beta)


AnySchedule = Annotated[
    Linear | ScaledLinear | Cosine | Sigmoid | Sqrt | ConstantBeta | Flow | Edm, Field(discriminator="kind")
]
