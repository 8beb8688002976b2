"""The memory layout of weights, on which the last bits of a convolution may depend."""

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def as_in_training(module: M) -> M:
    """The module with contiguous weights: on the CPU models that are loaded to draw have channels last."""
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()
    return module
