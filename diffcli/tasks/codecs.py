"""Codecs: the way from images in [-1, 1] to the space that diffusion runs in, and back. Pixels are a codec too."""

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

from diffcli.config import Config, ImageShape


class Codec(nn.Module, ABC):
    """`encode` gives tensors of about unit variance; `bounded` says whether they lie in [-1, 1], so that x0 may be clipped."""

    channels: int
    downscale: int
    bounded: bool

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, channels, H / downscale, W / downscale)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """The inverse of `encode`, up to what the codec loses."""


class PixelCodec(Codec):
    """The identity: diffusion in pixel space."""

    downscale = 1

    def __init__(self, channels: int, bounded: bool) -> None:
        super().__init__()
        self.channels = channels
        self.bounded = bounded

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


class PixelCodecConfig(Config):
    """Diffusion on pixels; `clip` keeps predicted images in [-1, 1] while sampling."""

    kind: Literal["pixels"] = "pixels"
    clip: bool = True

    def build(self, shape: ImageShape) -> PixelCodec:
        return PixelCodec(shape.channels, self.clip)


AnyCodec = PixelCodecConfig
