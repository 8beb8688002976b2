"""Codecs: the way from images in [-1, 1] to the space that diffusion runs in, and back. Pixels are a codec too."""

from abc import ABC, abstractmethod
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config, ImageShape


class Codec(nn.Module, ABC):
    """`encode` gives tensors of about unit variance; `bounds` is the interval that x0 is clipped to, None where it is free."""

    channels: int
    downscale: int
    scale: float  # by which a step of 1 in an image's [-1, 1] is longer in diffusion space
    bounds: tuple[float, float] | None

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, channels, H / downscale, W / downscale)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """The inverse of `encode`, up to what the codec loses."""


class PixelCodec(Codec):
    """Diffusion in pixel space: the identity up to a factor."""

    downscale = 1

    def __init__(self, channels: int, scale: float, clip: bool) -> None:
        super().__init__()
        self.channels = channels
        self.scale = scale
        self.bounds = (-scale, scale) if clip else None

    def encode(self, x: Tensor) -> Tensor:
        return x if self.scale == 1 else x * self.scale

    def decode(self, z: Tensor) -> Tensor:
        return z if self.scale == 1 else z / self.scale


class PixelCodecConfig(Config):
    """Diffusion on pixels * scale; `clip` keeps predicted images in [-1, 1] while sampling.

    scale = 1 / (standard deviation of the pixels) gives data of unit variance, as EDM has them (Karras et al. 2022).
    """

    kind: Literal["pixels"] = "pixels"
    clip: bool = True
    scale: float = Field(1.0, gt=0, description="diffusion space = pixels in [-1, 1] times this")

    def build(self, shape: ImageShape) -> PixelCodec:
        return PixelCodec(shape.channels, self.scale, self.clip)


AnyCodec = PixelCodecConfig
