"""Enlargements of the rows of a reference by a one-step network: the baseline of super-resolution."""

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.engine.draw.sampling import SampleOptions, check_one_step
from diffcli.engine.model import Model
from diffcli.fields import Batch, to_float, to_levels
from diffcli.tasks.super_resolution import SuperResolutionTask


class Enlargements:
    """The enlarged pictures of the rows. Raises UserError for sampling options, which have no effect."""

    def __init__(self, model: Model, task: SuperResolutionTask, options: SampleOptions, mean_of: int) -> None:
        what = f"{model.path} is {model.preset.task.noun}, in one step and always to the same image"
        check_one_step(options, what)
        if mean_of > 1:
            raise UserError(f"--mean-of {mean_of}: {what}", "leave --mean-of out")
        self.model, self.task = model, task
        self.reads = frozenset({task.low})

    @torch.no_grad()
    def images(self, rows: range, found: Batch) -> Tensor:
        return to_levels(self.task.enlarged(to_float(found[self.task.low].to(self.model.device))))

    def __str__(self) -> str:
        return f"enlargements by {self.model.path}"
