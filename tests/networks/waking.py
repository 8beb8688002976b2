"""What network tests share: weights drawn from the counter-based noise, with no layer left at zero."""

import torch
from torch import Tensor, nn

from diffcli.noise import Noise

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    """N(0, 1) of this shape, the same every time."""
    return Noise([seed], CPU)(torch.empty(1, *shape))[0]


def normals(sizes: list[int], first: int) -> list[Tensor]:
    """N(0, 1) vectors of these sizes, vector i that of seed `first` + i; those of one size come from one call."""
    found: dict[int, Tensor] = {}
    for size in set(sizes):
        places = [i for i, each in enumerate(sizes) if each == size]
        rows = Noise([first + i for i in places], CPU)(torch.empty(len(places), size))
        found |= zip(places, rows, strict=True)
    return [found[i] for i in range(len(sizes))]


def wake(network: nn.Module) -> nn.Module:
    """Replaces every parameter by small random numbers, so that zero-initialised ends let signal and gradient through."""
    parameters = [*network.parameters()]
    with torch.no_grad():
        for parameter, values in zip(parameters, normals([p.numel() for p in parameters], first=1), strict=True):
            fan_in = max(parameter[0].numel(), 1)
            parameter.copy_(values.view_as(parameter) * min(fan_in**-0.5, 0.5))
    return network
