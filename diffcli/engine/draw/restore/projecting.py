"""`--project`: images of an upscaler that agree with its picture, by the kernel of its training."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.derived import LowRes
from diffcli.diffusion.operators import Separable, lowered
from diffcli.engine.draw.restore.measured import Batches, Measured, pixels
from diffcli.engine.model import Model
from diffcli.lookup.kernels import Kernel
from diffcli.tasks.diffusion import DiffusionTask


@dataclass(frozen=True)
class Projection:
    """The condition that the images must match, and the transform that made it in training."""

    pictures: ClassVar[int] = 1
    derived: LowRes

    def known(self, task: DiffusionTask, rows: range, batch: Batches) -> Measured:
        """The measurements of images `rows`: the pictures that condition them."""
        low: Tensor = batch(rows)[self.derived.field]
        height, width = (side * self.derived.factor for side in low.shape[2:])
        operator = smaller((height, width), self.derived.factor, self.derived.kernel, task.device)
        return Measured(operator, task.codec.encode(low.to(task.device)), conditioned=True)

    def shown(self, made: Tensor, rows: range) -> Tensor:
        """The images alone."""
        return made

    @property
    def described(self) -> dict[str, Any]:
        """For the sidecar."""
        kernel = f"{self.derived.kernel}, antialiased as Pillow's"
        return {"project": {"field": self.derived.field, "factor": self.derived.factor, "kernel": kernel}}


@lru_cache(maxsize=8)
def smaller(size: tuple[int, int], factor: int, kernel: Kernel, device: torch.device) -> Separable:
    """The cached operator of a size; for large images its factors take longer than a step."""
    return lowered(size, factor, kernel).to(device)


def enlarged_from(model: Model) -> LowRes | None:
    """The transform that made the smaller picture in training; None if the model enlarges none, or if it is unknown."""
    derived = (each for each in model.preset.data.derived if isinstance(each, LowRes))
    return next((each for each in derived if each.field in model.task.reads), None)


def choose_projection(model: Model) -> Projection:
    """The projection of --project. Raises UserError if the model enlarges no picture, or if its kernel is unknown."""
    pixels(model, "--project", "leave --project out, or give an upscaler of pixels")
    found = enlarged_from(model)
    if found is None:
        raise UserError(
            f"--project: {model.path} has no low_res of data.derived as a condition, so its kernel is unknown",
            "leave --project out, or restore a picture by a kernel that you name: --restore sr2 --image FILE",
        )
    return Projection(found)
