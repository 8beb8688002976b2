"""`--features`: the network that turns images into features, Inception or a classifier that diffcli itself trained."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.config import ImageShape, UserError, did_you_mean
from diffcli.data.loader import to_float
from diffcli.metrics.extractors import Extractor, Inception
from diffcli.metrics.summary import FeatureBatch

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, Pillow's grey


@runtime_checkable
class ScoringTask(Protocol):
    """What a classifier task offers: penultimate features, and logits from them."""

    def features(self, x: Tensor) -> Tensor: ...

    def logits(self, features: Tensor) -> Tensor: ...


class ClassifierFeatures:
    """Penultimate features and logits of a trained classifier; other sizes and channels are converted, which is noted."""

    layer = "penultimate"

    def __init__(
        self,
        task: ScoringTask,
        name: str,
        shape: ImageShape,
        classes: tuple[str, ...] | None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.task, self.name, self.shape, self.device = task, name, shape, torch.device(device)
        self.notes: list[str] = []
        probe = self(torch.zeros(1, *shape, dtype=torch.uint8))
        assert probe.logits is not None
        self.dim = probe.features.shape[1]
        self.num_logits: int | None = probe.logits.shape[1]
        self.classes: tuple[str, ...] | None = classes or tuple(str(k) for k in range(probe.logits.shape[1]))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> FeatureBatch:
        """Features (B, D) and logits (B, K)."""
        features = self.task.features(self._fit(to_float(images.to(self.device))))
        return FeatureBatch(features, self.task.logits(features))

    def _fit(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] in the shape that the classifier was trained with."""
        found = ImageShape(*x.shape[1:])
        if found == self.shape:
            return x
        note = f"images of {size_text(found)} were converted to the {size_text(self.shape)} of {self.name}"
        if note not in self.notes:
            self.notes.append(note)
        if found.channels == 3 and self.shape.channels == 1:
            x = (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        elif found.channels == 1:
            x = x.expand(-1, self.shape.channels, -1, -1)
        if found[1:] != self.shape[1:]:
            x = F.interpolate(x, self.shape[1:], mode="bilinear", antialias=True)
        return x


def extractor_for(features: str, weights: Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """The extractor of `--features inception|RUN` and `--weights FILE`. Raises UserError."""
    if features.lower() == "inception":
        return Inception(weights, device)
    path = Path(features).expanduser()
    if not path.exists():
        raise UserError(
            f"--features {features}: is neither an extractor nor a run",
            did_you_mean(features, ["inception"]) + ", or give the run directory of a classifier trained by diffcli",
        )
    if weights is not None:
        raise UserError(f"--weights {weights} given with --features {features}, which brings its own", "drop --weights")
    return _of_run(path, device)


def size_text(shape: ImageShape) -> str:
    """Width x height x channels, as people say it."""
    return f"{shape.width}x{shape.height}x{shape.channels}"


def _of_run(path: Path, device: torch.device | str) -> Extractor:
    from diffcli.engine.draw.sample import load_model  # brings the whole engine with it, which Inception does not need

    model = load_model(path, torch.device(device))
    task = model.task
    if not isinstance(task, ScoringTask):
        raise UserError(
            f"--features {path} is a run of a {model.preset.task.kind} task, which has no features to score with",
            "train a classifier: diffcli train --preset digits-classifier",
        )
    name = f"{model.preset.name}-step{model.step}-{model.digest[:8]}"
    return ClassifierFeatures(task, name, model.preset.data.shape, model.classes, device)
