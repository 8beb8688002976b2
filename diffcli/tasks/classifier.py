"""Image classification as a task: a score network of one's own, whose features and labels judge samples offline."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config, ImageShape, UserError
from diffcli.diffusion.samplers import Sampler
from diffcli.networks.classifier import ConvNet, ConvNetConfig
from diffcli.tasks.task import Batch, Task


class ClassifierTask(Task):
    """Cross-entropy on labels; `features` and `logits` are what `diffcli fid --features RUN` reads."""

    def __init__(self, network: ConvNet, num_classes: int, label_smoothing: float) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing

    @property
    def network_to_compile(self) -> nn.Module:
        return self.network

    def check(self, batch: Batch) -> None:
        if "label" not in batch:
            raise UserError(
                "task.kind is 'classifier', but the data has no class labels",
                "choose labelled data: data.kind digits, mnist or cifar10, or a folder with one subfolder a class",
            )
        highest = int(batch["label"].max())
        if highest >= self.num_classes:
            raise UserError(
                f"task.num_classes is {self.num_classes}, but the data holds class label {highest}",
                f"use --set task.num_classes={highest + 1} or more",
            )

    def forward(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        logits = self.network(batch["image"]).float()
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing)
        return {"loss": loss, "accuracy": (logits.argmax(1) == batch["label"]).float().mean()}

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> penultimate features (B, D)."""
        return self.network.features(x).float()

    def logits(self, features: Tensor) -> Tensor:
        """Penultimate features (B, D) -> class logits (B, K)."""
        return self.network.head(features).float()

    @torch.no_grad()
    def preview(self, batch: Batch, sampler: Sampler, guidance: float) -> Tensor:
        """The batch's own images, those that the classifier is least sure of first."""
        margin = self.network(batch["image"]).float().gather(1, batch["label"][:, None])[:, 0]
        return batch["image"][margin.argsort()]


class ClassifierConfig(Config):
    """A classifier of images into num_classes classes."""

    kind: Literal["classifier"] = "classifier"
    num_classes: int = Field(ge=2)
    network: ConvNetConfig = ConvNetConfig()
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    def build(self, shape: ImageShape) -> ClassifierTask:
        """The task for images of this shape, its weights drawn from torch's current generator."""
        return ClassifierTask(self.network.build(shape, self.num_classes), self.num_classes, self.label_smoothing)
