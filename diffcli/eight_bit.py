"""AdamW whose two moments take a byte a value, by the kernels of bitsandbytes, which is imported when it is first needed.

Blocks of 256 values, in the order of a contiguous parameter, share a scale; a byte is a place in a table that is fine near 0. Its
state is plain tensors of the parameter's shape and order, whatever its memory format, so a file of them goes on to the bit. The
kernels are called and not the optimizers of that package, since those wait for the device at every parameter and make parameters
contiguous. Source: Dettmers et al. 2022, sections 2 and 3 (arXiv 2110.02861).
"""

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from diffcli.config import UserError

BLOCK = 256  # values that share a scale; fixed in the kernels
LEAST = 4096  # values of a parameter; smaller ones gain nothing
DEVICES = ("cpu", "cuda", "xpu")  # that have a kernel
EXTRA = "pip install 'diffcli[lowbit]'"
KEY = "train.optimizer.kind is 'adamw8bit'"


def in_bytes(p: Tensor) -> bool:
    """Whether the moments of a parameter are kept in bytes."""
    return p.numel() >= LEAST


def state_bytes(p: Tensor) -> int:
    """What the moments of such a parameter take, in bytes."""
    return 2 * (p.numel() + 4 * blocks(p))


def blocks(p: Tensor) -> int:
    """The number of scales of a moment."""
    return -(-p.numel() // BLOCK)


class EightBitAdamW(torch.optim.Optimizer):
    """AdamW of parameters for which `in_bytes` holds. Raises UserError as `kernels` for the device of each."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        parameters = list(parameters)
        for device in {p.device for p in parameters}:
            self.kernels = kernels(device)
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def fresh(self, p: Tensor) -> dict[str, Tensor]:
        """The state of a parameter before its first update: shapes, types and devices of all later ones."""
        state = {"step": torch.zeros(())}  # on the host, which counts without asking the device
        for name in ("exp_avg", "exp_avg_sq"):
            state[f"{name}_byte"] = torch.zeros(p.shape, dtype=torch.uint8, device=p.device)
            state[f"{name}_scale"] = torch.zeros(blocks(p), device=p.device)
        return state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nothing here re-evaluates the loss
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state.update(self.fresh(p))
        state["step"] += 1
        signed, positive = self._tables_on(p.device)
        weights = p.contiguous()  # itself, if it is
        self.kernels.optimizer_update_8bit_blockwise(
            "adam",
            grad.contiguous(),
            weights,
            state["exp_avg_byte"],
            state["exp_avg_sq_byte"],
            *group["betas"],
            0.0,  # of another method, like the next
            0.0,
            group["eps"],
            int(state["step"]),
            group["lr"],
            signed,
            positive,
            state["exp_avg_scale"],
            state["exp_avg_sq_scale"],
            group["weight_decay"],
        )
        if weights is not p:
            p.copy_(weights)

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The values that a byte stands for, of both moments, each (256,) in units of a block's scale."""
        if device not in self._tables:
            made = (self.kernels.create_dynamic_map(signed=signed) for signed in (True, False))
            signed, positive = (table.float().to(device) for table in made)
            self._tables[device] = signed, positive
        return self._tables[device]


TORCH_INSTEAD = "use --set train.optimizer.kind=adamw"


def kernels(device: torch.device) -> Any:
    """The functions of bitsandbytes. Raises UserError where they do not run on a device, or the package cannot be loaded."""
    if device.type not in DEVICES:
        raise UserError(f"{KEY}, which does not run on {device.type}", TORCH_INSTEAD)
    try:
        return import_module("bitsandbytes").functional
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "bitsandbytes"
        why = "is not installed" if missing else f"cannot be loaded ({error})"
        raise UserError(
            f"{KEY}, which needs the package bitsandbytes, and it {why}", f"{EXTRA}, or {TORCH_INSTEAD}"
        ) from error
