"""The contract of denoising networks: what a preset's `task.network` builds."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from torch import nn

from diffcli.config import Config, ImageShape
from diffcli.networks.conditioning import CondShape


class NetworkConfig(Config):
    """What builds a denoising network."""

    @abstractmethod
    def build(self, shape: ImageShape, out_channels: int, cond: CondShape) -> nn.Module:
        """A module with forward(x (B, C, H, W), time (B,), cond: Conditioning) -> (B, out_channels, H, W).

        Its `head` is the layer that gives the output.
        """

    def check_buckets(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Raises ValueError where it cannot take images of one of these sizes (height, width) of data.buckets."""


def divisors(n: int) -> list[int]:
    """The divisors of n, from 1 to n."""
    return [d for d in range(1, n + 1) if n % d == 0]


def listed(numbers: Iterable[int]) -> str:
    """Numbers as a hint names them."""
    return ", ".join(map(str, numbers))
