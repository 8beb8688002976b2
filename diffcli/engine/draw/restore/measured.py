"""Linear measurements that images of a batch must match, in diffusion space, and the walk that matches them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from diffcli.config import UserError
from diffcli.diffusion.denoiser import Denoise
from diffcli.diffusion.editing import projected, pursued, settled
from diffcli.diffusion.operators import Operator
from diffcli.diffusion.samplers import Sampler, Step
from diffcli.engine.model import Model
from diffcli.fields import Batch
from diffcli.tasks.codecs.pixel import PixelCodec
from diffcli.tasks.diffusion import DiffusionTask

ROUNDS = 32  # rounds to bring a finished image within the range of file levels

Batches = Callable[[range], Batch]
"""The conditions of images on the model's device."""


class Measured(NamedTuple):
    """values: (B, C', H', W') on the scale of the codec. conditioned: whether they also condition the network."""

    operator: Operator
    values: Tensor
    conditioned: bool

    def bound(self, task: DiffusionTask, denoise: Denoise, sampler: Sampler) -> Denoise:
        """A denoiser for one walk, whose x0 matches the measurements.

        A sampler that rejects and repeats steps does not evaluate along one walk; a sum over its evaluations would make the
        images of a batch depend on each other.
        """
        retries = sampler.nfe is None
        project = projected if self.conditioned or retries else pursued
        return project(denoise, task.denoiser.schedule, self.operator, self.values)

    def finished(self, task: DiffusionTask, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps; the last image is brought into the range of levels and still matches the measurements."""
        for step in steps:
            if step.t > 0:
                yield step
            else:
                x, x0 = (settled(v, self.operator, self.values, task.codec.length, ROUNDS) for v in (step.x, step.x0))
                yield step._replace(x=x, x0=x0)


class Restoring(Protocol):
    """The source of the measurements."""

    @property
    def described(self) -> dict[str, Any]:
        """For the sidecar."""

    @property
    def pictures(self) -> int:
        """The number of pictures side by side in one image."""

    def known(self, task: DiffusionTask, rows: range, batch: Batches) -> Measured:
        """The measurements of images `rows`. batch: gives their conditions."""

    def shown(self, made: Tensor, rows: range) -> Tensor:
        """Finished images `rows`, uint8 (B, C, H, W), with the pictures to show beside them."""


def pixels(model: Model, flag: str, hint: str) -> DiffusionTask:
    """The task of a model that draws pixels of images. Raises UserError for latents and for fields that are no images."""
    task = model.task
    assert isinstance(task, DiffusionTask)
    if task.spec.kind != "image":
        problem = f"{flag}: {model.path} draws the field '{task.field}' of kind {task.spec.kind}, no images"
        raise UserError(problem, hint)
    if not isinstance(task.codec, PixelCodec):
        raise UserError(f"{flag}: {model.path} draws latents, and the given picture consists of pixels", hint)
    return task
