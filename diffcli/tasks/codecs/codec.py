"""The contract of codecs."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from diffcli.config import Config
from diffcli.fields import Fault, FieldSpec
from diffcli.noise import Noise
from diffcli.tasks.task import Ranks

Shape = tuple[int, ...]
"""The shape of one sample, channels first: (C, *S) with any number of axes."""


class Codec(nn.Module, ABC):
    """`encode` gives tensors of about unit variance; `bounds` is the interval that x0 is clipped to, None where it is free."""

    length: float  # of a step of 1 in an image's [-1, 1], in diffusion space
    bounds: tuple[float, float] | None
    exact: ClassVar[bool] = True  # whether `decode` gives back what was encoded, up to rounding
    downscale: int = 1  # pixels in the edge of a position of diffusion space
    measures: ClassVar[int | None] = 0  # samples of the training data that `measure` needs at least; None: all

    @abstractmethod
    def latent_shape(self, shape: Shape) -> Shape:
        """The shape in diffusion space of a sample of this shape. Raises UserError if the codec does not support it."""

    def misfit(self, size: Sequence[int]) -> Fault | None:
        """What is wrong with pictures of this height and width for what they are decoded by; None: nothing."""
        return None

    @abstractmethod
    def encode(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """The field as a batch has it, (B, C, *S) -> (B, *latent_shape).

        noise: one stream for each sample, for a random encoding; None takes the mode.
        """

    def restored(self, kept: Tensor, noise: Noise | None = None) -> Tensor:
        """`encode` for data that hold the stored form of the field, see `stored`; here it is the field itself."""
        return self.encode(kept, noise)

    def measure(self, latents: Iterable[Tensor], ranks: Ranks) -> None:
        """Called once, before the first step of a new run, if `measures` is not 0; sets buffers from the data.

        latents: the output of `encode` for this process's part of the training data, batch by batch.
        """

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """(B, *latent_shape) -> pictures (B, C, *S) in about [-1, 1]: the inverse of `encode`, up to what the codec loses."""


class CodecConfig(Config):
    """Builds a codec. `clip` says whether predictions are kept in the codec's bounds while sampling."""

    kind: str

    @abstractmethod
    def build(self, spec: FieldSpec) -> Codec:
        """The codec of a field of the data. Raises UserError if it does not support the field."""
