"""Moving averages of the weights: exponential ones at given rates, and power-function ones of given width.

After update 1, 2, ... the average of the weights w is a <- decay(step) a + (1 - decay(step)) w. A power average of exponent gamma
weighs the weights of step k by the integral of t^gamma from k - 1 to k: it keeps its shape as the run grows longer, and
`coefficients` combines snapshots of a few of them into one of any other width after the run.
Source: Karras et al. 2024 (EDM2, arXiv 2312.02696), section 3 and appendix C.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import AfterValidator, Discriminator, Field, Tag
from torch import Tensor, nn

from diffcli.config import Config
from diffcli.lookup.widths import MAX_STD

Rate = Annotated[float, Field(ge=0, lt=1)]
Std = Annotated[float, Field(gt=0, lt=MAX_STD)]


class Average(NamedTuple):
    """One average: its name, unique in a run, and its decay."""

    name: str
    decay: Callable[[int], float]  # of update 1, 2, ...


def exponential(rate: float) -> Average:
    """The usual average: decay `rate`, less in the first updates, so that it is not the initialisation."""
    return Average(f"rate-{rate!r}", partial(warmed_decay, rate))


def power(std: float) -> Average:
    """The power-function average whose profile is `std` wide, relative to the length of the run."""
    return Average(f"std-{std:.3f}", partial(power_decay, gamma_of(std)))


def warmed_decay(rate: float, step: int) -> float:
    return min(rate, (1 + step) / (10 + step))


def power_decay(gamma: float, step: int) -> float:
    """Source: Karras et al. 2024, eq. 127; 0 at step 1, so that nothing of the initialisation is left."""
    return float((1 - 1 / step) ** (gamma + 1))


def gamma_of(std: float) -> float:
    """The exponent of the profile of relative width std in (0, 0.29): `std_of` inverted.

    Source: Karras et al. 2024, eq. 126 and algorithm 2: the largest root of a cubic.
    """
    t = std**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def std_of(gamma: float) -> float:
    """Standard deviation of a density proportional to x^gamma on [0, 1]. Source: Karras et al. 2024, eq. 123."""
    return float(((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5)


class Profile(NamedTuple):
    """The weights of a power average of width `std` as it stood at `step`, as a density over the run so far."""

    step: int
    std: float


def inner_products(a: Sequence[Profile], b: Sequence[Profile]) -> np.ndarray:
    """(len(a), len(b)) float64: the integral of the product of two profiles. Source: Karras et al. 2024, eq. 151."""
    gamma_a, gamma_b = (np.array([gamma_of(p.std) for p in side]) for side in (a, b))
    step_a, step_b = (np.array([float(p.step) for p in side]) for side in (a, b))
    step_a, gamma_a = step_a[:, None], gamma_a[:, None]
    ratio = np.minimum(step_a, step_b) / np.maximum(step_a, step_b)
    later = np.where(step_a < step_b, gamma_b, gamma_a)  # both densities overlap up to the earlier of the two ends
    products: np.ndarray = (
        (gamma_a + 1) * (gamma_b + 1) * ratio**later / ((gamma_a + gamma_b + 1) * np.maximum(step_a, step_b))
    )
    return products


def coefficients(stored: Sequence[Profile], wanted: Profile) -> np.ndarray:
    """The weights of the stored averages whose sum is closest to the wanted profile; they add up to 1.

    Source: Karras et al. 2024, algorithm 3.
    """
    weights: np.ndarray = np.linalg.solve(inner_products(stored, stored), inner_products(stored, [wanted]))[:, 0]
    return weights / weights.sum()


class Ema:
    """An average of a module's weights, in a copy of the module that is ready to sample from. Buffers are copied.

    shared: parameters and buffers of the module that are not averaged; the copy has these very tensors, in modules of its own.
    """

    def __init__(self, module: nn.Module, average: Average, shared: Iterable[Tensor] = ()) -> None:
        self.average = average
        self.module = copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
        for part in self.module.modules():
            part.training = False
        parameters = zip(self.module.parameters(), module.parameters(), strict=True)
        own = [(averaged, source) for averaged, source in parameters if averaged is not source]
        self._averaged: list[Tensor] = [averaged.requires_grad_(False) for averaged, _ in own]
        self._source: list[Tensor] = [source for _, source in own]
        buffers = zip(self.module.buffers(), module.buffers(), strict=True)
        self._buffers = [(copied, source) for copied, source in buffers if copied is not source]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after update `step` (1, 2, ...)."""
        if self._averaged:  # torch refuses an empty list
            torch._foreach_lerp_(self._averaged, self._source, 1 - self.average.decay(step))
        for averaged, source in self._buffers:
            averaged.copy_(source)


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Context in which the module and all of its parts are in evaluation mode; afterwards each returns to its own mode."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def distinct(values: tuple[float, ...], average: Callable[[float], Average]) -> tuple[float, ...]:
    names = [average(value).name for value in values]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} stands there twice (widths count to three decimals); give each once")
    return values


class PowerEma(Config):
    """Power-function averages; samples use the first. Each is stored at intervals and never removed, so that
    `diffcli ema` can combine them into an average of any width."""

    kind: Literal["power"] = "power"
    stds: Annotated[
        tuple[Std, ...],
        Field(min_length=1),
        AfterValidator(partial(distinct, average=power)),
    ] = Field(
        (0.05, 0.1),
        description="widths of the averages as shares of the run, each in (0, 0.29); images are drawn with the first",
    )
    every: int = Field(1000, ge=1, description="steps between snapshots")


def _form(value: Any) -> str:
    """The form of AnyEma that a value has."""
    if isinstance(value, list | tuple):
        return "rates"
    return "power" if isinstance(value, dict | PowerEma) else "rate"


Rates = Annotated[
    tuple[Rate, ...],
    Field(min_length=1),
    AfterValidator(partial(distinct, average=exponential)),
]
AnyEma = Annotated[
    Annotated[Rate, Tag("rate")] | Annotated[Rates, Tag("rates")] | Annotated[PowerEma, Tag("power")],
    Discriminator(_form),
]
"""One rate, several, or power-function averages; the first is the one in ema.safetensors."""


def averages(ema: AnyEma) -> list[Average]:
    """The averages of a run."""
    if isinstance(ema, PowerEma):
        return [power(std) for std in ema.stds]
    return [exponential(rate) for rate in (ema if isinstance(ema, tuple) else (ema,))]


def snapshot_every(ema: AnyEma) -> int:
    """Steps between snapshots; 0 is never."""
    return ema.every if isinstance(ema, PowerEma) else 0
