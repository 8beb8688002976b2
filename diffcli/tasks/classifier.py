"""Classification of images or clips as a task: its features score samples; a classifier of noisy images guides sampling."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from diffcli.config import ImageShape, UserError, keys_agree
from diffcli.diffusion.denoiser import network_time
from diffcli.diffusion.editing import noised
from diffcli.diffusion.guidance import LogProb, on_path
from diffcli.diffusion.samplers import Sampler
from diffcli.diffusion.schedule import AnySchedule, Schedule
from diffcli.fields import Batch, FieldSpec, Remedies, Specs, check_fields
from diffcli.networks.clip_convnet import ClipConvNet, ClipConvNetConfig
from diffcli.networks.convnet import ConvNet, ConvNetConfig
from diffcli.networks.trunk import Trunk, TrunkConfig
from diffcli.noise import Domain, Noise
from diffcli.tasks.task import Network, Task
from diffcli.tasks.task_config import TaskConfig, modelled

LABELLED = Remedies(
    lacking="choose labelled data: data.kind digits, mnist or cifar10, or a folder with one subfolder a class",
    classes="use --set task.num_classes={found} or more",
)


AnyJudge = Annotated[ConvNetConfig | TrunkConfig | ClipConvNetConfig, Field(discriminator="kind")]


class ClassifierTask(Task):
    """Cross-entropy on labels, of noisy images where there is a schedule.

    `diffcli fid --features RUN` reads `features` and `logits`, classifier guidance `log_prob`.
    """

    def __init__(
        self,
        network: ConvNet | Trunk | ClipConvNet,
        num_classes: int,
        label_smoothing: float,
        schedule: Schedule | None,
        field: str,
        spec: FieldSpec,
    ) -> None:
        super().__init__()
        self.field, self.spec = field, spec
        self.network = network
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.schedule = schedule

    @property
    def networks(self) -> tuple[Network, ...]:
        return (Network("network", self.network),)

    @property
    def reads(self) -> dict[str, FieldSpec]:
        return {self.field: self.spec, "label": FieldSpec("classes", (), self.num_classes)}

    def check(self, has: Specs) -> None:
        image, label = {self.field: self.spec}, {"label": self.reads["label"]}
        check_fields(
            image, has, "task.field (classifier)", {self.field: Remedies(shape="set data.size and data.channels")}
        )
        check_fields(label, has, "task.num_classes (classifier)", {"label": LABELLED})

    def forward(self, batch: Batch, phase: str = "main", step: int = 1) -> dict[str, Tensor]:
        x, t = batch[self.field], None
        if self.schedule is not None:
            t = self.schedule.trained_time(Noise(batch["stream"], torch.device("cpu"), Domain.CHANCE).uniform())
            x = noised(self.schedule, x, Noise(batch["stream"], x.device)(x), t)
        logits = self.logits(self.features(x, t))
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing)
        return {"loss": loss, "accuracy": (logits.argmax(1) == batch["label"]).float().mean()}

    def features(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [-1, 1], or x_t at times t () or (B,) of its schedule -> penultimate features (B, D).

        Of clips (B, C, T, H, W).
        """
        if self.schedule is None:
            return self.network(x).float()
        t = torch.zeros((), dtype=torch.float64) if t is None else t
        return self.network(x, network_time(self.schedule, t, x)).float()

    def logits(self, features: Tensor) -> Tensor:
        """Penultimate features (B, D) -> class logits (B, K)."""
        return self.network.head(features).float()

    def log_prob(self, label: Tensor, schedule: Schedule, length: float) -> LogProb:
        """log p(label | x_t) for x_t on any path, over images times `length`; label: int64 (B,). For a noise-aware classifier."""
        own = self.schedule
        assert own is not None

        def log_prob(x: Tensor, t: Tensor) -> Tensor:
            logits = self.logits(self.features(*on_path(schedule, own, x, t, length)))
            return -F.cross_entropy(logits, label, reduction="none")

        return log_prob

    @torch.no_grad()
    def preview(self, batch: Batch, sampler: Sampler, guidance: float) -> Tensor:
        """The batch's own images, or the middle frames of its clips, those that the classifier is least sure of first."""
        margin = self.logits(self.features(batch[self.field])).gather(1, batch["label"][:, None])[:, 0]
        found: Tensor = batch[self.field][margin.argsort()]
        return found[:, :, found.shape[2] // 2] if self.spec.kind == "clip" else found


class ClassifierConfig(TaskConfig):
    """A classifier of images or clips into num_classes classes; with a schedule, of noisy images at any of its times."""

    kind: Literal["classifier"] = "classifier"
    field: str = Field("image", description="the field of the data to classify, an image or a clip")
    num_classes: int | None = Field(
        None, ge=2, description="number of classes, labels 0 to this - 1; null: as many as the data have"
    )
    network: AnyJudge = Field(
        ConvNetConfig(),
        description="convnet for small images, trunk, the encoder of a U-Net, or clip_convnet for clips",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each label that is spread evenly over all classes"
    )
    schedule: AnySchedule | None = Field(
        None, description="path of the noise that is added to images, for classifiers that guide; null: clean images"
    )

    @field_validator("network", mode="before")
    @classmethod
    def _convnet(cls, value: Any) -> Any:
        """Keys without a kind are those of a convnet, once the only kind."""
        return {"kind": "convnet", **value} if isinstance(value, dict) else value

    @keys_agree
    def _agree(self) -> Iterator[str]:
        if self.schedule is not None and isinstance(self.network, ClipConvNetConfig):
            yield "network.kind is 'clip_convnet', which is told no time of noise; leave task.schedule out"

    @property
    def models(self) -> str:
        return self.field

    @property
    def known_classes(self) -> int:
        """The number of classes. Raises UserError if neither the preset nor the data determine it."""
        if self.num_classes is None:
            raise UserError(
                "task.num_classes is left out, and there are no data with classes to count",
                "use --set task.num_classes=10, or data with a folder for each class",
            )
        return self.num_classes

    @property
    def leaves_classes_out(self) -> bool:
        return self.num_classes is None

    def of_classes(self, count: int) -> "ClassifierConfig":
        return self if self.num_classes else self.model_copy(update={"num_classes": count})

    def build(self, specs: Specs) -> ClassifierTask:
        """The task for the field that it classifies, its weights drawn from torch's current generator."""
        spec = modelled(specs, self.field, ("image", "clip"))
        kind, of_clips = self.network.kind, isinstance(self.network, ClipConvNetConfig)
        if of_clips != (spec.kind == "clip"):
            hint = "use --set task.network.kind=" + ("convnet" if of_clips else "clip_convnet")
            raise UserError(
                f"task.field is '{self.field}' of kind {spec.kind}, but task.network.kind is '{kind}'", hint
            )
        network: ConvNet | Trunk | ClipConvNet
        if isinstance(self.network, ClipConvNetConfig):
            network = self.network.build(spec.sides[0], self.known_classes)
        else:
            timed = self.schedule is not None
            network = self.network.build(ImageShape(*spec.sides), self.known_classes, timed=timed)
        return ClassifierTask(network, self.known_classes, self.label_smoothing, self.schedule, self.field, spec)
