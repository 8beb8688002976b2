"""The perceptual part of a first stage's loss: the distance of two images in the features of a frozen, pretrained network.

All take images in [-1, 1] and convert range, channels and size themselves. Their weights are read when a run begins and are
part of its checkpoints, so a resumed run does not need their file. Nothing is downloaded.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from torch import Tensor, nn

from diffcli import checkpoint
from diffcli.config import Config, ImageShape, UserError, quoted
from diffcli.fields import from_record
from diffcli.networks.clip_convnet import ClipConvNetConfig
from diffcli.networks.convnet import ConvNet
from diffcli.networks.lpips import SMALLEST, Lpips, directions, find_files
from diffcli.networks.trunk import Trunk
from diffcli.tasks.classifier import ClassifierConfig
from diffcli.tasks.task_config import with_article

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, Pillow's grey


class Perceptual(nn.Module):
    """forward(x, y), each (B, C, H, W) in [-1, 1], -> distances (B,) float32, 0 for equal images."""

    @abstractmethod
    def load(self) -> None:
        """Reads its weights from where the preset says. Raises UserError."""


class LpipsDistance(Perceptual):
    """LPIPS of images with one or three channels."""

    def __init__(self, config: "LpipsLoss") -> None:
        super().__init__()
        self.config, self.network = config, Lpips()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.network(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1))

    @torch.no_grad()
    def load(self) -> None:
        self.network.load(find_files(self.config.weights))


class FeatureDistance(Perceptual):
    """The mean over the blocks of a classifier and over positions of |a - b|^2, a and b its activations of length 1.

    As LPIPS with equal weights for all channels. Images become those that the classifier was trained on, in channels and size.
    """

    def __init__(self, config: "FeatureLoss", judge: "Judge") -> None:
        super().__init__()
        self.config, self.judge = config, judge
        assert not isinstance(judge.classifier.network, ClipConvNetConfig)
        self.network: ConvNet | Trunk = judge.classifier.network.build(judge.image, judge.classifier.known_classes)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        stages = zip(self.network.stages(self.fit(x)), self.network.stages(self.fit(y)), strict=True)
        found = [(directions(a) - directions(b)).square().sum(dim=1).flatten(1).mean(dim=1) for a, b in stages]
        return torch.stack(found).mean(dim=0)

    def fit(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the channels and the size of the classifier's images."""
        channels, *size = self.judge.image
        if channels == 1 and x.shape[1] == 3:
            x = (x * x.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
        x = x.expand(-1, channels, -1, -1)
        return x if list(x.shape[2:]) == size else F.interpolate(x, size, mode="bilinear", antialias=True)

    @torch.no_grad()
    def load(self) -> None:
        assert self.config.run is not None
        path = checkpoint.locate(self.config.run)
        record = checkpoint.read_record(path)
        if "base" in record:
            raise UserError(
                f"task.perceptual.run {path}: holds changes of another model alone",
                f"merge them: diffcli export {quoted(path)} --merge --out DIR, and name that",
            )
        tensors = checkpoint.read_part(path, "ema", record)
        found = {key.removeprefix("network."): value for key, value in tensors.items()}
        try:
            self.network.load_state_dict(found)
        except RuntimeError as error:
            reason = str(error).partition("\n")[2].strip()[:120]
            raise UserError(f"task.perceptual.run {path}: is another classifier than before ({reason})", RUN) from error


RUN = "name the run of a classifier, such as one of the preset digits-classifier, by task.perceptual.run"


class Judge(Config):
    """The configuration of a classifier, filled in from its run when training begins."""

    classifier: ClassifierConfig = Field(description="the classifier whose features count, filled in from its run")
    image: Annotated[ImageShape, Field(description="channels, height and width of its images")]


class PerceptualConfig(Config):
    """Builds the perceptual part. weight: its factor in the loss."""

    weight: float = Field(1.0, gt=0, description="weight of this distance in the loss")

    def resolved(self) -> Self:
        """The same config with absolute paths and with the values that `build` needs."""
        return self

    def check(self, image: ImageShape) -> None:
        """Raises UserError for images that it cannot take."""
        if image.channels not in (1, 3):
            raise UserError(
                f"task.perceptual takes images of 1 or 3 channels, not of {image.channels}",
                "use --set task.perceptual=null",
            )

    @abstractmethod
    def build(self) -> Perceptual:
        """The module, without its weights: see `Perceptual.load`."""


class LpipsLoss(PerceptualConfig):
    """LPIPS of VGG-16, as the published first stages are trained with."""

    kind: Literal["lpips"] = "lpips"
    weights: Path | None = Field(None, description="torchvision's vgg16-397923af.pth; null: in torch hub's cache")

    def resolved(self) -> Self:
        weights = None if self.weights is None else self.weights.expanduser().absolute()
        return self.model_copy(update={"weights": weights})

    def check(self, image: ImageShape) -> None:
        super().check(image)
        if 1 < min(image[1:]) < SMALLEST:
            raise UserError(
                f"task.perceptual is 'lpips', which takes images of {SMALLEST} pixels and more, not of {min(image[1:])}",
                "use larger images (data.size), or --set task.perceptual=null",
            )

    def build(self) -> LpipsDistance:
        return LpipsDistance(self)


class FeatureLoss(PerceptualConfig):
    """The features of a classifier that diffcli trained."""

    kind: Literal["features"] = "features"
    run: Path | None = Field(None, description="the run or a checkpoint of a classifier")
    judge: Judge | None = Field(None, description="filled in from `run` when training begins")

    def resolved(self) -> Self:
        if self.judge is not None:
            return self
        if self.run is None:
            raise UserError("task.perceptual.run is not set, but task.perceptual is 'features'", RUN)
        return self.model_copy(update={"run": self.run.expanduser().absolute(), "judge": judge_of(self.run)})

    def build(self) -> FeatureDistance:
        whole = self.resolved()
        assert whole.judge is not None
        return FeatureDistance(whole, whole.judge)


def judge_of(run: Path) -> Judge:
    """The configuration of the classifier in a run. Raises UserError unless it was trained on clean images."""
    path = checkpoint.locate(run.expanduser())
    record = checkpoint.read_record(path)
    tree: dict[str, Any] = record["preset"]
    kind = tree.get("task", {}).get("kind")
    if kind != "classifier":
        raise UserError(f"task.perceptual.run {path}: was trained as {with_article(str(kind))}", RUN)
    try:
        classifier = ClassifierConfig.model_validate(tree["task"])
        if classifier.schedule is not None:
            raise UserError(f"task.perceptual.run {path}: is a classifier of noisy images", RUN)
        if isinstance(classifier.network, ClipConvNetConfig):
            raise UserError(f"task.perceptual.run {path}: is a classifier of clips", RUN)
        image = from_record(record["fields"])[classifier.field]
        return Judge(classifier=classifier, image=ImageShape(*image.sides))
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"task.perceptual.run {path}: its record cannot be read ({reason})", RUN) from error


AnyPerceptual = Annotated[LpipsLoss | FeatureLoss, Field(discriminator="kind")]
