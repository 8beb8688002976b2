"""The contract of bottlenecks: what stands between the encoder and the decoder of a first stage.

An encoder gives h (B, inputs, *S). A bottleneck makes of it z (B, channels, *S), which the decoder is given, and a loss of its
own. Everything in here is computed in float32, whatever the networks around it compute in.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from diffcli.config import Config
from diffcli.networks.memory_format import memory_format


class Coded(NamedTuple):
    """One batch that went through a bottleneck."""

    z: Tensor  # (B, C, *S)   what the decoder is given
    loss: Tensor  # (B,)   the bottleneck's own loss of each image, already weighted
    terms: dict[str, Tensor]  # (B,) each   for the log
    codes: Tensor | None = None  # (B, *S) int64   where the latent is discrete


class Gathers(Protocol):
    """The processes of a run, as far as a bottleneck must know of them."""

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (n, ...), one for each sample of this process -> those of all processes, in the order of the batch."""


class Bottleneck(nn.Module, ABC):
    """inputs: channels that it wants of the encoder. channels: of a latent. bits: of an element of S; None: it is continuous.

    variational: its latent is drawn with the noise of `forward`, and its loss is in nats: a sum over an image's latent, where
    that of others is a mean. measures: images whose `h` it wants to see before the first step (`start`); 0: none.
    """

    inputs: int
    channels: int
    bits: float | None = None
    variational: bool = False
    measures: int = 0

    @abstractmethod
    def forward(self, h: Tensor, noise: Tensor | None) -> Coded:
        """h: (B, inputs, *S). noise: N(0, 1) of the shape of a latent; None stands for the mode."""

    @abstractmethod
    def latent(self, h: Tensor, noise: Tensor | None) -> Tensor:
        """What a diffusion model sees: (B, channels, *S) float32, not quantised. noise: as in `forward`."""

    def snapped(self, z: Tensor) -> Tensor:
        """What the decoder is given of a latent (B, channels, *S) that was diffused: quantised where the bottleneck quantises."""
        return z.float()

    def start(self, h: Tensor) -> None:
        """Called once, before the first step: h (n, inputs, *S) of the first `measures` images of the training data."""

    def remember(self, coded: Coded, h: Tensor) -> None:
        """Called after each forward in training: keeps of a micro-batch what the next `update` needs."""

    def update(self, ranks: Gathers) -> None:
        """Called once an update, on every process: the state that does not follow from gradients."""


class BottleneckConfig(Config):
    """What builds a bottleneck."""

    kind: str

    def trained_on(self, images: int) -> Self:
        """The same for a training set of so many images, when a run begins."""
        return self

    def inputs(self, latent: int) -> int:
        """Channels that a bottleneck whose latents have so many wants of the encoder."""
        return latent

    @abstractmethod
    def build(self, latent: int) -> Bottleneck:
        """A bottleneck whose latents have so many channels. Raises UserError where it cannot."""


def as_rows(x: Tensor) -> Tensor:
    """(B, C, *S) -> (B x S, C): one row for each position."""
    return x.movedim(1, -1).flatten(0, -2)


def as_maps(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `as_rows`: (B x S, C) -> (B, C, *S), for S and the memory format of `like` (B, any, *S)."""
    maps = rows.view(len(like), *like.shape[2:], rows.shape[1]).movedim(-1, 1)
    return maps.contiguous(memory_format=memory_format(like))


def of_each(x: Tensor) -> Tensor:
    """The mean over all but the batch: (B, ...) -> (B,)."""
    return x.flatten(1).mean(dim=1)


def nothing(h: Tensor) -> Tensor:
    """A loss of 0 for each image of h: (B,) float32."""
    return torch.zeros(len(h), device=h.device)
