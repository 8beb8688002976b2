"""Diffusion of class numbers."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import UserError
from diffcli.fields import FieldSpec
from diffcli.noise import Noise
from diffcli.tasks.codecs.codec import Codec, CodecConfig, Shape

BINARY = 2  # number of classes for which one channel is enough


class OneHotCodec(Codec):
    """Diffusion of class numbers: a channel for each class, `scale` where it is and -scale elsewhere; of two the second's alone.

    Decoded, the class of the largest channel becomes a grey level: the first is black, the last white.
    """

    def __init__(self, classes: int, scale: float = 1.0) -> None:
        super().__init__()
        self.classes = classes
        self.scale = self.length = scale
        self.bounds = (-scale, scale)

    def latent_shape(self, shape: Shape) -> Shape:
        return (1 if self.classes == BINARY else self.classes, *shape[1:])

    def encode(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        first = 1 if self.classes == BINARY else 0
        classes = torch.arange(first, self.classes, device=x.device).view(-1, *[1] * (x.ndim - 2))  # (K, 1, ...)
        return ((x == classes).float() * 2 - 1) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        number = (z > 0).long() if self.classes == BINARY else z.argmax(1, keepdim=True)
        return number.float() * (2 / (self.classes - 1)) - 1


class OneHotCodecConfig(CodecConfig):
    """Diffusion on the classes of a mask, a channel each; `clip` keeps predicted channels in their range while sampling.

    scale: below 1, more of the path is so noisy that large areas of one class cannot be recognised: for large masks, whose
    neighbouring pixels are redundant. Source: Chen 2023 (arXiv 2301.10972), section 2.2.
    """

    kind: Literal["one_hot"] = "one_hot"
    clip: Literal[True] = Field(True, description="keep predicted channels in their range while sampling")
    classes: int = Field(ge=2, description="number of classes of the mask")
    scale: float = Field(
        1.0, gt=0, le=1, description="of the channels; below 1 more of the path is noise, for masks of large areas"
    )

    def build(self, spec: FieldSpec) -> OneHotCodec:
        """The codec of a field. Raises UserError if it is no mask, or a mask of more classes."""
        if spec.kind != "mask":
            raise UserError(
                f"task.codec is one_hot, for masks, but task.field names a field of kind {spec.kind}",
                "add --set 'task.codec={kind: pixels}', or name a mask in task.field",
            )
        if spec.class_count is not None and spec.class_count > self.classes:
            raise UserError(
                f"task.codec.classes is {self.classes}, but the data's mask has {spec.class_count} classes",
                f"use --set task.codec.classes={spec.class_count}",
            )
        return OneHotCodec(self.classes, self.scale)
