"""The contract of bottlenecks between the encoder and the decoder of a first stage.

A bottleneck maps h (B, inputs, *S) of the encoder to z (B, channels, *S) for the decoder, and has its own loss. It always
computes in float32, also if the networks around it do not.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from diffcli.config import Config
from diffcli.networks.memory_format import memory_format


class Coded(NamedTuple):
    """One batch that went through a bottleneck."""

    z: Tensor  # (B, C, *S)   the input of the decoder
    loss: Tensor  # (B,)   the bottleneck's own loss of each image, already weighted
    terms: dict[str, Tensor]  # (B,) each   for the log
    codes: Tensor | None = None  # (B, *S) int64   where the latent is discrete


class Gathers(Protocol):
    """The collective operation that a bottleneck needs."""

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (n, ...), one for each sample of this process -> those of all processes, in the order of the batch."""


class Bottleneck(nn.Module, ABC):
    """inputs: channels that the encoder must have. channels: of a latent. bits: of an element of S; None: it is continuous.

    variational: its latent is sampled with the noise of `forward`, and its loss is in nats, a sum over an image's latent,
    while that of others is a mean. measures: number of images whose `h` it needs before the first step (`start`); 0: none.
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
        """The latent for a diffusion model: (B, channels, *S) float32, not quantised. noise: as in `forward`."""

    def snapped(self, z: Tensor) -> Tensor:
        """The input of the decoder for a generated latent (B, channels, *S): quantised if the bottleneck quantises."""
        return z.float()

    def start(self, h: Tensor) -> None:
        """Called once, before the first step: h (n, inputs, *S) of the first `measures` images of the training data."""

    def remember(self, coded: Coded, h: Tensor) -> None:
        """Called after each forward in training: keeps the values of a micro-batch for the next `update`."""

    def update(self, ranks: Gathers) -> None:
        """Called once for each update, on every process, to change state that has no gradients."""


class BottleneckConfig(Config):
    """Builds a bottleneck."""

    kind: str

    def trained_on(self, images: int) -> Self:
        """The same config for a training set of this number of images, when a run begins."""
        return self

    def inputs(self, latent: int) -> int:
        """The channels that the encoder must have for latents of this number of channels."""
        return latent

    @abstractmethod
    def build(self, latent: int, positions: int | None = None) -> Bottleneck:
        """A bottleneck for latents of this number of channels. Raises UserError if that is impossible.

        positions: the fixed number of positions of a latent; None: it depends on the image.
        """


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
