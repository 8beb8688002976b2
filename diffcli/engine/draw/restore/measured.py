"""What images of a batch must measure, in diffusion space, and how a walk comes to it."""

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

ROUNDS = 32  # in which a finished image is brought within the levels that files have

Batches = Callable[[range], Batch]
"""The conditions of images on the model's device."""


class Measured(NamedTuple):
    """values: (B, C', H', W') on the scale of the codec. told: whether the network is conditioned on them."""

    operator: Operator
    values: Tensor
    told: bool

    def bound(self, task: DiffusionTask, denoise: Denoise, sampler: Sampler) -> Denoise:
        """A denoiser for one walk whose x0 measures so.

        A sampler that tries steps and takes them back evaluates at times that are no walk, and the images of a batch would then
        depend on each other.
        """
        retries = sampler.nfe is None
        project = projected if self.told or retries else pursued
        return project(denoise, task.denoiser.schedule, self.operator, self.values)

    def finished(self, task: DiffusionTask, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps, the last image of which needs hardly any clamping, though it measures as before."""
        for step in steps:
            if step.t > 0:
                yield step
            else:
                x, x0 = (settled(v, self.operator, self.values, task.codec.length, ROUNDS) for v in (step.x, step.x0))
                yield step._replace(x=x, x0=x0)


class Restoring(Protocol):
    """Where it comes from what images must measure."""

    @property
    def told(self) -> dict[str, Any]:
        """For the sidecar."""

    @property
    def pictures(self) -> int:
        """How many stand side by side in one."""

    def known(self, task: DiffusionTask, rows: range, batch: Batches) -> Measured:
        """What images `rows` must measure. batch: gives their conditions."""

    def shown(self, made: Tensor, rows: range) -> Tensor:
        """Finished images `rows`, uint8 (B, C, H, W), between what stands beside them."""


def pixels(model: Model, flag: str, hint: str) -> DiffusionTask:
    """The task of a model that draws pixels of images. Raises UserError for latents and what is no image."""
    task = model.task
    assert isinstance(task, DiffusionTask)
    if task.spec.kind != "image":
        problem = f"{flag}: {model.path} draws the field '{task.field}' of kind {task.spec.kind}, no images"
        raise UserError(problem, hint)
    if not isinstance(task.codec, PixelCodec):
        raise UserError(f"{flag}: {model.path} draws latents, and what was measured are pixels", hint)
    return task
