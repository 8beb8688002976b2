"""The cost of an error at time t: the distance between prediction and target, and the weight of a noise level.

A weight is stated for the squared error of x0, e.g. min(SNR, gamma), and divided by the factor
    k = |target error|^2 / |x0 error|^2 = (a - b alpha / sigma)^2,   target = a x0 + b eps,
by which the error of the target in use exceeds it: SNR for eps, 1 for x0, SNR + 1 for v on variance-preserving paths,
(1 + alpha / sigma)^2 for flow.
"""

from abc import abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import Config
from diffcli.diffusion.denoiser import Target, coefficients


class Weight(Config):
    """The weight of the target's error at each noise level."""

    @abstractmethod
    def factor(self, target: Target, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The weight, shaped like alpha, float64."""


class NoWeight(Weight):
    """1: the target decides how noise levels compare."""

    kind: Literal["none"] = "none"

    def factor(self, target: Target, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)


class MinSnr(Weight):
    """min(SNR, gamma) on the squared error of x0, whatever the target.

    Source: Hang et al. 2023, section 3.4 (arXiv 2303.09556).
    """

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = Field(5.0, gt=0, description="largest weight of the squared error of x0")

    def factor(self, target: Target, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / sigma).square().clamp(max=self.gamma) / excess(target, alpha, sigma)


class Velocity(Weight):
    """((alpha + sigma) / sigma)^2 on the squared error of x0: that of the velocity eps - x0, whatever the network regresses.

    On the straight path it is 1 / t^2, so that a network that regresses x0 itself is trained as flow matching is. sigma counts
    as `floor` where it is smaller. Source: Li & He 2025, section 4.3 (arXiv 2511.13720), whose code has the floor.
    """

    kind: Literal["velocity"] = "velocity"
    floor: float = Field(0.05, gt=0, le=1, description="the smallest sigma that is divided by")

    def factor(self, target: Target, alpha: Tensor, sigma: Tensor) -> Tensor:
        return ((alpha + sigma) / sigma.clamp(min=self.floor)).square() / excess(target, alpha, sigma)


def excess(target: Target, alpha: Tensor, sigma: Tensor) -> Tensor:
    """k, by which the target's squared error exceeds that of x0 for the same prediction; shaped like alpha."""
    a, b = coefficients(target, alpha, sigma)
    return (a - b * alpha / sigma).square()


class Distance(Config):
    """The distance between a prediction and its target, element by element."""

    @abstractmethod
    def __call__(self, difference: Tensor) -> Tensor:
        """Same shape, not negative."""


class L2(Distance):
    """d^2."""

    kind: Literal["l2"] = "l2"

    def __call__(self, difference: Tensor) -> Tensor:
        return difference.square()


class L1(Distance):
    """|d|: pulls to the median instead of the mean."""

    kind: Literal["l1"] = "l1"

    def __call__(self, difference: Tensor) -> Tensor:
        return difference.abs()


class Huber(Distance):
    """d^2 where |d| <= delta, else delta (2 |d| - delta): l2 for small errors, growing like l1 for large ones (Huber 1964)."""

    kind: Literal["huber"] = "huber"
    delta: float = Field(1.0, gt=0, description="in units of the target, whose variance is about 1")

    def __call__(self, difference: Tensor) -> Tensor:
        near = difference.abs().clamp(max=self.delta)
        return near * (2 * difference.abs() - near)


AnyWeight = Annotated[NoWeight | MinSnr | Velocity, Field(discriminator="kind")]
AnyDistance = Annotated[L2 | L1 | Huber, Field(discriminator="kind")]
