"""Clips in a network of images: frames lie in the batch axis, so that every layer over space, and every norm, sees one frame.

x (B, C, T, H, W) -> (B T, C, H, W), the frames of a clip one after the other; layers over time find them by their number.
"""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

Made = TypeVar("Made")


class Frames:
    """The frames of the clips of one forward, `count` each, more than one. `once`: what layers over time share, made once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.made: dict[tuple[str, int], object] = {}

    def once(self, what: str, size: int, make: Callable[[], Made]) -> Made:
        """make(), or the result of the first call for this name and size."""
        if (what, size) not in self.made:
            self.made[what, size] = make()
        return self.made[what, size]  # type: ignore[return-value]  # what is kept under one name has one type

    def apart(self, x: Tensor) -> Tensor:
        """(B T, ...) -> (B, T, ...)."""
        return x.unflatten(0, (-1, self.count))


def frames_of(x: Tensor) -> Frames | None:
    """The frames of x (B, C, T, H, W); None of images (B, C, H, W) and of clips of one frame, for which no time passes."""
    return Frames(x.shape[2]) if x.ndim == 5 and x.shape[2] > 1 else None


def folded(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B T, C, H, W); images (B, C, H, W) stay as they are."""
    return x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x


def unfolded(x: Tensor, like: Tensor) -> Tensor:
    """(B T, C, H, W) -> (B, C, T, H, W), or as it is where `like`, of which it was made, is of images."""
    return x.unflatten(0, (-1, like.shape[2])).transpose(1, 2).contiguous() if like.ndim == 5 else x


def of_each_frame(values: Tensor, frames: Frames | None) -> Tensor:
    """Values of each clip (B, D) as those of its frames, (B T, D)."""
    return values if frames is None else values.repeat_interleave(frames.count, dim=0)


def of_clips(items: Tensor, clips: int) -> Tensor:
    """Items of frames (B T, L, D) as those of their clips, (B, T L, D)."""
    return items.unflatten(0, (clips, -1)).flatten(1, 2)


class TimeLayers(nn.ModuleList):
    """The layers over time that follow the convolutions of a block, in their order; none in a network of images."""

    def __init__(self, make: Callable[[int], nn.Module] | None, *widths: int) -> None:
        super().__init__([] if make is None else [make(width) for width in widths])

    def after(self, convolution: int, x: Tensor, frames: Frames | None) -> Tensor:
        """x (B T, C, H, W) as that convolution gave it, after the layer that follows; as it is where no time passes."""
        y: Tensor = self[convolution](x, frames) if frames is not None and len(self) else x
        return y
