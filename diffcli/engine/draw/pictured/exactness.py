"""`--exact-tiles`: whether tiles of a model can equal the prediction for the whole picture, and the overlap that this needs."""

import math
from collections.abc import Iterable, Mapping
from typing import cast

from diffcli.config import UserError
from diffcli.diffusion.tiling import Tiles
from diffcli.diffusion.windows import Windows
from diffcli.engine.model import Model
from diffcli.fields import listed
from diffcli.networks.control import Branch
from diffcli.tasks.control.controlled_task import ControlledTask
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.diffusion_config import DiffusionConfig

LEAVE = "leave --exact-tiles out, or compute the images whole: --no-tile"


def exact_overlap(model: Model, flag: str = "--exact-tiles") -> int:
    """Pixels by which exact tiles overlap at least: a multiple of those at which tiles begin.

    Raises UserError if no overlap is enough, or if the network is compiled.
    """
    if model.compiled:
        raise UserError(f"{flag} with --compile: a compiled network cannot stop at each norm", "leave --compile out")
    config, task = model.preset.task, model.task
    assert isinstance(config, DiffusionConfig)
    assert isinstance(task, DiffusionTask)
    spec = model.trained_on.get(config.field)
    trained = task.shape if spec is None or not spec.fixed else spec.sides
    reach = config.network.reach(task.codec.latent_shape(trained))
    if reach is None:
        raise UserError(f"{flag}: in {model.path} each position attends to all positions of the picture", LEAVE)
    if isinstance(task, ControlledTask):
        hints = (branch.hint.reach for branch in cast(Iterable[Branch], task.controlled.branches))
        reach += math.ceil(max(hints) / task.codec.downscale)
    step = config.network.shift
    return math.ceil((2 * reach + step) / step) * step * task.codec.downscale


def check_exact(tiles: Tiles, model: Model, step: int) -> None:
    """Raises UserError where the sides of the images are no multiples of `step`, the pixels at which exact tiles begin."""
    task = model.task
    assert isinstance(task, DiffusionTask)
    sides = tuple(side * task.codec.downscale for side in task.latent_shape(1)[2:])
    if tiles.exact and any(side % step for side in sides):
        near = listed(tuple(max(1, round(side / step)) * step for side in sides))
        begin = f"--exact-tiles: of {model.path} they begin at multiples of {step}"
        problem = f"{begin}, but images are of {listed(sides)} pixels (HxW)"
        raise UserError(problem, f"draw images of such sides, --size {near}, or {LEAVE}")


def check_guides(tiles: Tiles | Windows | None, models: Mapping[str, Model]) -> None:
    """Raises UserError where a model that guides cannot be exact in the tiles of the one that it guides."""
    if not isinstance(tiles, Tiles) or not tiles.exact or "weaker" not in models:
        return
    weaker = models["weaker"]
    task = weaker.task
    assert isinstance(task, DiffusionTask)
    least, there = exact_overlap(weaker, "--exact-tiles with guide.weaker"), tiles.overlap * task.codec.downscale
    if least > there:
        raise UserError(
            f"--exact-tiles with guide.weaker: tiles of {weaker.path} are exact where they overlap by {least} pixels or more, "
            f"and they overlap by {there}",
            f"use --overlap {least}",
        )
