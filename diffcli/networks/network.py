"""The contract of denoising networks, which `task.network` of a preset builds."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

from torch import nn

from diffcli.config import Config, UserError
from diffcli.networks.conditioning import CondShape


class NetworkConfig(Config):
    """Builds a denoising network."""

    kind: str
    axes: ClassVar[int] = 2  # number of axes of its input beside batch and channels

    @property
    def multiple(self) -> int:
        """The sides of its input are multiples of this."""
        return 1

    @property
    def shift(self) -> int:
        """Shifting the input by a multiple of this shifts the output, except at the borders: tiles begin at such multiples."""
        return self.multiple

    def reach(self, shape: tuple[int, ...]) -> int | None:
        """The distance up to which an output position depends on the input, for shape (C, *S) of training.

        Means over all positions, such as those of norms, do not count. None: every position depends on every one.
        """
        return None

    @abstractmethod
    def build(self, shape: tuple[int, ...], out_channels: int, cond: CondShape) -> nn.Module:
        """A module with forward(x (B, C, *S), time (B,), cond: Conditioning) -> (B, out_channels, *S), for shape (C, *S).

        Its `head` is the layer that gives the output.
        """

    def check_axes(self, shape: tuple[int, ...]) -> None:
        """Raises UserError if samples of this shape (C, *S) have the wrong number of axes."""
        if len(shape) != 1 + self.axes:
            found = "x".join(map(str, shape))
            raise UserError(
                f"task.network.kind is '{self.kind}', for {self.axes} axes beside the channels, but task.field names "
                f"a field that is {found} in diffusion space",
                "choose another task.network.kind, or another task.field",
            )

    def check_buckets(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Raises ValueError if it does not support images of one of these sizes (height, width) of data.buckets."""


def divisors(n: int) -> list[int]:
    """The divisors of n, from 1 to n."""
    return [d for d in range(1, n + 1) if n % d == 0]


def largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of n up to limit."""
    return next(d for d in range(min(n, limit), 0, -1) if n % d == 0)


def listed(numbers: Iterable[int]) -> str:
    """Numbers as a list in a hint."""
    return ", ".join(map(str, numbers))
