"""Segmentation in one step as a task: the baseline of diffusion on masks, a network of the same family without noise.

The network always gets time 0, computes logits of each pixel, and is trained by cross-entropy and a soft Dice loss.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import UserError
from diffcli.diffusion.samplers import Sampler
from diffcli.fields import Batch, FieldSpec, Remedies, Specs, check_fields
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.networks.registry import AnyNetwork
from diffcli.tasks.task import Network, Task
from diffcli.tasks.task_config import TaskConfig, modelled
from diffcli.transfer import moved

BINARY = 2  # number of classes for which one logit is enough
SMOOTH = 1.0  # pixels added to both masks of a soft Dice


class SegmentationTask(Task):
    """The classes of every pixel of an image. spec: of the mask (1, H, W); image: of the image."""

    def __init__(
        self, network: nn.Module, classes: int, dice: float, field: str, spec: FieldSpec, source: str, image: FieldSpec
    ) -> None:
        super().__init__()
        self.network = network
        self.classes, self.dice = classes, dice
        self.field, self.spec, self.source, self.image = field, spec, source, image

    @property
    def networks(self) -> tuple[Network, ...]:
        return (Network("network", self.network),)

    @property
    def reads(self) -> dict[str, FieldSpec]:
        return {self.source: self.image, self.field: self.spec}

    def check(self, has: Specs) -> None:
        shape = Remedies(shape="set data.size and data.channels")
        check_fields({self.source: self.image}, has, "task.source (segmentation)", {self.source: shape})
        classes = Remedies(shape="set data.size", classes="use --set task.classes={found}")
        check_fields({self.field: self.spec}, has, "task.field (segmentation)", {self.field: classes})

    def forward(self, batch: Batch, phase: str = "main", step: int = 1) -> dict[str, Tensor]:
        logits = self.logits(batch[self.source], moved(batch["stream"], batch[self.source].device))
        marked = self.maps(batch[self.field])
        entropy = self.cross_entropy(logits, batch[self.field], marked)
        dice = soft_dice(self.probabilities(logits), marked)
        return {"loss": entropy + self.dice * (1 - dice), "entropy": entropy, "dice": dice}

    def cross_entropy(self, logits: Tensor, mask: Tensor, marked: Tensor) -> Tensor:
        """Mean over the pixels, in nats: ()."""
        if self.classes == BINARY:
            return F.binary_cross_entropy_with_logits(logits, marked[:, 1:])
        return F.cross_entropy(logits, mask[:, 0])

    def logits(self, x: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> float32 (B, K, H, W), K the classes, or 1 of two. seeds: of dropout, int64 (B,)."""
        time = torch.zeros(len(x), device=x.device)
        return self.network(x, time, Conditioning(seeds=seeds)).float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probability of each class: (B, classes, H, W) in [0, 1]."""
        if self.classes == BINARY:
            p = logits.sigmoid()
            return torch.cat([1 - p, p], dim=1)
        return logits.softmax(1)

    def maps(self, mask: Tensor) -> Tensor:
        """Class numbers (B, 1, H, W) -> 1 where a class is, else 0: float32 (B, classes, H, W)."""
        numbers = torch.arange(self.classes, device=mask.device).view(-1, 1, 1)
        return (mask == numbers).float()

    @torch.no_grad()
    def preview(self, batch: Batch, sampler: Sampler, guidance: float) -> Tensor:
        """The probability that a pixel is foreground, white for 1."""
        return 1 - 2 * self.probabilities(self.logits(batch[self.source]))[:, :1]


class SegmentationConfig(TaskConfig):
    """A segmentation of images in one step; dice: the weight of the Dice loss beside the cross-entropy."""

    kind: Literal["segmentation"] = "segmentation"
    field: str = Field("mask", description="the field of the data to predict, a mask")
    source: str = Field("image", description="the field of the data to predict it from, an image")
    classes: int = Field(2, ge=2, description="number of classes of the mask")
    network: AnyNetwork = Field(description="from images to class scores")
    dice: float = Field(1.0, ge=0, description="weight of the Dice loss beside the cross-entropy")

    @property
    def noun(self) -> str:
        return "a segmentation model"

    @property
    def models(self) -> str:
        return self.field

    def check_buckets(self, sizes: Sequence[tuple[int, int]]) -> None:
        self.network.check_buckets(sizes)

    def build(self, specs: Specs) -> SegmentationTask:
        """The task for the field that it predicts, with weights from torch's current generator."""
        spec = modelled(specs, self.field, ("mask",))
        if self.source not in specs or specs[self.source].kind != "image":
            has = ", ".join(sorted(name for name, other in specs.items() if other.kind == "image")) or "none"
            problem = f"task.source is '{self.source}', but the images of the data are: {has}"
            raise UserError(problem, "name one of them with --set task.source=FIELD")
        image = specs[self.source]
        if spec.class_count is not None and spec.class_count > self.classes:
            raise UserError(
                f"task.classes is {self.classes}, but the data's mask has {spec.class_count} classes",
                f"use --set task.classes={spec.class_count}",
            )
        self.network.check_axes(image.sides)
        outputs = 1 if self.classes == BINARY else self.classes
        network = self.network.build(image.sides, outputs, CondShape())
        predicted = spec._replace(classes=self.classes)
        return SegmentationTask(network, self.classes, self.dice, self.field, predicted, self.source, image)


def soft_dice(probability: Tensor, marked: Tensor) -> Tensor:
    """Dice of probabilities and maps (B, classes, H, W), with SMOOTH pixels added to both; mean over images and foreground: ().

    Source: Milletari et al. 2016, section 3 (arXiv 1606.04797), with sums in place of squares.
    """
    p, y = probability[:, 1:].flatten(2), marked[:, 1:].flatten(2)
    return ((2 * (p * y).sum(2) + SMOOTH) / (p.sum(2) + y.sum(2) + SMOOTH)).mean()
