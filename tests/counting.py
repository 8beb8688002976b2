"""What a computation costs beyond its arithmetic, counted without a GPU: operations, copies to the device, and waits for it.

The meta device stands for the GPU. A copy to it blocks unless it is asynchronous and comes from what `transfer.pinned` made.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffcli import transfer

META = torch.device("meta")
SCALED = {
    "add",
    "sub",
    "rsub",
    "mul",
    "div",
}  # CUDA takes a 0-d operand of these from the CPU as an argument of the kernel
FROM_VALUES = {torch.tensor, torch.as_tensor, Tensor.new_tensor}  # copied below the dispatcher
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "bincount",
    "_unique2",
    "linalg_solve_ex",
    "_linalg_solve_ex",
}


@dataclass
class Counts:
    """What happened: operations by name, copies from the CPU to the device, those of them that block, and reads of the device."""

    operations: Counter[str] = field(default_factory=Counter)
    copies: list[str] = field(default_factory=list)
    blocking: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.operations.total()


class Operations(TorchDispatchMode):
    """Counts what reaches the dispatcher. `pinned` holds the tensors that an asynchronous copy may come from."""

    def __init__(self, counts: Counts, pinned: list[Tensor]) -> None:
        super().__init__()
        self.counts, self.pinned = counts, pinned

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        self.counts.operations[name] += 1
        if name == "_to_copy" and "device" in kwargs:
            asynchronous, device = bool(kwargs.get("non_blocking")), torch.device(kwargs["device"])
            self.copied(name, args[0], device, asynchronous)
            if args[0].device.type == "meta" and device.type == "cpu":  # there are no values: zeros stand for them
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype", args[0].dtype))
        elif name == "copy_":
            self.copied(name, args[1], args[0].device, bool(kwargs.get("non_blocking", args[2:3] == (True,))))
        else:
            self.read(name, [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])
        return func(*args, **kwargs)

    def copied(self, name: str, source: Tensor, device: torch.device, asynchronous: bool) -> None:
        if source.device.type == "cpu" and device.type == "meta":
            self.counts.copies.append(f"{name} {tuple(source.shape)}")
            if not (asynchronous and any(source is x for x in self.pinned)):
                self.counts.blocking.append(f"{name} {tuple(source.shape)}")
        elif source.device.type == "meta" and device.type == "cpu":
            self.counts.reads.append(f"{name} {tuple(source.shape)}")

    def read(self, name: str, tensors: list[Tensor]) -> None:
        on_host = [x for x in tensors if x.device.type == "cpu"]
        if len(on_host) == len(tensors):
            return
        flags = name == "index" and any(x.dtype == torch.bool for x in tensors[1:])
        if name in WAITING or flags:
            self.counts.reads.append(name)
        if on_host and not (name.rstrip("_") in SCALED and all(x.ndim == 0 for x in on_host)):
            self.counts.copies.append(f"{name} {[tuple(x.shape) for x in on_host]}")
            self.counts.blocking.append(self.counts.copies[-1])


class FromValues(TorchFunctionMode):
    """Counts tensors that are made on the device out of Python's numbers."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in FROM_VALUES and made.device.type == "meta" and not isinstance(args[0], Tensor):
            self.counts.copies.append(func.__name__)
            self.counts.blocking.append(func.__name__)
        return made


@contextmanager
def counting() -> Iterator[Counts]:
    """Counts what happens within."""
    counts, made = Counts(), []

    def remembered(x: Tensor, device: torch.device) -> Tensor:
        made.append(x.clone())
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "pinned", remembered)
        with FromValues(counts), Operations(counts, made):
            yield counts


def count(work: Callable[[], object]) -> Counts:
    """The counts of one call."""
    with counting() as counts:
        work()
    return counts
