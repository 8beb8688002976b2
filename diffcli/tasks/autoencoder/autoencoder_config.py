"""The preset keys of a first stage: `task: {kind: autoencoder, network: ..., bottleneck: ...}`."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

from pydantic import Field

from diffcli.config import ImageShape, UserError, keys_agree
from diffcli.fields import Specs, check_buckets, typed
from diffcli.networks.autoencoder import AutoencoderConfig, FirstStageConfig
from diffcli.networks.bottlenecks import AnyBottleneck, Kl
from diffcli.tasks.autoencoder.adversary import Adversarial
from diffcli.tasks.autoencoder.autoencoder_task import AutoencoderTask, Fidelity, StoredVector
from diffcli.tasks.autoencoder.perceptual import AnyPerceptual
from diffcli.tasks.task_config import TaskConfig, modelled


class AutoencoderTaskConfig(TaskConfig):
    """A first stage. The units of the loss: see autoencoder_task.py."""

    kind: Literal["autoencoder"] = "autoencoder"
    field: str = Field("image", description="the field of the data to encode, an image")
    network: AutoencoderConfig = Field(description="encoder and decoder")
    bottleneck: AnyBottleneck = Field(Kl(), description="what the latent is: a Gaussian, or codes")
    embedding: StoredVector | None = Field(None, description="an embedding of the image that encoder and decoder read")
    distance: Literal["l1", "l2"] = Field("l2", description="distance between image and reconstruction, pixel by pixel")
    sigma: float | None = Field(
        None,
        gt=0,
        description="of a normal distribution about the reconstruction, in [-1, 1]: l2 counts 1 / (2 sigma^2)",
    )
    perceptual: AnyPerceptual | None = Field(None, description="an additional distance in features; null: none")
    adversarial: Adversarial | None = Field(None, description="an additional discriminator; null: none")

    @keys_agree
    def _agree(self) -> Iterator[str]:
        if self.sigma is not None and self.distance != "l2":
            yield (
                f"sigma is {self.sigma}, the deviation of a normal distribution, but distance is '{self.distance}'; "
                "set task.distance to l2, or task.sigma to null"
            )

    @property
    def models(self) -> str:
        return self.field

    def check_buckets(self, sizes: Sequence[tuple[int, int]]) -> None:
        check_buckets(sizes, partial(self.network.misfit, what=self.factor))
        for size in sizes:
            if self.adversarial is not None and (fault := self.adversarial.fault(size)):
                raise ValueError("; ".join(fault).replace("data.size", "data.buckets"))

    @property
    def factor(self) -> str:
        """The name, for errors, of the factor that must divide sizes."""
        return f"the downscale {self.network.downscale} of task.network"

    def resolved(self) -> "AutoencoderTaskConfig":
        if self.perceptual is None:
            return self
        return self.model_copy(update={"perceptual": self.perceptual.resolved()})

    def trained_on(self, images: int) -> "AutoencoderTaskConfig":
        return self.model_copy(update={"bottleneck": self.bottleneck.trained_on(images)})

    def first_stage(self, channels: int) -> FirstStageConfig:
        """The first stage that it trains, for images of this number of channels."""
        return FirstStageConfig(
            network=self.network,
            bottleneck=self.bottleneck,
            channels=channels,
            vector=0 if self.embedding is None else self.embedding.width,
        )

    def build(self, specs: Specs) -> AutoencoderTask:
        """The task for the field that it encodes, its weights drawn from torch's current generator."""
        spec = modelled(specs, self.field, ("image",))
        channels, *sides = spec.sides
        if None not in spec.shape and (fault := self.network.misfit(sides, self.factor)):
            key = "mult" if self.network.whole is None else "whole"
            raise UserError(
                f"images are {fault[0]}", f"set data.size to {typed(fault[1])}, or change task.network.{key}"
            )
        if self.adversarial is not None and None not in spec.shape and (deep := self.adversarial.fault(sides)):
            raise UserError(*deep)
        perceptual = None
        if self.perceptual is not None:
            self.perceptual.check(ImageShape(*spec.sides))
            perceptual = self.perceptual.build()
        stage = self.first_stage(channels)
        return AutoencoderTask(
            stage,
            stage.build(),
            Fidelity(self.distance, self.sigma, 1.0 if self.perceptual is None else self.perceptual.weight),
            perceptual,
            None if self.adversarial is None else self.adversarial.build(channels),
            self.embedding,
            self.field,
            spec,
        )
