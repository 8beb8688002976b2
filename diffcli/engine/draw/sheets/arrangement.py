"""Lays images out as one picture: a grid, enlarged, with captions.

Enlarging repeats pixels (nearest neighbour), so the picture shows exactly what the model drew. A single image has no frame.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffcli.engine.draw.sheets.lettering import strips

GAP = 2  # pixels between the images of a grid
READABLE = 96  # least width in pixels of an image with a caption
CLIPS = 5  # axes of a tensor of clips
WIDEST = 20  # largest number of columns that can still be seen


class Arrangement(NamedTuple):
    """The layout of a grid or a frame of an animation.

    scale: each pixel becomes a square of scale x scale; None: 1, or enough for captions. columns: None chooses them as
    `columns_for`.
    captions: one for each image.
    """

    scale: int | None = None
    columns: int | None = None
    captions: Sequence[str] | None = None

    def sheet(self, images: Tensor, description: Mapping[str, Any] | None = None) -> np.ndarray:
        """uint8 (B, C, H, W) -> one uint8 picture (H', W', C); of clips (B, C, T, H, W) each is a row of its frames.

        description: the record of the images, from which the columns follow; None: about a square.
        """
        if images.ndim == CLIPS:
            return self._strips(images)
        columns = self.columns or columns_for(description or {})
        if self.captions is not None:
            return grid(captioned(images, self.captions, self.scale), columns)
        return grid(enlarged(images, self.scale or 1), columns)

    def sheets(self, clips: Tensor, description: Mapping[str, Any] | None = None) -> list[np.ndarray]:
        """uint8 (B, C, T, H, W) -> T pictures, each with one frame of all clips."""
        return [self.sheet(clips[:, :, frame], description) for frame in range(clips.shape[2])]

    def _strips(self, clips: Tensor) -> np.ndarray:
        frames = clips.shape[2]
        under = (
            None if self.captions is None else [each for text in self.captions for each in (text, *[""] * (frames - 1))]
        )
        layout = Arrangement(self.scale, self.columns or frames, under)
        return layout.sheet(clips.transpose(1, 2).flatten(0, 1))

    def describe(self) -> dict[str, Any]:
        """The settings that differ from the defaults, for sidecars."""
        chosen = {"scale": self.scale, "columns": self.columns, "captions": self.captions is not None or None}
        return {name: value for name, value in chosen.items() if value is not None}


def grid(images: Tensor, columns: int | None = None) -> np.ndarray:
    """uint8 (B, C, H, W) -> one uint8 picture (H', W', C), row by row in order, on black; of one image that image alone."""
    n, channels, height, width = images.shape
    if n == 1:
        return images[0].permute(1, 2, 0).numpy()
    columns = min(columns or squarest(n), n)
    rows = math.ceil(n / columns)
    sheet = np.zeros((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = GAP + (i // columns) * (height + GAP), GAP + (i % columns) * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet


def squarest(n: int) -> int:
    """Columns for n images: nearly a square, without a gap in the last row where that stays within two to one."""
    root = math.ceil(math.sqrt(n))
    return next((c for c in range(root, math.ceil(math.sqrt(2 * n)) + 1) if n % c == 0), root)


def columns_for(description: Mapping[str, Any]) -> int | None:
    """The number of columns: one row for an interpolation, one column for each of the classes or prompts used in turn."""
    way, classes = description.get("interpolate") or 0, len(description.get("class_names") or ())
    if 1 < way <= WIDEST:
        return int(way)
    labels = description.get("labels") or []
    if 1 < classes <= WIDEST and len(labels) >= classes and labels[:classes] == list(range(classes)):
        return classes
    prompts = description.get("prompts") or []
    different = len(set(prompts))
    return different if 1 < different <= WIDEST and len(prompts) > different else None


def enlarged(images: Tensor, scale: int) -> Tensor:
    """uint8 (B, C, H, W) -> (B, C, scale H, scale W), each pixel repeated."""
    return images if scale == 1 else images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def captioned(images: Tensor, captions: Sequence[str], scale: int | None = None) -> Tensor:
    """uint8 (B, C, H, W), C 1 or 3 -> the same enlarged, each above its caption. scale: None makes room for words."""
    large = enlarged(images, scale or math.ceil(READABLE / images.shape[3]))
    under = strips(captions, large.shape[3])[:, None]  # white on black in every channel
    return torch.cat([large, under.expand(-1, images.shape[1], -1, -1)], dim=2)
