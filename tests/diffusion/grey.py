"""Images on the 256 grey levels, as the discretised likelihood needs them."""

import torch
from torch import Tensor

from diffcli.noise import Noise

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def to_levels(x: Tensor) -> Tensor:
    """The nearest grey levels in [-1, 1]."""
    return ((x + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def images(batch: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """x0 on grey levels (B, 2, 4, 4), and eps."""
    noise, like = Noise(range(batch), torch.device("cpu")), torch.empty(batch, 2, 4, 4, dtype=dtype)
    return to_levels(noise(like) * 0.3), noise(like)
