"""Pictures and masks as conditions: channels concatenated to x, position by position."""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import keys_agree
from diffcli.data.derived import MAKERS
from diffcli.fields import Batch, FieldSpec, Remedies
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.networks.layers import sinusoid
from diffcli.noise import Noise
from diffcli.tasks.conditioners.conditioner import UNSEEDED, Conditioner, ConditionerConfig
from diffcli.transfer import moved

LEVELS = 1000  # levels in [0, 1] are scaled to this range, as diffusion times are


class SpatialConditioner(Conditioner):
    """Reads a picture (B, C, H, W) in [-1, 1], or a mask of class numbers, which becomes a channel of -1 and 1 for each class.

    A smaller picture is enlarged to x; of a larger one each `patch` x `patch` pixels become the channels of one position.
    level: of the noise that is added when images are drawn.
    """

    kind = "spatial"

    def __init__(self, config: "SpatialConditionerConfig") -> None:
        super().__init__()
        self.config = config
        axes = (None, None)
        if config.of == "mask":
            self.reads = {config.field: FieldSpec("mask", (1, *axes), config.classes)}
        else:
            self.reads = {config.field: FieldSpec("image", (config.channels, *axes))}
        width = (config.classes or config.channels) * config.patch**2
        self.shape = CondShape(vector=config.dim if config.augment else 0, spatial=width)
        self.null = nn.Parameter(torch.zeros(width, 1, 1)) if config.drop else None
        self.level = 0.0

    @property
    def droppable(self) -> bool:
        return self.config.drop

    def remedies(self, key: str) -> Remedies:
        field, name = self.config.field, "classes" if self.config.of == "mask" else "channels"
        example = f": --set 'data.derived=[{{kind: {MAKERS[field]}}}]'" if field in MAKERS else " (data.derived)"
        shape = f"use --set {key}.{name}=" + ("N, as many as the data have" if name == "classes" else "{channels}")
        if field == "image":
            shape += f", or --set data.channels={self.config.channels}"
        return Remedies(
            lacking=f"make it of the images{example}, choose data that store it beside them, "
            f"or name a field that they have: --set {key}.field=NAME",
            kind=f"use --set {key}.of=mask for masks, =image for pictures, or name another field",
            shape=shape,
            classes=f"use --set {key}.classes={{found}}",
        )

    def forward(self, batch: Batch, keep: Tensor, like: Tensor, noise: Noise = UNSEEDED) -> Conditioning:
        """Channels (B, C, *S) as large as `like`, and with `augment` the level of their noise as a vector (B, dim)."""
        picture = moved(batch[self.config.field], keep.device)
        x = self._signed(picture) if self.config.of == "mask" else picture.float()
        vector = None
        if self.config.augment:
            x, vector = self._noised(x, noise)
        x = self._laid(x, like)
        if self.null is not None:
            x = torch.where(keep[:, None, None, None], x, self.null)
        return Conditioning(vector=vector, spatial=x.to(like.dtype))

    def _signed(self, mask: Tensor) -> Tensor:
        """(B, 1, H, W) class numbers -> (B, classes, H, W), 1 where it is that class and -1 elsewhere."""
        assert self.config.classes is not None
        numbers = torch.arange(self.config.classes, device=mask.device)[:, None, None]
        return (mask == numbers).float().mul_(2).sub_(1)

    def _noised(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """With noise of level s: sqrt(1 - s^2) x + s eps, and the embedding of s. In training s ~ U(0, augment) for each sample.

        Source: Ho et al. 2021, section 4.2 (arXiv 2106.15282): conditioning augmentation; the level as an input: Saharia et al.
        2022, appendix A (arXiv 2205.11487).
        """
        drawn = self.training or self.level > 0
        level = x.new_full((len(x),), self.level)
        if self.training:
            level = noise.unit().to(x.device) * self.config.augment
        if drawn:
            s = level[:, None, None, None]
            x = (1 - s * s).sqrt() * x + s * noise(x)
        return x, sinusoid(level * LEVELS, self.config.dim)

    def _laid(self, x: Tensor, like: Tensor) -> Tensor:
        """The picture in the size of `like`. Raises ValueError if the sizes do not fit."""
        if self.config.patch > 1:
            x = F.pixel_unshuffle(x, self.config.patch)
        if x.shape[2:] == like.shape[2:]:
            return x
        if self.config.of == "mask":
            return F.interpolate(x, like.shape[2:], mode="nearest-exact")
        return F.interpolate(x, like.shape[2:], mode="bicubic")


class SpatialConditionerConfig(ConditionerConfig):
    """A field of the same scene, concatenated to x: a smaller picture, edges, a sketch, a mask, the image of a segmentation.

    augment: the largest level of its noise in training; the network reads the level. Without it an upscaler repeats the flaws
    of the stage before it. drop: whether it is left out in a share `task.drop_condition` of samples, so that guidance can use
    it.
    """

    kind: Literal["spatial"] = "spatial"
    field: str = Field(
        "low_res", pattern=r"^[a-z][a-z0-9_]*$", description="the field that is concatenated to the noisy image"
    )
    of: Literal["image", "mask"] = Field("image", description="what kind of field it is")
    channels: int = Field(3, ge=1, description="of an image")
    classes: int | None = Field(None, ge=2, description="of a mask")
    patch: int = Field(1, ge=1, description="pixels along an edge that become one position: the downscale of latents")
    augment: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="largest level of its noise in training, in [0, 1); the network reads the level",
    )
    dim: int = Field(64, ge=2, description="width of the embedding of the noise level")
    drop: bool = Field(
        False, description="leave it out in a share task.drop_condition of the samples, so that guidance can use it"
    )

    @keys_agree
    def _agree(self) -> Iterator[str]:
        if (self.of == "mask") != (self.classes is not None):
            yield (
                f"classes is {self.classes} of '{self.of}'; name the number of classes of a mask, and of nothing else"
            )
        if self.of == "mask" and self.augment:
            yield f"augment is {self.augment}, but a mask has no levels; leave augment out"

    @property
    def droppable(self) -> bool:
        return self.drop

    def build(self) -> SpatialConditioner:
        return SpatialConditioner(self)
