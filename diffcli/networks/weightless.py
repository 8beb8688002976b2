"""Networks without memory for their weights: names and shapes alone, into which weights are loaded or which are counted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FILLING = {Tensor.normal_, Tensor.uniform_}  # beside the functions of torch.nn.init


@contextmanager
def weightless() -> Iterator[None]:
    """Tensors that are made inside lie on the meta device, and are not filled there.

    Filling them would change nothing, and yet normal_ there imports torch's compiler: more than half the time of a small command.
    """
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Skips the initialisation of tensors that have no memory."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FILLING or getattr(func, "__module__", None) == "torch.nn.init":
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)
