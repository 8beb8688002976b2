"""Group norms of pictures that are computed in portions (bands of rows, tiles).

Such a norm takes the place of each group norm. In one pass over all portions it sums up statistics and raises `Enough`; in later
passes it normalises by the statistics of the whole picture.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffcli.networks.group_norm import GroupNorm

Stand = TypeVar("Stand", bound=Callable[..., Tensor])
Layer = TypeVar("Layer", bound=nn.Module)


class Enough(Exception):
    """Raised by a layer after it has summed up its input; later layers are computed in a later pass."""


class RunningMoments:
    """Mean and variance over the last axis of numbers that come in portions. Source: Chan et al. 1979, eq. 2.1."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())  # so far: mean, and sum of squared deviations

    def join(self, values: Tensor) -> None:
        """values: (..., n), float16 and bfloat16 summed in float32."""
        h = values if values.dtype == torch.float64 else values.float()
        variance, mean = torch.var_mean(h, dim=-1, correction=0)
        count, n = self.count, h.shape[-1]
        difference = mean - self.mean
        self.count = count + n
        self.mean = self.mean + difference * (n / self.count)
        self.squares = self.squares + variance * n + difference.square() * (count * n / self.count)

    @property
    def variance(self) -> Tensor:
        return self.squares / self.count


def grouped(norm: GroupNorm, x: Tensor) -> Tensor:
    """(B, C, *S) -> (B, G, n): the numbers of each group."""
    return x.unflatten(1, (norm.groups, -1)).flatten(2)


def normed(norm: GroupNorm, x: Tensor, modulation: Tensor | None, mean: Tensor, variance: Tensor) -> Tensor:
    """norm(x, modulation) by these statistics, (B, G) each, in place of those of x (B, C, H, W). modulation: (B, 2C), or None."""
    each = (norm.groups, -1)
    gain, offset = norm.weight[None], norm.bias[None]
    if modulation is not None:
        scale, shift = modulation.chunk(2, dim=1)
        gain, offset = norm.modulated(scale, shift)
    inverse = (variance + norm.eps).rsqrt()[:, :, None]  # (B, G, 1)
    gain = gain.to(inverse).unflatten(1, each) * inverse
    offset = offset.to(inverse).unflatten(1, each) - mean[:, :, None] * gain
    h = x.to(inverse.dtype)
    return torch.addcmul(offset.flatten(1)[..., None, None], h, gain.flatten(1)[..., None, None]).to(x.dtype)


def added(x: Tensor, modulation: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The input of the norm in GroupNorm.forward, and the remaining modulation: C values are added before the norm."""
    if modulation is not None and modulation.shape[1] == x.shape[1]:
        return x + modulation[:, :, None, None], None
    return x, modulation


@contextmanager
def standing_in(layers: Sequence[Layer], stand: Callable[[Layer], Stand]) -> Iterator[list[Stand]]:
    """Context in which calls of these layers go to the replacement that `stand` makes for each."""
    found = [stand(layer) for layer in layers]
    for layer, each in zip(layers, found, strict=True):
        layer.forward = each
    try:
        yield found
    finally:
        for layer in layers:
            del layer.forward
