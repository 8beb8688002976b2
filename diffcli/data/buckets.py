"""The crop of images: all to one size, or each to the bucket of its aspect ratio; a batch has images of one bucket.

Buckets and random crops need a random draw for every sample, as in training. Without draws, as in previews, validation and
scores, every image has the one size of the set, cropped at its centre.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffcli.data.pixels import Place, place

Sides = tuple[int, int]
"""Height and width in pixels."""


class Framing(NamedTuple):
    """The crop of the images of a set. size: of all of them; buckets: sizes in training instead; bucket: int64 (N,) into them."""

    size: Sides
    random: bool = False
    buckets: tuple[Sides, ...] = ()
    bucket: Tensor | None = None

    @property
    def varies(self) -> bool:
        """Whether the crop of an image differs between epochs, or its size in training, so that it cannot be kept decoded."""
        return self.random or bool(self.buckets)

    def size_of(self, indices: Tensor, draws: Tensor | None) -> Sides:
        """The one size of these images."""
        if self.bucket is None or draws is None or not len(indices):
            return self.size
        chosen = self.bucket[indices]
        assert (chosen == chosen[0]).all(), "a batch of several buckets"
        return self.buckets[int(chosen[0])]

    def places(self, count: int, draws: Tensor | None) -> Sequence[Place | None]:
        """The place of the crop of each of `count` images; None: at the centre."""
        if not self.random or draws is None:
            return [None] * count
        return [place(draw) for draw in draws.tolist()]


def nearest(sides: Tensor, buckets: Sequence[Sides]) -> Tensor:
    """int64 (N,): for images of these (height, width), int64 (N, 2), the bucket whose log aspect ratio is nearest."""
    return (aspects(sides)[:, None] - aspects(torch.tensor(buckets))).abs().argmin(1)


def aspects(sides: Tensor) -> Tensor:
    """float64 (N,): log(width / height) for (height, width), int64 (N, 2)."""
    return sides.double().log().diff(dim=1)[:, 0]
