"""Optimizers and learning-rate curves.

Everything a resumed run needs of them is tensors by parameter name (`optimizer_tensors`, `restore_optimizer`); rates are
functions of the step, which counts optimizer updates from 1.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config, UserError

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """Adam's hyper-parameters; lr is the peak that the curve scales, betas the decays of the two moments."""

    lr: float = Field(2e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)

    @abstractmethod
    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer: ...


class Adam(OptimizerConfig):
    """Adam; weight_decay is L2 in the gradient. Source: Kingma & Ba 2015, arXiv 1412.6980."""

    kind: Literal["adam"] = "adam"

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            parameters, self.lr, self.betas, self.eps, self.weight_decay, fused=fused_kernel_fits(parameters)
        )


class AdamW(OptimizerConfig):
    """Adam with decoupled weight decay. Source: Loshchilov & Hutter 2019, arXiv 1711.05101."""

    kind: Literal["adamw"] = "adamw"

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameters, self.lr, self.betas, self.eps, self.weight_decay, fused=fused_kernel_fits(parameters)
        )


def fused_kernel_fits(parameters: list[nn.Parameter]) -> bool:
    """torch has one-kernel updates for these devices."""
    return all(p.device.type in ("cpu", "cuda") for p in parameters)


class Curve(Config):
    """The factor on the learning rate: a linear warm-up over `warmup` updates, then the curve's own shape."""

    warmup: int = Field(0, ge=0, description="updates")

    @abstractmethod
    def shape(self, progress: float) -> float:
        """Factor after warm-up; progress in [0, 1] from its end to the last step."""

    def factor(self, step: int, steps: int) -> float:
        """Factor for update `step` of 1..steps; the first update of a warm-up is 1 / warmup, never 0."""
        if step <= self.warmup:
            return step / self.warmup
        return self.shape(min(1.0, (step - self.warmup) / max(1, steps - self.warmup)))


class Constant(Curve):
    kind: Literal["constant"] = "constant"

    def shape(self, progress: float) -> float:
        return 1.0


class LinearDecay(Curve):
    """Falls linearly to `floor` at the last step."""

    kind: Literal["linear"] = "linear"
    floor: float = Field(0.0, ge=0, le=1)

    def shape(self, progress: float) -> float:
        return 1 + (self.floor - 1) * progress


class CosineDecay(Curve):
    """Falls along half a cosine to `floor` at the last step. Source: Loshchilov & Hutter 2017, arXiv 1608.03983."""

    kind: Literal["cosine"] = "cosine"
    floor: float = Field(0.0, ge=0, le=1)

    def shape(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """The optimizer's state as `PARAMETER:KEY` -> tensor; parameters that no update has touched are absent."""
    return {
        f"{names[p]}:{key}": value
        for group in optimizer.param_groups
        for p in group["params"]
        for key, value in optimizer.state.get(p, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], tensors: Mapping[str, Tensor]
) -> None:
    """Puts back what `optimizer_tensors` gave. Raises UserError where a tensor fits no parameter."""
    by_name = {names[p]: p for group in optimizer.param_groups for p in group["params"]}
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition(":")
        parameter = by_name.get(parameter_name)
        if parameter is None or (value.ndim and value.shape != parameter.shape):
            raise UserError(
                f"optimizer.safetensors: {name} {tuple(value.shape)} fits no parameter of this preset",
                "resume without changing the network; to start anew from weights, train into another --run-dir",
            )
        # fused kernels walk memory: moments need the parameter's strides (channels last), the counter its device
        like = torch.empty_like(parameter) if value.ndim else torch.empty((), device=parameter.device)
        optimizer.state[parameter][key] = like.detach().to(value.dtype).copy_(value)


AnyOptimizer = Annotated[Adam | AdamW, Field(discriminator="kind")]
AnyCurve = Annotated[Constant | LinearDecay | CosineDecay, Field(discriminator="kind")]
