"""Diffusion in pixel space."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from diffcli.config import UserError
from diffcli.fields import FieldSpec
from diffcli.noise import Noise
from diffcli.tasks.codecs.codec import Codec, CodecConfig, Shape


class PixelCodec(Codec):
    """Diffusion in pixel space: the identity up to a factor."""

    def __init__(self, scale: float, clip: bool) -> None:
        super().__init__()
        self.scale = self.length = scale
        self.bounds = (-scale, scale) if clip else None

    def latent_shape(self, shape: Shape) -> Shape:
        return shape

    def encode(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        return x if self.scale == 1 else x * self.scale

    def decode(self, z: Tensor) -> Tensor:
        return z if self.scale == 1 else z / self.scale


class PixelCodecConfig(CodecConfig):
    """Diffusion on pixels * scale; `clip` keeps predicted images in [-1, 1] while sampling.

    scale = 1 / (standard deviation of the pixels) gives data of unit variance, as EDM has them (Karras et al. 2022).
    """

    kind: Literal["pixels"] = "pixels"
    clip: bool = Field(True, description="keep predicted images in [-1, 1] while sampling")
    scale: float = Field(1.0, gt=0, description="diffusion space = pixels in [-1, 1] times this")

    def build(self, spec: FieldSpec) -> PixelCodec:
        """The codec of a field. Raises UserError for class numbers, whose mean has no meaning."""
        if spec.kind == "mask":
            raise UserError(
                "task.codec is pixels, but task.field names a mask, whose values are numbers of classes",
                f"use --set task.codec.kind=one_hot --set task.codec.classes={spec.class_count or 'K'}",
            )
        return PixelCodec(self.scale, self.clip)
