"""Restoration by a model that was not trained for it: its predictions are projected onto the degraded picture.

For models of pixels alone: an operator of pixels says nothing of a latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.data.pixels import fit
from diffcli.diffusion.operators import Operator
from diffcli.engine.draw.edits import described, open_picture, read_mask
from diffcli.engine.draw.restore.measured import Batches, Measured, pixels
from diffcli.engine.draw.restore.wishes import operator_of
from diffcli.engine.model import Model
from diffcli.engine.options.edit_options import EditOptions
from diffcli.engine.options.restore_wish import Wish, wished
from diffcli.fields import misfit, to_float, to_levels
from diffcli.tasks.diffusion import DiffusionTask


@dataclass(frozen=True)
class Restoration:
    """Degraded pictures and their operator. measured: (K, C', H', W') in [-1, 1]; image i is made of number i mod K.

    left, right: pictures uint8 (K, C, H, W) to show beside each image; described: for the sidecar.
    """

    operator: Operator  # on the model's device
    measured: Tensor
    described: dict[str, Any]
    left: Tensor | None = None
    right: Tensor | None = None

    def known(self, task: DiffusionTask, rows: range, batch: Batches) -> Measured:
        """The measurements of images `rows`."""
        return Measured(self.operator, task.codec.encode(_of(self.measured, rows).to(task.device)), conditioned=False)

    @property
    def pictures(self) -> int:
        """The number of pictures side by side in one image."""
        return 1 + (self.left is not None) + (self.right is not None)

    def shown(self, made: Tensor, rows: range) -> Tensor:
        """Finished images `rows`, uint8 (B, C, H, W), between what stands beside them."""
        left, right = (None if side is None else _of(side, rows).to(made.device) for side in (self.left, self.right))
        return torch.cat([each for each in (left, made, right) if each is not None], dim=3)


def read_restoration(model: Model, options: EditOptions, restore: str, degrade: bool, compare: bool) -> Restoration:
    """The pictures of --image, which the operator of --restore has degraded or, with --degrade, degrades now.

    compare: whether to show them beside the results. Raises UserError for a model of latents, or a picture of the wrong size.
    """
    wish, shape = wished(restore), restorable(model, restore)
    size = shape.height, shape.width
    check_channels(model, wish, shape)
    check_factor(model, wish, size)
    opened = [open_picture("--image", path) for path in options.images]
    if wish.exact and not degrade:
        check_sizes(options, opened, restore, (size[0] // wish.factor, size[1] // wish.factor), wish.factor)
    painted = None
    if options.mask is not None:
        painted = read_mask(options.mask, opened, options.images, shape)
    operator = operator_of(wish, size, painted)
    originals = None
    if degrade:
        originals = _fitted(opened, shape)
        levels = to_levels(operator.measure(to_float(originals)))
    else:
        low = size[0] // wish.factor, size[1] // wish.factor
        levels = _fitted(opened, ImageShape(1 if wish.loss == "colour" else shape.channels, *low))
    record: dict[str, Any] = {"images": [described(path) for path in options.images]}
    record |= {} if options.mask is None else {"mask": described(options.mask)}
    record |= {"restore": {**operator.describe(), "degraded_here": degrade}}
    measured = operator.measure(to_float(levels)) if wish.loss == "mask" else to_float(levels)
    left = seen(to_levels(measured), shape) if compare else None
    right = originals if compare else None
    return Restoration(operator.to(model.device), measured, record, left, right)


def seen(levels: Tensor, shape: ImageShape) -> Tensor:
    """The degraded picture, uint8 (K, C', H', W'), in this shape: every pixel becomes a block, grey fills all channels."""
    factor = shape.height // levels.shape[2]
    return levels.expand(-1, shape.channels, -1, -1).repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def restorable(model: Model, restore: str) -> ImageShape:
    """The shape of the images of a model that can restore. Raises UserError for latents and for fields that are no images."""
    hint = "give a model of pixels; to regenerate a part of an image, type --image FILE --mask FILE without --restore"
    return ImageShape(*pixels(model, f"--restore {restore}", hint).spec.sides)


def check_channels(model: Model, wish: Wish, shape: ImageShape) -> None:
    """Raises UserError for colours of grey images."""
    if wish.loss == "colour" and shape.channels != 3:
        problem = f"--restore colour: {model.path} draws images of {shape.channels} channel, which have no colours"
        raise UserError(problem, "give a model of images in colour")


def check_factor(model: Model, wish: Wish, size: tuple[int, int]) -> None:
    """Raises UserError where the factor does not divide the images."""
    if fault := misfit(size, wish.factor, f"{wish.loss} (a factor of {wish.factor})"):
        problem, near = fault
        raise UserError(
            f"--restore {wish.loss}: {model.path} draws images of {problem}", f"add --size {near[0]}x{near[1]}"
        )


def check_sizes(
    options: EditOptions, opened: Sequence[Image.Image], restore: str, size: tuple[int, int], factor: int
) -> None:
    """Raises UserError for a picture that does not have the (height, width) of the operator's output."""
    for path, image in zip(options.images, opened, strict=True):
        if (image.height, image.width) != size:
            found, whole = (
                f"{side}x{other}"
                for side, other in ((image.height, image.width), (image.height * factor, image.width * factor))
            )
            raise UserError(
                f"--image {path}: is {found} pixels (HxW), but --restore {restore} makes these images out of {size[0]}x{size[1]}",
                f"draw images of its size, --size {whole}; or add --degrade if the picture is not degraded yet",
            )


def _fitted(opened: Sequence[Image.Image], shape: ImageShape) -> Tensor:
    return torch.from_numpy(np.stack([fit(image, shape) for image in opened]))


def _of(rows: Tensor, chosen: range) -> Tensor:
    return rows[torch.arange(chosen.start, chosen.stop) % len(rows)]
