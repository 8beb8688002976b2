"""Super-resolution by regression: a network predicts in one step the mean, or median, of the possible originals."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import UserError
from diffcli.diffusion.samplers import Sampler
from diffcli.fields import Batch, FieldSpec, Remedies, Specs, check_fields, fits, listed
from diffcli.networks.enlarger import Enlarger, EnlargerConfig
from diffcli.tasks.task import Network, Task
from diffcli.tasks.task_config import TaskConfig, modelled


class SuperResolutionTask(Task):
    """L1 or L2 between an image and the network's enlargement of a smaller one. low, small: field and spec of the smaller one."""

    def __init__(
        self, network: Enlarger, distance: str, field: str, spec: FieldSpec, low: str, small: FieldSpec
    ) -> None:
        super().__init__()
        self.network, self.distance = network, distance
        self.field, self.spec, self.low, self.small = field, spec, low, small

    @property
    def networks(self) -> tuple[Network, ...]:
        return (Network("network", self.network),)

    @property
    def reads(self) -> dict[str, FieldSpec]:
        return {self.field: self.spec, self.low: self.small._replace(shape=(self.small.shape[0], None, None))}

    def check(self, has: Specs) -> None:
        remedies = dict.fromkeys(self.reads, Remedies(shape="set data.size and data.channels"))
        check_fields(self.reads, has, "task (super_resolution)", remedies)

    def forward(self, batch: Batch, phase: str = "main", step: int = 1) -> dict[str, Tensor]:
        error = self.enlarged(batch[self.low]) - batch[self.field]
        mse = error.square().mean()
        loss = error.abs().mean() if self.distance == "l1" else mse
        return {"loss": loss, "psnr": 10 * torch.log10(4 / mse.detach())}

    def enlarged(self, low: Tensor) -> Tensor:
        """Smaller pictures (B, C, h, w) in [-1, 1], of any size -> (B, C, factor h, factor w) about [-1, 1]."""
        return self.network(low).float()

    @torch.no_grad()
    def preview(self, batch: Batch, sampler: Sampler, guidance: float) -> Tensor:
        return self.enlarged(batch[self.low]).clamp(-1, 1)


class SuperResolutionConfig(TaskConfig):
    """A network that enlarges pictures of the field `low` in one step."""

    kind: Literal["super_resolution"] = "super_resolution"
    field: str = Field("image", description="the field of the data to predict, an image")
    low: str = Field("low_res", description="the field of the smaller picture")
    factor: int = Field(2, ge=2, le=16, description="factor by which its edges are smaller")
    network: EnlargerConfig = Field(EnlargerConfig(), description="the network that enlarges")
    distance: Literal["l1", "l2"] = Field("l1", description="distance between prediction and image, pixel by pixel")

    @property
    def noun(self) -> str:
        return "a network that enlarges images"

    @property
    def models(self) -> str:
        return self.field

    def build(self, specs: Specs) -> SuperResolutionTask:
        """The task, its weights from torch's current generator. Raises UserError where sizes do not differ by `factor`."""
        if self.low not in specs:
            raise UserError(
                f"task.low is '{self.low}', but the data has only: {', '.join(sorted(specs))}",
                f"make it of the image: --set 'data.derived=[{{kind: low_res, factor: {self.factor}, field: {self.low}}}]'",
            )
        spec, small = modelled(specs, self.field, ("image",)), modelled(specs, self.low, ("image",))
        (channels, *large), (there, *little) = spec.sides, small.shape
        wanted = [side // self.factor for side in large]
        exact = all(side % self.factor == 0 for side in large)
        if channels != there or not exact or not fits(tuple(wanted), tuple(little)):
            raise UserError(
                f"task.factor is {self.factor}, but '{self.low}' is {listed(small.shape)} beside images of {listed(spec.shape)}",
                f"make it of the image: data.derived: [{{kind: low_res, factor: {self.factor}}}]",
            )
        network = self.network.build(spec.sides[0], self.factor)
        return SuperResolutionTask(network, self.distance, self.field, spec, self.low, small)
