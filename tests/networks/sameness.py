"""Two ways to compute the same: equal values and equal gradients."""

import torch
from torch import Tensor

from tests.networks.waking import normal


def gradients(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a fixed random projection of y."""
    return torch.autograd.grad((y * normal(*y.shape, seed=99).to(y)).sum(), inputs)


def assert_same(ours: Tensor, plain: Tensor, *inputs: Tensor) -> None:
    """Equal values, and equal gradients to every input."""
    torch.testing.assert_close(ours, plain)
    for a, b in zip(gradients(ours, *inputs), gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(a, b)
