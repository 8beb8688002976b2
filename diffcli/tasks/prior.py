"""The prior as a task: from the CLIP embedding of a text to that of a matching image; it reads stored embeddings only.

Both sides are scaled to length sqrt(D). The baseline is the identity: the text's embedding in place of the image's.
Source: Ramesh et al. 2022, section 2.2, and 5.1 for the baseline (arXiv 2204.06125).
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config
from diffcli.diffusion.denoiser import Denoiser, Prediction
from diffcli.diffusion.samplers import Sampler, last
from diffcli.diffusion.schedule import AnySchedule, Cosine
from diffcli.diffusion.times import StratifiedTimes
from diffcli.fields import Batch, FieldSpec, Remedies, Specs, check_fields
from diffcli.networks.translator import Translator, VectorDenoiser
from diffcli.noise import Domain, Noise
from diffcli.tasks.codecs.pixel import PixelCodec
from diffcli.tasks.conditioners.slots import unit_variance
from diffcli.tasks.conditioners.stored import IMAGE, TEXT, EmbeddingConditionerConfig
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.guide import Drawing
from diffcli.tasks.objective import Objective
from diffcli.tasks.task import Network, Task
from diffcli.tasks.task_config import TaskConfig

EMBEDDED = Remedies(
    lacking="store the embeddings of captions and images: diffcli prep-data ... --embed clip --encoder MODEL",
    shape="use --set task.dim={found}",
)


class PriorTask(Task):
    """The shared part of both kinds of prior: their fields and their baseline."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    @property
    def reads(self) -> dict[str, FieldSpec]:
        return {name: FieldSpec("vector", (self.dim,)) for name in (TEXT, IMAGE)}

    def check(self, has: Specs) -> None:
        check_fields(self.reads, has, "task.dim (prior)", dict.fromkeys(self.reads, EMBEDDED))

    def forward(self, batch: Batch, phase: str = "main", step: int = 1) -> dict[str, Tensor]:
        text, image = unit_variance(batch[TEXT]), unit_variance(batch[IMAGE])
        baseline = {f"identity_{name}": value.mean() for name, value in closeness(text, image).items()}
        return self.terms(text, image, batch) | baseline

    @abstractmethod
    def terms(self, text: Tensor, image: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The loss and the prediction's own terms for scaled embeddings (B, D) each."""

    @abstractmethod
    def translate(self, text: Tensor, seeds: Sequence[int], sampler: Sampler, guidance: float) -> Tensor:
        """Image embeddings (B, D) of length about sqrt(D) for text embeddings (B, D) of any length.

        seeds: one a row, for what is random about it; a row depends on its own alone.
        """

    def preview(self, batch: Batch, sampler: Sampler, guidance: float) -> None:
        """Priors have no images to show."""


class MLPPrior(PriorTask):
    """Regression: the mean of the image embeddings that fit a text."""

    def __init__(self, dim: int, network: Translator) -> None:
        super().__init__(dim)
        self.network = network

    @property
    def networks(self) -> tuple[Network, ...]:
        return (Network("network", self.network),)

    @property
    def network_to_compile(self) -> nn.Module:
        return self.network

    def terms(self, text: Tensor, image: Tensor, batch: Batch) -> dict[str, Tensor]:
        scores = {name: value.mean() for name, value in closeness(self.network(text).float(), image).items()}
        return {"loss": scores["mse"], **scores}

    def translate(self, text: Tensor, seeds: Sequence[int], sampler: Sampler, guidance: float) -> Tensor:
        return self.network(unit_variance(text)).float()


class DiffusionPrior(PriorTask):
    """A sample of the image embeddings that fit a text: diffusion of vectors in the form of images of one pixel, (B, D, 1, 1)."""

    def __init__(self, dim: int, diffusion: DiffusionTask) -> None:
        super().__init__(dim)
        self.diffusion = diffusion

    @property
    def networks(self) -> tuple[Network, ...]:
        return self.diffusion.networks

    def comparable(self) -> AbstractContextManager[None]:
        return self.diffusion.comparable()

    @property
    def network_to_compile(self) -> nn.Module:
        return self.diffusion.network_to_compile

    def terms(self, text: Tensor, image: Tensor, batch: Batch) -> dict[str, Tensor]:
        """`mse` and `cosine` are those of x0 as it is predicted at the noise levels that were drawn."""
        scores = self.diffusion({**batch, TEXT: text, IMAGE: image[:, :, None, None]})
        predicted = cast(Watched, self.diffusion.denoiser).x0.flatten(1)
        return {**scores, "cosine": F.cosine_similarity(predicted, image).mean()}

    def translate(self, text: Tensor, seeds: Sequence[int], sampler: Sampler, guidance: float) -> Tensor:
        noise = Noise(seeds, text.device, Domain.PRIOR)  # apart from the noise of the image that has the same seed
        x = noise(torch.empty(self.diffusion.latent_shape(len(text)), device=text.device))
        denoise = self.diffusion.denoise({TEXT: unit_variance(text)}, guidance, len(text))
        return last(sampler.trajectory(denoise, self.diffusion.denoiser.schedule, x, noise)).x.flatten(1)


class Watched(Denoiser):
    """Remembers its last prediction of x0, from which the log gets more than the loss."""

    x0: Tensor

    def forward(self, x_t: Tensor, t: Tensor, cond: object) -> Prediction:
        p = super().forward(x_t, t, cond)
        self.x0 = p.x0.detach()
        return p


def closeness(predicted: Tensor, image: Tensor) -> dict[str, Tensor]:
    """The similarity of (B, D) and (B, D), each (B,): mean squared error, and cosine of the angle."""
    return {"mse": (predicted - image).square().mean(1), "cosine": F.cosine_similarity(predicted, image)}


class MLPPriorConfig(Config):
    """A residual MLP trained on the squared error."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(1024, ge=1, description="of the hidden layers")
    depth: int = Field(4, ge=1, description="residual blocks, each with a hidden layer of 4 times the width")

    def build(self, dim: int) -> MLPPrior:
        return MLPPrior(dim, Translator(dim, self.width, self.depth))


class DiffusionPriorConfig(Config):
    """A denoiser of image embeddings conditioned on that of the text; it regresses x0, as unCLIP's prior does."""

    kind: Literal["diffusion"] = "diffusion"
    width: int = Field(1024, ge=1, description="of the hidden layers")
    depth: int = Field(8, ge=1, description="residual blocks, each with a hidden layer of 4 times the width")
    schedule: AnySchedule = Field(Cosine(), description="how noise grows with time")
    drop_condition: float = Field(0.1, ge=0, lt=1, description="share of samples trained without their text")

    def build(self, dim: int) -> DiffusionPrior:
        denoiser = Watched(VectorDenoiser(dim, self.width, self.depth, dim), self.schedule, "x0", False)
        codec, condition = PixelCodec(scale=1.0, clip=False), EmbeddingConditionerConfig(field=TEXT, width=dim)
        objective, as_image = Objective(times=StratifiedTimes()), FieldSpec("image", (dim, 1, 1))
        task = DiffusionTask(denoiser, codec, [condition.build()], objective, self.drop_condition, IMAGE, as_image)
        return DiffusionPrior(dim, task)


class PriorConfig(TaskConfig):
    """From text embeddings to image embeddings of `dim` values."""

    kind: Literal["prior"] = "prior"
    dim: int = Field(768, ge=1, description="values of an embedding: 512 for CLIP ViT-B, 768 for ViT-L/14")
    network: Annotated[MLPPriorConfig | DiffusionPriorConfig, Field(discriminator="kind")] = Field(
        MLPPriorConfig(), description="from text embeddings to image embeddings"
    )

    @property
    def guided(self) -> bool:
        """Whether there is a branch without the text to lead away from."""
        return isinstance(self.network, DiffusionPriorConfig) and self.network.drop_condition > 0

    def check_drawing(self, drawing: Drawing) -> Iterator[str]:
        if drawing.guidance != 1 and not self.guided:
            yield (
                f"guidance is {drawing.guidance}, but a prior of task.network.kind {self.network.kind} that never drops its "
                "text has no second branch; set guidance to 1"
            )
        yield from drawing.check_no_guide(self.kind)
        yield from drawing.check_no_prior()
        if isinstance(self.network, DiffusionPriorConfig):
            yield from drawing.check_times(self.network.schedule)
        yield from drawing.check_variance(learned=False)

    def build(self, specs: Specs) -> PriorTask:
        """The task, with weights from torch's current generator; it takes no images."""
        return self.network.build(self.dim)
