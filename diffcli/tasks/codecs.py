"""Codecs: the way from a field of the data to the space that diffusion runs in, and back. Pixels are a codec too."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from diffcli.config import Config, UserError
from diffcli.fields import FieldSpec

Shape = tuple[int, ...]
"""Of one sample, channels first: (C, *S) with any number of axes."""


class Codec(nn.Module, ABC):
    """`encode` gives tensors of about unit variance; `bounds` is the interval that x0 is clipped to, None where it is free."""

    scale: float  # by which a step of 1 in an image's [-1, 1] is longer in diffusion space
    bounds: tuple[float, float] | None

    @abstractmethod
    def latent_shape(self, shape: Shape) -> Shape:
        """The shape in diffusion space of a sample of this shape."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """The field as a batch has it, (B, C, *S) -> (B, *latent_shape)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """(B, *latent_shape) -> pictures (B, C, *S) in about [-1, 1]: the inverse of `encode`, up to what the codec loses."""


class PixelCodec(Codec):
    """Diffusion in pixel space: the identity up to a factor."""

    def __init__(self, scale: float, clip: bool) -> None:
        super().__init__()
        self.scale = scale
        self.bounds = (-scale, scale) if clip else None

    def latent_shape(self, shape: Shape) -> Shape:
        return shape

    def encode(self, x: Tensor) -> Tensor:
        return x if self.scale == 1 else x * self.scale

    def decode(self, z: Tensor) -> Tensor:
        return z if self.scale == 1 else z / self.scale


class OneHotCodec(Codec):
    """Diffusion of class numbers: a channel for each class, 1 where it is and -1 elsewhere; of two classes the second's alone.

    Decoded, the class of the largest channel becomes a grey level: the first is black, the last white.
    """

    scale = 1.0
    bounds = (-1.0, 1.0)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def latent_shape(self, shape: Shape) -> Shape:
        return (1 if self.classes == BINARY else self.classes, *shape[1:])

    def encode(self, x: Tensor) -> Tensor:
        first = 1 if self.classes == BINARY else 0
        classes = torch.arange(first, self.classes, device=x.device).view(-1, *[1] * (x.ndim - 2))  # (K, 1, ...)
        return (x == classes).float() * 2 - 1

    def decode(self, z: Tensor) -> Tensor:
        number = (z > 0).long() if self.classes == BINARY else z.argmax(1, keepdim=True)
        return number.float() * (2 / (self.classes - 1)) - 1


BINARY = 2  # classes, for which one channel is enough


class PixelCodecConfig(Config):
    """Diffusion on pixels * scale; `clip` keeps predicted images in [-1, 1] while sampling.

    scale = 1 / (standard deviation of the pixels) gives data of unit variance, as EDM has them (Karras et al. 2022).
    """

    kind: Literal["pixels"] = "pixels"
    clip: bool = True
    scale: float = Field(1.0, gt=0, description="diffusion space = pixels in [-1, 1] times this")

    def build(self, spec: FieldSpec) -> PixelCodec:
        """The codec of a field. Raises UserError where it has class numbers, of which no mean makes sense."""
        if spec.kind == "mask":
            raise UserError(
                "task.codec is pixels, but task.field names a mask, whose values are numbers of classes",
                f"use --set task.codec.kind=one_hot --set task.codec.classes={spec.class_count or 'K'}",
            )
        return PixelCodec(self.scale, self.clip)


class OneHotCodecConfig(Config):
    """Diffusion on the classes of a mask, a channel each; `clip` keeps predicted channels in [-1, 1] while sampling."""

    kind: Literal["one_hot"] = "one_hot"
    classes: int = Field(ge=2, description="how many classes the mask has")
    clip: Literal[True] = True

    def build(self, spec: FieldSpec) -> OneHotCodec:
        """The codec of a field. Raises UserError where it is no mask, or one of more classes."""
        if spec.kind != "mask":
            raise UserError(
                f"task.codec is one_hot, for masks, but task.field names a field of kind {spec.kind}",
                "use --set task.codec.kind=pixels, or --set task.field=mask",
            )
        if spec.class_count is not None and spec.class_count > self.classes:
            raise UserError(
                f"task.codec.classes is {self.classes}, but the data's mask has {spec.class_count} classes",
                f"use --set task.codec.classes={spec.class_count}",
            )
        return OneHotCodec(self.classes)


def _of_pixels(codec: Any) -> Any:
    """Pixels were the only codec once, and so need not be named."""
    return {"kind": "pixels", **codec} if isinstance(codec, Mapping) else codec


AnyCodec = Annotated[
    Annotated[PixelCodecConfig | OneHotCodecConfig, Field(discriminator="kind")], BeforeValidator(_of_pixels)
]
