"""The contract of codecs."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from diffcli.config import Config
from diffcli.fields import FieldSpec
from diffcli.noise import Noise

Shape = tuple[int, ...]
"""Of one sample, channels first: (C, *S) with any number of axes."""


class Codec(nn.Module, ABC):
    """`encode` gives tensors of about unit variance; `bounds` is the interval that x0 is clipped to, None where it is free."""

    length: float  # of a step of 1 in an image's [-1, 1], in diffusion space
    bounds: tuple[float, float] | None
    exact: ClassVar[bool] = True  # whether `decode` gives back what was encoded, up to rounding

    @abstractmethod
    def latent_shape(self, shape: Shape) -> Shape:
        """The shape in diffusion space of a sample of this shape. Raises UserError where it cannot take that."""

    @abstractmethod
    def encode(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """The field as a batch has it, (B, C, *S) -> (B, *latent_shape).

        noise: of what is random about the encoding, a stream for each sample; None takes the mode.
        """

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """(B, *latent_shape) -> pictures (B, C, *S) in about [-1, 1]: the inverse of `encode`, up to what the codec loses."""


class CodecConfig(Config):
    """What builds a codec. Each says in `clip` whether predictions are kept in the codec's bounds while sampling."""

    kind: str

    @abstractmethod
    def build(self, spec: FieldSpec) -> Codec:
        """The codec of a field of the data. Raises UserError where it cannot take that."""
