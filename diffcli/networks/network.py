"""The contract of denoising networks: what a preset's `task.network` builds."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

from torch import nn

from diffcli.config import Config, UserError
from diffcli.networks.conditioning import CondShape


class NetworkConfig(Config):
    """What builds a denoising network."""

    kind: str
    axes: ClassVar[int] = 2  # of what it takes, beside batch and channels

    @property
    def multiple(self) -> int:
        """The sides of what it takes are multiples of this."""
        return 1

    @property
    def shift(self) -> int:
        """An input moved by a multiple of this gives the same output moved, but for the borders: where tiles may begin."""
        return self.multiple

    def reach(self, shape: tuple[int, ...]) -> int | None:
        """Positions of the input farther than this from one of the output have no part in it, for shape (C, *S) of training.

        Means over all positions, such as those of norms, are left out of account. None: every position has a part in every one.
        """
        return None

    @abstractmethod
    def build(self, shape: tuple[int, ...], out_channels: int, cond: CondShape) -> nn.Module:
        """A module with forward(x (B, C, *S), time (B,), cond: Conditioning) -> (B, out_channels, *S), for shape (C, *S).

        Its `head` is the layer that gives the output.
        """

    def check_axes(self, shape: tuple[int, ...]) -> None:
        """Raises UserError where it cannot take samples of this shape (C, *S) for the number of their axes."""
        if len(shape) != 1 + self.axes:
            found = "x".join(map(str, shape))
            raise UserError(
                f"task.network.kind is '{self.kind}', for {self.axes} axes beside the channels, but task.field names "
                f"a field that is {found} in diffusion space",
                "choose another task.network.kind, or another task.field",
            )

    def check_buckets(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Raises ValueError where it cannot take images of one of these sizes (height, width) of data.buckets."""


def divisors(n: int) -> list[int]:
    """The divisors of n, from 1 to n."""
    return [d for d in range(1, n + 1) if n % d == 0]


def listed(numbers: Iterable[int]) -> str:
    """Numbers as a hint names them."""
    return ", ".join(map(str, numbers))
