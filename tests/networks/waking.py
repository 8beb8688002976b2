"""What network tests share: weights drawn from the counter-based noise, with no layer left at zero."""

import torch
from torch import Tensor, nn

from diffcli.noise import Noise

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    """N(0, 1) of this shape, the same every time."""
    return Noise([seed], CPU)(torch.empty(1, *shape))[0]


def wake(network: nn.Module) -> nn.Module:
    """Replaces every parameter by small random numbers, so that zero-initialised ends let signal and gradient through."""
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            fan_in = max(parameter[0].numel(), 1)
            parameter.copy_(normal(*parameter.shape, seed=i + 1) * min(fan_in**-0.5, 0.5))
    return network
