"""Models that were trained to fill holes: `--image` and `--mask` are their conditions, and known pixels stay unchanged.

Such a model reads both fields of an entry `hole` of data.derived: the mask, and the image around it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.data.derived import MIDDLE, Hole
from diffcli.diffusion.operators import Known
from diffcli.engine.draw.conditions import condition_specs
from diffcli.engine.draw.edits import described, read_edit
from diffcli.engine.draw.given import Value
from diffcli.engine.draw.restore.measured import Batches, Measured
from diffcli.engine.model import Model
from diffcli.engine.options.edit_options import EditOptions
from diffcli.fields import listed, to_levels
from diffcli.tasks.codecs.pixel import PixelCodec
from diffcli.tasks.diffusion import DiffusionTask


@dataclass(frozen=True)
class Surroundings:
    """The pixels around the hole of each image, from its conditions."""

    pictures: ClassVar[int] = 1
    hole: Hole

    def known(self, task: DiffusionTask, rows: range, batch: Batches) -> Measured:
        """The pixels of images `rows` that are no part of their holes."""
        found = batch(rows)
        operator = Known(found[self.hole.field] == 0)
        return Measured(operator, operator.measure(task.codec.encode(found[self.hole.image])), conditioned=True)

    def shown(self, made: Tensor, rows: range) -> Tensor:
        """The images alone."""
        return made

    @property
    def described(self) -> dict[str, Any]:
        """For the sidecar."""
        return {"kept": f"pixels outside of '{self.hole.field}'"}


def hole_of(model: Model) -> Hole | None:
    """The entry of data.derived whose two fields condition a model; None if there is none."""
    wanted = condition_specs(model)
    derived = (each for each in model.preset.data.derived if isinstance(each, Hole))
    return next((each for each in derived if {each.field, each.image} <= wanted.keys()), None)


def choose_surroundings(model: Model) -> Surroundings | None:
    """The known pixels of a model that fills holes; None for others, and for models of latents."""
    hole = hole_of(model)
    task = model.task
    pixels = isinstance(task, DiffusionTask) and isinstance(task.codec, PixelCodec)
    return Surroundings(hole) if hole is not None and pixels else None


def check_hole(model: Model, options: EditOptions, given: Collection[str]) -> None:
    """Raises UserError if a model that fills holes gets none. given: names of fields."""
    hole = hole_of(model)
    if hole is not None and options.mask is None and not {hole.field, hole.image} <= set(given):
        raise UserError(
            f"{model.path}: fills holes of pictures, and no hole is given",
            "give both: --image FILE --mask FILE, white where it is to be filled",
        )


def check_over(model: Model, values: Mapping[str, Value]) -> None:
    """Raises UserError if given masks and pictures do not have the size of the images."""
    size = tuple(model.preset.data.shape[1:])
    for name, value in values.items():
        for shape in value.shapes:
            if len(shape) == 3 and tuple(shape[-2:]) != size:
                problem = f"'{name}' is given in {listed(shape[-2:])} pixels (HxW), but the images have {listed(size)}"
                raise UserError(problem, "give it in the size of the images, or as files, which are cut and resized")


def with_hole(model: Model, options: EditOptions, given: Mapping[str, Value]) -> dict[str, Value]:
    """`given`, and for a model that fills holes the two conditions from --image and --mask.

    Image i has the picture numbered i mod K, all have the one mask.
    """
    hole, values = hole_of(model), dict(given)
    if hole is None:
        return values
    if {hole.field, hole.image} <= given.keys():
        check_over(model, {name: given[name] for name in (hole.field, hole.image)})
        return values
    if options.mask is None:
        return values
    for name in {hole.field, hole.image} & given.keys():
        problem = f"--mask {options.mask}: '{name}' is given twice, as --image and --mask make it as well"
        raise UserError(
            problem, f"leave out '{name}', or --image and --mask and give '{hole.field}' and '{hole.image}'"
        )
    spec = model.task.reads[model.preset.task.models or "image"]
    edit = read_edit(options, ImageShape(*spec.sides))
    assert edit.images is not None
    assert edit.painted is not None
    around = to_levels(edit.images).masked_fill(edit.painted, MIDDLE)
    mask = described(options.mask)
    values[hole.field] = Value(edit.painted[None, None].to(torch.uint8), mask)
    values[hole.image] = Value(around, [described(path) for path in options.images])
    return values
