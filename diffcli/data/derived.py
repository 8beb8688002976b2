"""Fields that are computed from the image when it is read: the section `data.derived` of a preset.

A field follows from the cropped bytes of its image alone (that of `hole` also from the sample's draw), before batches are
mirrored, so it matches its image for every crop and flip. The process that reads the image computes it: a worker process, if
there are any.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import Config, UserError, keys_agree
from diffcli.data.edges import canny, grey, smoothed, xdog
from diffcli.data.lowering import lowered
from diffcli.fields import FieldSpec, Specs
from diffcli.lookup.kernels import Kernel
from diffcli.noise import Domain, derive

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Derived(Config):
    """Computes fields from an image."""

    @abstractmethod
    def specs(self, image: FieldSpec) -> Specs:
        """The fields that it computes from an image (C, H, W). Raises UserError if it does not support that size."""

    @abstractmethod
    def make(self, images: Tensor, indices: Tensor, draws: Tensor | None) -> dict[str, Tensor]:
        """uint8 (B, C, H, W) -> its fields (B, ...), pictures as uint8. indices, draws: as for `ImageData.read`."""


class LowRes(Derived):
    """The image `factor` times smaller along each edge, by an antialiased kernel of Pillow."""

    kind: Literal["low_res"] = "low_res"
    field: Name = Field("low_res", description="name of the field that is made")
    factor: int = Field(2, ge=2, le=64, description="factor by which each edge becomes smaller")
    kernel: Kernel = Field("bicubic", description="kernel of the antialiased resize, by Pillow's name")

    def specs(self, image: FieldSpec) -> Specs:
        channels, *size = image.sides
        if any(side % self.factor for side in size):
            shown = "x".join(map(str, size))
            raise UserError(
                f"data.derived makes '{self.field}' {self.factor} times smaller than images of {shown} pixels (HxW), which "
                "the factor does not divide",
                f"set data.size to a multiple of {self.factor}, or another factor",
            )
        return {self.field: FieldSpec("image", (channels, *(side // self.factor for side in size)))}

    def make(self, images: Tensor, indices: Tensor, draws: Tensor | None) -> dict[str, Tensor]:
        height, width = (side // self.factor for side in images.shape[2:])
        return {self.field: lowered(images, (height, width), self.kernel)}


class Edges(Derived):
    """White edges on black, one pixel wide. sigma: pixels of the blur before. low, high: of the gradient, a share of its largest.

    The largest possible gradient is that of a step from black to white. Edges above `high` count, and so do edges above
    `low` that are connected to one of them.
    Source: Canny 1986, doi 10.1109/TPAMI.1986.4767851.
    """

    kind: Literal["edges"] = "edges"
    field: Name = Field("edges", description="name of the field that is made")
    sigma: float = Field(1.0, gt=0, le=16, description="standard deviation of the blur before, in pixels")
    low: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="smallest gradient of an edge that continues another one, as a share of the largest",
    )
    high: float = Field(
        0.12, gt=0, lt=1, description="smallest gradient of an edge that counts by itself, as a share of the largest"
    )

    @keys_agree
    def _ordered(self) -> Iterator[str]:
        if self.low > self.high:
            yield f"low is {self.low}, above high, which is {self.high}; set low to {self.high} or less"

    def specs(self, image: FieldSpec) -> Specs:
        return {self.field: FieldSpec("image", (1, *image.shape[1:]))}

    def make(self, images: Tensor, indices: Tensor, draws: Tensor | None) -> dict[str, Tensor]:
        return {self.field: canny(grey(images), self.sigma, self.low, self.high).mul(255).to(torch.uint8)}


class Sketch(Derived):
    """Dark lines on white, softer than edges. sigma: pixels; sharpness, threshold, slope: p, epsilon and phi of the paper.

    Source: Winnemoeller et al. 2012, "XDoG", eq. 5 to 7, doi 10.1016/j.cag.2012.03.004.
    """

    kind: Literal["sketch"] = "sketch"
    field: Name = Field("sketch", description="name of the field that is made")
    sigma: float = Field(0.8, gt=0, le=16, description="standard deviation of the finer blur, in pixels")
    sharpness: float = Field(20.0, ge=0, description="weight of the difference of both blurs: p of the paper")
    threshold: float = Field(
        0.5, ge=0, le=1, description="brightness, in [0, 1], below which lines are drawn: epsilon of the paper"
    )
    slope: float = Field(10.0, gt=0, description="how sharply lines end: phi of the paper")

    def specs(self, image: FieldSpec) -> Specs:
        return {self.field: FieldSpec("image", (1, *image.shape[1:]))}

    def make(self, images: Tensor, indices: Tensor, draws: Tensor | None) -> dict[str, Tensor]:
        lines = xdog(grey(images), self.sigma, self.sharpness, self.threshold, self.slope)
        return {self.field: levels(lines)}


class Colour(Derived):
    """The image without its detail. blur: standard deviation in pixels."""

    kind: Literal["colour"] = "colour"
    field: Name = Field("colour", description="name of the field that is made")
    blur: float = Field(4.0, gt=0, le=64, description="standard deviation of the blur, in pixels")

    def specs(self, image: FieldSpec) -> Specs:
        return {self.field: image}

    def make(self, images: Tensor, indices: Tensor, draws: Tensor | None) -> dict[str, Tensor]:
        return {self.field: levels(smoothed(images.float() / 255, self.blur))}


class Grey(Derived):
    """The luminance of the image, by the weights of ITU-R BT.601, as Pillow has them."""

    kind: Literal["grey"] = "grey"
    field: Name = Field("grey", description="name of the field that is made")

    def specs(self, image: FieldSpec) -> Specs:
        return {self.field: FieldSpec("image", (1, *image.shape[1:]))}

    def make(self, images: Tensor, indices: Tensor, draws: Tensor | None) -> dict[str, Tensor]:
        return {self.field: levels(grey(images))}


class Hole(Derived):
    """A mask that is 1 in a rectangle to be filled, and the image with grey inside it.

    least, most: edges of the rectangle, as shares of those of the image. In training its place differs in each epoch.
    """

    kind: Literal["hole"] = "hole"
    field: Name = Field("hole", description="name of the computed mask; 1 inside the hole")
    image: Name = Field("masked", description="name of the computed image, grey inside the hole")
    least: float = Field(0.2, gt=0, le=1, description="shortest edge of the hole, as a share of that of the image")
    most: float = Field(0.7, gt=0, le=1, description="longest edge of the hole, as a share of that of the image")

    @keys_agree
    def _ordered(self) -> Iterator[str]:
        if self.least > self.most:
            yield (f"least is {self.least}, above most, which is {self.most}; set least to {self.most} or less")

    def specs(self, image: FieldSpec) -> Specs:
        return {self.field: FieldSpec("mask", (1, *image.shape[1:]), 2), self.image: image}

    def make(self, images: Tensor, indices: Tensor, draws: Tensor | None) -> dict[str, Tensor]:
        seeds = indices if draws is None else draws
        size = images.shape[2:]
        places = torch.stack([derive(0, Domain.AUGMENT, seeds, HOLE + i) for i in range(4)]) / 2.0**63
        within = torch.ones(len(images), *size, dtype=torch.bool)
        for axis, side in enumerate(size):
            share = self.least + (self.most - self.least) * places[2 * axis]
            edge = (share * side).round().clamp(1, side).long()
            start = (places[2 * axis + 1] * (side - edge + 1)).long()
            along = torch.arange(side)
            inside = (along >= start[:, None]) & (along < (start + edge)[:, None])  # (B, side)
            within &= inside[:, :, None] if axis == 0 else inside[:, None, :]
        hole = within[:, None]
        return {self.field: hole.to(torch.uint8), self.image: images.masked_fill(hole, MIDDLE)}


HOLE = 100  # counters of its draws, which no other choice of a sample uses
MIDDLE = 128  # the level of what is not known

KINDS = LowRes | Edges | Sketch | Colour | Grey | Hole
AnyDerived = Annotated[KINDS, Field(discriminator="kind")]
MAKERS: Mapping[str, str] = {
    name: made.kind
    for made in (each() for each in get_args(KINDS))
    for name in made.specs(FieldSpec("image", (3, 64, 64)))
}
"""The kind whose default name is this field."""


def levels(values: Tensor) -> Tensor:
    """[0, 1] -> uint8, rounded and clamped."""
    return (values * 255).round().clamp(0, 255).to(torch.uint8)


def derived_specs(derived: tuple[Derived, ...], image: FieldSpec) -> dict[str, FieldSpec]:
    """The fields that several of them compute from an image."""
    return {name: spec for each in derived for name, spec in each.specs(image).items()}
