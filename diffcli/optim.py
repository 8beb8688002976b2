"""Optimizers and learning-rate curves.

Their state is a set of tensors by parameter name (`optimizer_tensors`, `restore_optimizer`); rates are
functions of the step, which counts optimizer updates from 1.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config, UserError, keys_agree
from diffcli.eight_bit import EightBitAdamW, in_bytes, kernels, state_bytes

FLOAT = 4  # bytes
Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """lr is the peak that the curve scales."""

    remembers: ClassVar[
        str
    ]  # the form of its state; an optimizer can continue from the state of one with the same word

    lr: float = Field(2e-4, gt=0, description="learning rate at the peak of the curve")
    weight_decay: float = Field(
        0.0, ge=0, description="pull of the weights towards 0 a step, times the learning rate where it is decoupled"
    )

    @abstractmethod
    def build(
        self, parameters: list[nn.Parameter], hidden: AbstractSet[nn.Parameter] = frozenset()
    ) -> torch.optim.Optimizer:
        """The optimizer of `parameters`; hidden: the matrices (see `Task.hidden`) among them that some treat apart."""

    def check(self, parameters: list[nn.Parameter], device: torch.device) -> None:
        """Raises UserError where this machine cannot build it for parameters that will lie on a device."""

    @abstractmethod
    def remembered(self, parameters: list[nn.Parameter], hidden: AbstractSet[nn.Parameter] = frozenset()) -> int:
        """The bytes that the optimizer from `build` keeps after its first step, counters left out."""


class Moments(OptimizerConfig):
    """Adam's hyper-parameters; betas are the decays of the two moments."""

    remembers: ClassVar[str] = "moments"

    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999), description="decays of the averages of the gradient and of its square, each in [0, 1)"
    )
    eps: float = Field(1e-8, gt=0, description="added to the root of the second average")

    def remembered(self, parameters: list[nn.Parameter], hidden: AbstractSet[nn.Parameter] = frozenset()) -> int:
        return 2 * FLOAT * sum(p.numel() for p in parameters)


class Adam(Moments):
    """Adam; weight_decay is L2 in the gradient. Source: Kingma & Ba 2015, arXiv 1412.6980."""

    kind: Literal["adam"] = "adam"

    def build(
        self, parameters: list[nn.Parameter], hidden: AbstractSet[nn.Parameter] = frozenset()
    ) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            parameters, self.lr, self.betas, self.eps, self.weight_decay, fused=fused_kernel_fits(parameters)
        )


class AdamW(Moments):
    """Adam with decoupled weight decay. Source: Loshchilov & Hutter 2019, arXiv 1711.05101."""

    kind: Literal["adamw"] = "adamw"

    def build(
        self, parameters: list[nn.Parameter], hidden: AbstractSet[nn.Parameter] = frozenset()
    ) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameters, self.lr, self.betas, self.eps, self.weight_decay, fused=fused_kernel_fits(parameters)
        )


class AdamW8bit(Moments):
    """AdamW with a byte for each value of both moments, by the package bitsandbytes (extra `lowbit`): a quarter of the memory.

    Parameters of fewer than 4096 values keep moments in float32. In fp16 the host waits in every step, as with Muon.
    Source: Dettmers et al. 2022, arXiv 2110.02861.
    """

    remembers: ClassVar[str] = "moments in bytes"

    kind: Literal["adamw8bit"] = "adamw8bit"

    def remembered(self, parameters: list[nn.Parameter], hidden: AbstractSet[nn.Parameter] = frozenset()) -> int:
        return sum(state_bytes(p) if in_bytes(p) else 2 * FLOAT * p.numel() for p in parameters)

    def check(self, parameters: list[nn.Parameter], device: torch.device) -> None:
        if any(in_bytes(p) for p in parameters):
            kernels(device)

    def build(
        self, parameters: list[nn.Parameter], hidden: AbstractSet[nn.Parameter] = frozenset()
    ) -> torch.optim.Optimizer:
        large, small = ([p for p in parameters if in_bytes(p) is kept] for kept in (True, False))
        rest = AdamW(lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)
        built = [EightBitAdamW(large, self.lr, self.betas, self.eps, self.weight_decay)] if large else []
        return Together([*built, *([rest.build(small)] if small else [])])


class Sgd(OptimizerConfig):
    """Gradient descent with heavy-ball or Nesterov momentum; weight_decay is L2 in the gradient.

    Source: Sutskever et al. 2013, section 2, in the form whose velocity is a sum of gradients, scaled by lr when it is used.
    """

    remembers: ClassVar[str] = "momentum"

    kind: Literal["sgd"] = "sgd"
    momentum: Beta = Field(0.9, description="decay of the velocity, in [0, 1); 0: none")
    nesterov: bool = Field(False, description="look ahead by the velocity before the gradient counts")

    def remembered(self, parameters: list[nn.Parameter], hidden: AbstractSet[nn.Parameter] = frozenset()) -> int:
        return FLOAT * sum(p.numel() for p in parameters) if self.momentum else 0

    @keys_agree
    def _agree(self) -> Iterator[str]:
        if self.nesterov and not self.momentum:
            yield "nesterov is true but momentum is 0; set train.optimizer.momentum to 0.9"

    def build(
        self, parameters: list[nn.Parameter], hidden: AbstractSet[nn.Parameter] = frozenset()
    ) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters,
            self.lr,
            self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            fused=fused_kernel_fits(parameters),
        )


class Muon(Moments):
    """Orthogonalised momentum for hidden matrices, AdamW for all else: tables, the output layer, biases, norms, convolutions.

    A matrix's update is scaled to the size that AdamW's would have, so that lr and weight_decay are AdamW's for both. In fp16 the
    host waits in every step to hear whether a gradient overflowed: unlike the fused kernels, torch's Muon cannot skip by itself.
    Source: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon); the scale: Liu et al. 2025, eq. 4 (arXiv 2502.16982).
    """

    remembers: ClassVar[str] = "momentum and moments"

    kind: Literal["muon"] = "muon"
    momentum: Beta = Field(0.95, description="decay of the momentum that is orthogonalised, in [0, 1)")

    def remembered(self, parameters: list[nn.Parameter], hidden: AbstractSet[nn.Parameter] = frozenset()) -> int:
        return FLOAT * sum(p.numel() * (1 if p in hidden else 2) for p in parameters)

    def check(self, parameters: list[nn.Parameter], device: torch.device) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"train.optimizer.kind is 'muon', which torch {torch.__version__} does not have",
                "install torch 2.9 or newer, or use --set train.optimizer.kind=adamw",
            )

    def build(
        self, parameters: list[nn.Parameter], hidden: AbstractSet[nn.Parameter] = frozenset()
    ) -> torch.optim.Optimizer:
        matrices = [p for p in parameters if p in hidden]
        others = [p for p in parameters if p not in hidden]
        rest = AdamW(lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)
        built = [rest.build(others)] if others else []
        if matrices:
            muon = torch.optim.Muon(matrices, self.lr, self.weight_decay, self.momentum, adjust_lr_fn="match_rms_adamw")
            built.append(muon)
        return Together(built)


class Together(torch.optim.Optimizer):
    """Several optimizers of disjoint parameters as one: they share its groups and its state."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        super().__init__([{"params": group["params"]} for part in parts for group in part.param_groups], {})
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]
        for part in parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nothing here re-evaluates the loss
        for part in self.parts:
            part.step()


def scale_rates(optimizer: torch.optim.Optimizer, factors: Mapping[nn.Parameter, float]) -> None:
    """Splits the groups of an optimizer that has made no step, so that each has one factor on its rate, as `scale`.

    Who sets rates gives each group that of all times its `scale`, which is 1 where `factors` name no other.
    """
    parts = _parts(optimizer)
    for part in parts:
        groups = []
        for group in part.param_groups:
            apart: dict[float, list[nn.Parameter]] = {}
            for p in group["params"]:
                apart.setdefault(factors.get(p, 1.0), []).append(p)
            groups += [{**group, "params": params, "scale": factor} for factor, params in apart.items()]
        part.param_groups = groups
    optimizer.param_groups = [group for part in parts for group in part.param_groups]


def fused_kernel_fits(parameters: list[nn.Parameter]) -> bool:
    """torch has one-kernel updates for these devices."""
    return all(p.device.type in ("cpu", "cuda") for p in parameters)


class Curve(Config):
    """The factor on the learning rate: a linear warm-up over `warmup` updates, then the curve's own shape."""

    warmup: int = Field(0, ge=0, description="updates")

    @abstractmethod
    def shape(self, step: int, steps: int) -> float:
        """Factor for update `step` of 1..steps, after the warm-up."""

    def progress(self, step: int, steps: int) -> float:
        """0 at the end of the warm-up, 1 from the last step on."""
        return min(1.0, (step - self.warmup) / max(1, steps - self.warmup))

    def factor(self, step: int, steps: int) -> float:
        """Factor for update `step` of 1..steps; the first update of a warm-up is 1 / warmup, never 0."""
        return step / self.warmup if step <= self.warmup else self.shape(step, steps)


class Constant(Curve):
    """The full learning rate in every step."""

    kind: Literal["constant"] = "constant"

    def shape(self, step: int, steps: int) -> float:
        return 1.0


class LinearDecay(Curve):
    """Falls linearly to `floor` at the last step."""

    kind: Literal["linear"] = "linear"
    floor: float = Field(0.0, ge=0, le=1, description="factor of the learning rate at the last step, in [0, 1]")

    def shape(self, step: int, steps: int) -> float:
        return 1 + (self.floor - 1) * self.progress(step, steps)


class CosineDecay(Curve):
    """Falls along half a cosine to `floor` at the last step. Source: Loshchilov & Hutter 2017, arXiv 1608.03983."""

    kind: Literal["cosine"] = "cosine"
    floor: float = Field(0.0, ge=0, le=1, description="factor of the learning rate at the last step, in [0, 1]")

    def shape(self, step: int, steps: int) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * self.progress(step, steps))) / 2


class InverseSqrt(Curve):
    """1 up to update `ref`, then sqrt(ref / step): does not depend on the length of the run, which can be extended at will.

    Source: Karras et al. 2024, section 2 (EDM2, arXiv 2312.02696); Vaswani et al. 2017, section 5.3, where ref is the warm-up.
    """

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    ref: int = Field(1000, ge=1, description="updates")

    @keys_agree
    def _agree(self) -> Iterator[str]:
        if self.ref < self.warmup:
            yield (
                f"warmup is {self.warmup}, but the rate already falls after ref {self.ref}; "
                f"set train.curve.ref to {self.warmup} or more"
            )

    def shape(self, step: int, steps: int) -> float:
        return math.sqrt(self.ref / max(step, self.ref))


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
    """Restores the state from `optimizer_tensors`. Raises UserError if a tensor fits no parameter."""
    by_name = {names[p]: p for group in optimizer.param_groups for p in group["params"]}
    eight_bit = {
        p: part
        for part in _parts(optimizer)
        if isinstance(part, EightBitAdamW)
        for g in part.param_groups
        for p in g["params"]
    }
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition(":")
        parameter = by_name.get(parameter_name)
        if parameter is None:
            like = None
        elif parameter in eight_bit:
            like = eight_bit[parameter].fresh(parameter).get(key)
        else:  # fused kernels walk memory: moments need the parameter's strides (channels last), the counter its device
            like = torch.empty_like(parameter) if value.ndim else torch.empty((), device=parameter.device)
            like = like.detach().to(value.dtype)
        if parameter is None or like is None or value.shape != like.shape:
            raise UserError(
                f"optimizer.safetensors: {name} {tuple(value.shape)} fits no parameter of this preset",
                "resume without changing the network; to start anew from weights, train into another --run-dir",
            )
        optimizer.state[parameter][key] = like.copy_(value)


def _parts(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizers that it is made of, or itself."""
    return optimizer.parts if isinstance(optimizer, Together) else [optimizer]


AnyOptimizer = Annotated[Adam | AdamW | AdamW8bit | Sgd | Muon, Field(discriminator="kind")]
AnyCurve = Annotated[Constant | LinearDecay | CosineDecay | InverseSqrt, Field(discriminator="kind")]
